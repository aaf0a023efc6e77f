"""What a run writes is tried before anything heavy, by the check and by the run alike."""

import os
import re

import pytest
from PIL import Image

from library.errors import ConfigError
from library.saving.output_checks import check_console_log, check_outputs, tried
from library.settings.flags.logging import LoggingOptions
from library.system.file_names import characters_problem, name_problem, path_problem
from library.watching.trackers import file_name_part
from tests.helpers.dataset_files import picture_url
from tests.helpers.running import config_files, make_trainer
from tools.doctor import report

posix = pytest.mark.skipif(os.name == "nt", reason="names that Windows refuses by itself")


@pytest.mark.parametrize("name", ["style:v1", "a|b", "a<b", "a>b", 'a"b', "a?", "a*", "a/b", "a\\b",
    "CON", "con", "Nul", "COM1", "LPT9", "com¹", "aux.v2", "CONOUT$", "PRN .x",
    "name.", "name ", "..", "a\tb", "a\0b", "a\x7f", "n" * 201, "画" * 67])  # fmt: skip
def test_a_name_that_some_system_refuses_is_a_problem(name):
    assert name_problem(name)


@pytest.mark.parametrize("name", ["style", "style v1", "CONE", "COM", "COM10", "a.b", ".hidden", "画" * 66,
    "角色 一", "l'été", "nul-1", "auxiliary", "a\udcff"])  # fmt: skip
def test_a_name_that_every_system_takes_is_none(name):
    assert name_problem(name) is None


def test_folders_and_the_start_of_a_name_are_looked_at_by_parts():
    assert path_problem("exp/run_.", is_start=True) is None and path_problem("exp/run_.")
    assert path_problem("nul/run_", is_start=True) and path_problem("exp\\a:b")
    assert characters_problem("CON") is None


@pytest.mark.parametrize("text", ["画" * 300, "n" * 300, "é" * 61])
def test_a_long_name_is_cut_where_a_letter_ends(text):
    part = file_name_part(text)
    assert len(part.encode()) <= 120 and text.startswith(part)


def test_trying_leaves_nothing_behind_and_changes_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "log.txt").write_text("lines")
    assert tried(tmp_path / "there" / "new" / "deeper" / "file", "x") == []
    assert tried(tmp_path / "new" / "file", "x") == []
    assert check_console_log(LoggingOptions(console_log_file=str(tmp_path / "log.txt"))) == []
    assert check_console_log(LoggingOptions(console_log_file=str(tmp_path / "new.txt"))) == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["log.txt", "there"]
    assert (tmp_path / "log.txt").read_text() == "lines"


# Options that are refused, and a word of the reason. {} is a folder in which `file` is a file.
REFUSED = [
    ({"output_name": "style:v1"}, "holds :"),
    ({"output_name": "CON"}, "names a device"),
    ({"output_name": "name."}, "ends in a dot"),
    ({"output_dir": "{}/file/out"}, "is a file, expected a folder"),
    ({"output_dir": "/dev/full/x"}, "is a file, expected a folder"),
    ({"output_dir": "{}/" + "d" * 300}, "too long"),
    ({"logging_dir": "{}/file"}, "is a file, expected a folder"),
    ({"log_prefix": "a:b"}, "holds :"),
    ({"log_prefix": "p" * 240}, "logging_dir.*too long"),
    ({"log_tracker_name": "nul"}, "names a device"),
    ({"log_tracker_config": "{}/none.toml"}, "cannot be read"),
    ({"console_log_file": "{}"}, "cannot be written"),
    ({"console_log_file": "{}/none/log.txt"}, "cannot be written"),
    ({"console_log_file": "{}/file/log.txt"}, "is a file, expected a folder"),
    ({"metadata_thumbnail": "{}/file"}, "expected a picture file"),
    ({"metadata_thumbnail": "{}/none.png"}, "expected a picture file"),
    ({"metadata_thumbnail": "data:image/png;base64,x"}, "expected a picture file"),
    ({"metadata_thumbnail": picture_url(cut=40)}, "expected a picture file"),
]


@posix
@pytest.mark.parametrize("settings, word", REFUSED)
def test_the_run_refuses_at_its_check_what_it_could_not_write(demo, run_folder, settings, word):
    (run_folder / "file").write_text("no picture")
    settings = {name: value.replace("{}", str(run_folder)) for name, value in settings.items()}
    argv = config_files(demo, run_folder, settings)
    before = sorted(run_folder.rglob("*"))
    with pytest.raises(ConfigError, match=f"(?s){word}") as refused:
        trainer = make_trainer(argv)
        trainer.prepare_process()
        trainer.check()
    assert set(settings) == {"log_prefix"} or next(iter(settings)) in str(refused.value)
    assert sorted(run_folder.rglob("*")) == before


@posix
def test_the_check_tells_all_of_it_at_once_and_leaves_nothing(demo, run_folder):
    (run_folder / "file").write_text("no picture")
    settings = {
        "output_dir": str(run_folder / "file"), "logging_dir": str(run_folder / "args.toml"),
        "metadata_thumbnail": str(run_folder / "file"),
    }  # fmt: skip
    (run_folder / "args.toml").touch()
    argv = config_files(demo, run_folder, settings)
    for more in ((), ("--console_log_file", str(run_folder), "--output_name", "a|b")):
        text, code = report([*argv, *more])
        assert code == 2
        for name in (*settings, *(word[2:] for word in more[::2])):
            assert re.search(rf"  (--)?{name}\b", text[text.index("The run would fail") :])
    assert not (run_folder / "out").exists()


def test_a_thumbnail_is_a_picture_of_any_kind_that_pillow_reads(demo, run_folder):
    Image.new("RGB", (8, 8)).save(run_folder / "a.webp")
    for value in (str(run_folder / "a.webp"), picture_url("jpeg")):
        trainer = make_trainer(config_files(demo, run_folder, {"metadata_thumbnail": value}))
        assert check_outputs(trainer.cfg) == []
