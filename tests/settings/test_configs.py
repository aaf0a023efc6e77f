"""Every configuration file that ships is read without problems, also as official sd-scripts reads it."""

import re
from pathlib import Path

import pytest
import toml
from PIL import Image

from library.anima_runtime import command_line
from library.config_util import load_dataset_config
from library.settings.config_file import read_config
from library.settings.options import all_flags
from tests.helpers.paths import ROOT

TRAIN_FILES = sorted((ROOT / "configs").rglob("*train_args.toml"))
DATASET_FILES = sorted((ROOT / "configs").rglob("*dataset.toml"))
TEMPLATE = ROOT / "configs/examples/anima_full_template_train_args.toml"


def short(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", TRAIN_FILES, ids=short)
def test_a_train_file_has_no_problem_and_no_option_without_effect(path):
    argv = ["--config_file", str(path), "--dataset_config", "dataset.toml"]
    loaded = read_config(command_line.setup_parser(), argv, command_line.GROUPS)
    loaded.require()
    assert loaded.notes == ()


@pytest.mark.parametrize("path", DATASET_FILES, ids=short)
def test_a_dataset_file_lacks_nothing_but_the_pictures(path, tmp_path, monkeypatch):
    for dataset in toml.load(path)["datasets"]:
        for subset in dataset["subsets"]:
            (tmp_path / subset["image_dir"]).mkdir(parents=True)
            Image.new("RGB", (64, 64)).save(tmp_path / subset["image_dir"] / "a.png")
    monkeypatch.chdir(tmp_path)
    assert load_dataset_config(path, {}).datasets


@pytest.mark.parametrize("path", [*TRAIN_FILES, *DATASET_FILES], ids=short)
def test_the_toml_package_reads_it_as_well(path):
    assert toml.load(path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#") and re.search("[\u4e00-\u9fff]", text), "says what it is, in both"


def test_the_template_names_only_options_that_exist():
    flags = all_flags(command_line.GROUPS).values()
    known = {name.removeprefix("--") for flag in flags for name in flag.names}
    commented = re.findall(r"^# (\w+) = ", TEMPLATE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commented) > 30 and set(commented) <= known
