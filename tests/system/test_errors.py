"""What the user is told and how programs end; files written whole, seeds that never change."""

import logging
import os
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from library import errors
from library.errors import (
    ConfigError,
    DatasetError,
    Problem,
    UserError,
    format_problems,
    in_one_line,
)
from library.utils import (
    atomic_write,
    nearest_name,
    position_seed,
    setup_logging,
)
from tests.helpers.processes import python


def test_a_single_sentence_stands_on_one_line():
    assert str(ConfigError("no models given.")) == "ConfigError: no models given."
    assert str(DatasetError("empty.", source="data.toml")) == "DatasetError: data.toml: empty."


def test_an_error_is_told_in_one_line_with_its_kind_where_its_words_say_too_little():
    assert in_one_line(KeyError("x")) == "KeyError: 'x'" and in_one_line(MemoryError()) == "MemoryError"
    assert in_one_line(OSError(28, "No space left")) == "[Errno 28] No space left"
    assert in_one_line(ConfigError([Problem("a."), Problem("b.")])) == "ConfigError: 2 problems a. b."


def test_problems_of_one_file_are_counted_and_aligned():
    problems = [
        Problem("expected a number.", 'line 14  learning_rate = "1e-4"', "train_args.toml"),
        Problem("no such option.", "line 21  leanring_rate", "train_args.toml"),
    ]
    assert str(ConfigError(problems)).splitlines() == [
        "ConfigError: 2 problems in train_args.toml",
        '  line 14  learning_rate = "1e-4"  expected a number.',
        "  line 21  leanring_rate           no such option.",
    ]


def test_problems_are_grouped_by_source_in_order_of_first_mention():
    problems = [
        Problem("one.", "b", "second.toml"),
        Problem("two.", "a", "first.toml"),
        Problem("three.", "longer", "second.toml"),
        Problem("four."),
    ]
    assert format_problems("ConfigError", problems).splitlines() == [
        "ConfigError: 2 problems in second.toml",
        "  b       one.",
        "  longer  three.",
        "1 problem in first.toml",
        "  a  two.",
        "1 problem",
        "  four.",
    ]


def test_one_problem_with_a_place_keeps_its_place():
    text = format_problems("ConfigError", [Problem("mend it.", "key", "a.toml")])
    assert text.splitlines() == ["ConfigError: 1 problem in a.toml", "  key  mend it."]


def test_one_very_long_place_does_not_push_the_others_away():
    text = format_problems("E", [Problem("long.", "x" * 60), Problem("short.", "y")])
    assert text.splitlines()[1:] == [f"  {'x' * 60}  long.", f"  {'y':<40}  short."]


def test_an_errors_source_fills_only_what_problems_leave_open():
    error = UserError([Problem("a"), Problem("b", source="own")], source="given")
    assert [problem.source for problem in error.problems] == ["given", "own"]


def test_an_error_without_problems_is_our_mistake():
    with pytest.raises(AssertionError):
        UserError([])


def test_every_kind_of_error_is_a_user_error():
    kinds = ("ConfigError", "DatasetError", "ModelFileError", "AdapterFileError", "ResumeError")
    for kind in kinds:
        with pytest.raises(UserError, match=f"^{kind}: text$"):
            raise getattr(errors, kind)("text")


def run_program(body: str) -> subprocess.CompletedProcess:
    """Run `body` as a program's main(), in a process of its own."""
    imports = "from library.errors import ConfigError, Problem\nfrom library.system.program import run_main"
    code = f"{imports}\ndef main():\n    {body}\nrun_main(main)"
    return python("-c", code)


def test_a_user_error_ends_a_program_with_code_2_and_no_traceback():
    ran = run_program("raise ConfigError([Problem('one.', 'a'), Problem('two.', 'b')])")
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr == "ConfigError: 2 problems\n  a  one.\n  b  two.\n"


def test_a_user_error_with_a_cause_shows_no_traceback_either():
    ran = run_program(
        "try: int('x')\n    except ValueError as error: raise ConfigError('no number.') from error"
    )
    assert (ran.returncode, ran.stderr) == (2, "ConfigError: no number.\n")


@pytest.mark.parametrize("error", ["ConfigError('a problem.')", "ValueError('ours')"])
def test_an_error_does_not_hang_on_a_progress_bar(error):
    ran = run_program(
        f"from tqdm import tqdm\n    bar = tqdm(total=9)\n    bar.update()\n    raise {error}"
    )
    lines = ran.stderr.splitlines()
    assert any("0%" in line for line in lines)
    assert any(line.startswith(("ConfigError: a", "Traceback")) for line in lines)


@pytest.mark.parametrize("body, code", [("return None", 0), ("return 0", 0), ("return 3", 3)])
def test_a_programs_own_code_is_its_exit_code(body, code):
    ran = run_program(body)
    assert (ran.returncode, ran.stderr) == (code, "")


def test_our_own_mistakes_keep_their_traceback():
    ran = run_program("raise ValueError('ours')")
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr and "ValueError: ours" in ran.stderr


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_puts_the_new_file_in_place_of_the_old(tmp_path):
    path = tmp_path / "file.txt"
    for text in ("old", "new"):
        with atomic_write(path) as temporary:
            assert temporary.parent.parent == tmp_path  # a rename is atomic within one file system only
            temporary.write_text(text)
        assert path.read_text() == text
    assert names_in(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_atomic_write_keeps_the_old_file_on_an_error(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["file.txt"]


def test_atomic_write_leaves_nothing_where_nothing_was(tmp_path):
    with pytest.raises(ValueError), atomic_write(tmp_path / "file.txt"):
        raise ValueError  # before the temporary file exists
    assert names_in(tmp_path) == []


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"


def test_two_writers_of_one_file_do_not_share_a_temporary(tmp_path):
    with atomic_write(tmp_path / "file") as first, atomic_write(tmp_path / "file") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "file").read_text() == "first"  # the last to finish


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic_write(tmp_path / "written") as temporary:
        temporary.write_text("")
        temporary.chmod(0o600)  # as safetensors does
    modes = {(tmp_path / name).stat().st_mode for name in ("plain", "written")}
    assert len(modes) == 1


@pytest.mark.parametrize(
    "name",
    [
        "n" * 250,
        "絵" * 80,  # 240 bytes: a legal name
    ],
)
def test_a_file_with_a_long_name_can_be_written(tmp_path, name):
    (tmp_path / name).write_text("old")
    with atomic_write(tmp_path / name) as temporary:
        temporary.write_text("new")
    assert (tmp_path / name).read_text() == "new"


def test_a_log_file_that_cannot_be_written_names_its_flag(tmp_path):
    handlers = list(logging.getLogger().handlers)
    with pytest.raises(UserError, match="--console_log_file"):
        setup_logging(file=str(tmp_path / "missing" / "log.txt"))
    assert logging.getLogger().handlers == handlers


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("is_full", [True, False])
def test_messages_go_to_the_console_when_their_file_cannot_be_written(tmp_path, capsys, is_full):
    logger, folder = logging.getLogger("here"), tmp_path / "logs"
    folder.mkdir()
    file = folder / "log.txt"
    if is_full:
        file.symlink_to("/dev/full")
    setup_logging(file=str(file), simple=True)
    logging.getLogger("httpx").info("HTTP Request: GET https://huggingface.co")
    if not is_full:
        logger.warning("into the file")
        assert file.read_text() == "into the file\n"
        shutil.rmtree(folder)
    logger.warning("first")
    logger.warning("second")
    told, first, second = capsys.readouterr().err.splitlines()
    assert f"{file}: no more messages in it" in told and (first, second) == ("first", "second")


@pytest.mark.parametrize(
    "position, seed",
    [
        ((), 8238016292129134938),
        ((7,), 3565994170645413931),
        ((7, 1, "a.png", 0), 1116474375792064221),
        ((0, -1, "絵"), 6810638395602798152),
    ],
)
def test_seeds_never_change(position, seed):
    """A changed seed would break the resuming and the repeating of every run made before."""
    assert position_seed(*position) == seed


def test_different_positions_have_different_seeds():
    positions = [(7,), ("7",), (7, 1), (1, 7), (71,), ("7", 1), (7, "1"), ("71",), ("7", "1")]
    positions += [(1, 7, ""), ("", 1, 7), (True, 7), ("a", "b"), ("b", "a"), ("ab",), ("a b",)]
    assert len({position_seed(*position) for position in positions}) == len(positions)


def test_seeds_fit_a_signed_64_bit_integer():
    assert all(0 <= position_seed(number) < 2**63 for number in range(1000))


def test_seeds_of_neighbours_are_spread():
    """Half of the bits differ from one position to the next, on average."""
    seeds = [position_seed(7, number) for number in range(1001)]
    changed = [(a ^ b).bit_count() for a, b in pairwise(seeds)]
    assert 30.5 < sum(changed) / len(changed) < 32.5


@pytest.mark.parametrize(
    "name, found",
    [
        ("leanring_rate", "learning_rate"),
        ("learning_rates", "learning_rate"),
        ("learning_rate", "learning_rate"),
        ("networkdim", "network_dim"),
        ("entirely_other", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_near_or_none(name, found):
    candidates = ["network_alpha", "network_dim", "learning_rate", "seed"]
    assert nearest_name(name, candidates) == found
    assert nearest_name(name, iter(candidates)) == found


def test_there_is_no_nearest_name_among_none():
    assert nearest_name("seed", []) is None
