"""Presets: what ships is what the table says, each is a sound beginning, and whatever else is given wins."""

import pytest
import toml

from library.anima_runtime import command_line
from library.errors import ConfigError
from library.settings.config_file import read_config
from library.settings.flags.loop import LoopOptions
from library.settings.flags.network import NetworkOptions
from library.settings.flags.optimizer import OptimizerOptions
from library.settings.presets import CARDS, FOLDER, PURPOSES, preset_names, recommended
from library.settings.written_config import write_config
from tests.helpers.paths import ROOT
from tools._preset_table import presets

MODELS = ["--anima_transformer", "d", "--vae", "v", "--qwen", "q", "--output_dir", "o"]


def read(*argv):
    return read_config(command_line.setup_parser(), argv, command_line.GROUPS)


def test_the_files_are_those_of_the_table():
    found = {file.stem: file.read_text(encoding="utf-8") for file in FOLDER.glob("*")}
    assert found == presets(), "run tools/make_presets.py"
    assert len(found) == 31 and preset_names() == sorted(found)


@pytest.mark.parametrize("name", presets())
def test_each_preset_is_a_sound_beginning(name):
    loaded = read(*MODELS, "--dataset_config", "d.toml", "--preset", name)
    loaded.require()
    assert loaded.notes == ()
    values = toml.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    assert values.keys() <= loaded.explicit
    network = loaded.groups[NetworkOptions]
    assert network.network_dim == values["network_dim"]


def test_presets_of_one_purpose_and_kind_teach_the_same_on_every_card():
    for purpose in PURPOSES:
        for kind in ("lora", "lokr"):
            values = [toml.loads(presets()[f"{purpose}_{kind}_{card}gb"]) for card in CARDS]
            assert [each.pop("vram_target") for each in values] == list(CARDS)
            assert all(each == values[0] for each in values)


def test_a_preset_is_the_base_and_all_else_wins(tmp_path):
    file = tmp_path / "train.toml"
    file.write_text('preset = "character_lora_8gb"\nnetwork_dim = 4\nlearning_rate = 3e-4\n')
    loaded = read("--config_file", str(file), "--learning_rate", "5e-5")
    network, optimizer = loaded.groups[NetworkOptions], loaded.groups[OptimizerOptions]
    assert (network.network_dim, network.network_alpha) == (4, 16)
    assert optimizer.learning_rate == 5e-5
    assert loaded.groups[LoopOptions].max_train_epochs == 100
    typed = read("--config_file", str(file), "--preset", "style_lokr_24gb")
    assert typed.groups[NetworkOptions].network_module == "networks.lokr_anima"
    assert typed.groups[LoopOptions].max_train_epochs == 30


def test_what_contradicts_an_option_of_the_preset_takes_its_place():
    loop = read("--preset", "style_lora_8gb", "--max_train_steps", "70").groups[LoopOptions]
    assert (loop.max_train_epochs, loop.max_train_steps) == (None, 70)
    loop = read("--preset", "style_lora_8gb", "--compile").groups[LoopOptions]
    assert loop.vram_target == "8"  # which counts compiled blocks
    loop = read("--preset", "style_lora_8gb", "--vram_target", "12").groups[LoopOptions]
    assert loop.vram_target == "12"


def test_a_users_own_file_is_a_preset_too(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("network_dim = 24\nnetwork_dmi = 3\n")
    loaded = read("--preset", str(file))
    assert loaded.groups[NetworkOptions].network_dim == 24
    (problem,) = [p for p in loaded.problems if "network_dmi" in p.where]
    assert problem.source == str(file) and "network_dim" in problem.message


@pytest.mark.parametrize(
    "name, words",
    [("style_lora_9gb", "Did you mean style_lora_"), ("nothing.toml", "no such file"), ("x", "reference_author")],
)  # fmt: skip
def test_an_unknown_preset_is_told_with_those_that_there_are(name, words):
    with pytest.raises(ConfigError, match=words):
        read("--preset", name).require()


def test_a_written_configuration_needs_no_preset_any_more(tmp_path):
    file = tmp_path / "whole.toml"
    write_config(
        read("--preset", "concept_lokr_6gb", "--config_file", str(file), "--output_config")
    )
    values = toml.load(file)
    assert "preset" not in values
    assert values["network_dim"] == 100000 and values["vram_target"] == "6"


@pytest.mark.parametrize(
    "pictures, card, name",
    [(20, 8, "character_lora_8gb"), (120, 24, "style_lora_24gb"), (49, 10, "character_lora_8gb"),
     (20, 80, "character_lora_24gb"), (20, 4, "character_lora_6gb"), (20, None, "character_lora_6gb")],
)  # fmt: skip
def test_a_preset_is_recommended_by_pictures_and_card(pictures, card, name):
    assert recommended(pictures, card) == name and (ROOT / f"configs/presets/{name}.toml").is_file()
