"""The flag table as a contract: a flag is added, renamed or given another default on purpose."""

import json
import re

import pytest

from library.anima_runtime.command_line import GROUPS, load_run, setup_parser
from library.anima_runtime.flags_in_chinese import REASONS, SENTENCES, TITLES
from library.anima_runtime.shared_groups import SHARED_GROUPS
from library.settings.config_file import read_config
from library.settings.options import all_flags
from tests.helpers.paths import TESTS
from tools import make_flags_doc

FLAGS = all_flags(GROUPS)
BY_NAME = {name: flag for flag in FLAGS.values() for name in flag.names}
REMOVED = ("--config", "--anima-train-py", "--print-cmd", "--dry-run")
EXAMPLES = {bool: [], int: ["3"], float: ["0.5"], str: ["text"]}


def described() -> dict[str, list]:
    """name -> [type, default, further names], as flags.json keeps it."""
    found = {}
    for flag in FLAGS.values():
        kind = f"{flag.type.__name__}{' list' if flag.many else ''}"
        found[flag.names[0]] = [kind, flag.default, *flag.names[1:]]
    return found


def checked_in() -> dict:
    return json.loads((TESTS / "flags.json").read_text(encoding="utf-8"))


def read(*argv: str):
    return read_config(setup_parser(), argv, GROUPS)


def example(flag) -> list[str]:
    """Words that a flag takes, its default not among them."""
    if flag.choices:
        return [str(flag.choices[-1])]
    if flag.read:
        return ["512" if "text" not in flag.read.expected else "true"]
    if flag.check and flag.type is int:
        return [next(str(n) for n in (1, 64, 500) if flag.check(n) is None)]
    return EXAMPLES[flag.type]


def test_the_flags_are_those_of_the_checked_in_list():
    assert described() == checked_in()["flags"]


@pytest.mark.parametrize("origin", ["sd_scripts", "earlier_fork"])
def test_every_name_of_the_trainers_before_this_one_is_known(origin):
    assert set(checked_in()[origin]) <= set(BY_NAME)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_flag_parses_from_the_command_line(name):
    flag = BY_NAME[name]
    loaded = read(name, *example(flag))
    if flag.refused:
        (problem,) = [p for p in loaded.problems if "is refused" in p.message]
        assert problem.where.startswith(name)
        return
    assert flag.dest in loaded.explicit
    group = next(each for each in loaded.groups.values() if hasattr(each, flag.dest))
    value = getattr(group, flag.dest)
    for item in value if flag.many else (value,):
        assert type(item) in {int, flag.type} if flag.read else type(item) is flag.type
    assert any(name in note for note in loaded.notes) == bool(flag.ignored and flag.asks(value))


@pytest.mark.parametrize("name", BY_NAME)
def test_every_default_may_be_written_into_the_file(tmp_path, name):
    """Defaults and false trigger nothing: no problem, no note."""
    flag = BY_NAME[name]
    value = False if flag.type is bool else flag.default
    if value is None or name in ("--config_file", "--output_config"):
        return
    text = json.dumps(list(value) if flag.many else value)
    file = tmp_path / "a.toml"
    file.write_text(f"{name.removeprefix('--')} = {text}\n", encoding="utf-8")
    loaded = read("--config_file", str(file))
    assert not loaded.notes
    assert not [p for p in loaded.problems if p.where.startswith("line")]
    assert (flag.dest in loaded.explicit) is (value != "")


@pytest.mark.parametrize("name", [name for name, flag in BY_NAME.items() if flag.is_switch])
def test_every_switch_can_be_switched_off(name):
    loaded = read(f"--no-{name.removeprefix('--')}")
    assert BY_NAME[name].dest in loaded.explicit
    assert not loaded.notes


@pytest.mark.parametrize("name", REMOVED)
def test_removed_flags_stay_unknown(name):
    (problem,) = [p for p in read(name, "x").problems if p.where == name]
    assert problem.message.startswith("no such option.")


def test_a_removed_flag_is_no_abbreviation():
    assert "config_file" not in read("--config", "a.toml").given


def test_a_flag_has_one_state():
    assert not [f.dest for f in FLAGS.values() if f.ignored and f.refused]


def test_help_names_every_flag_and_ends_well(capsys):
    with pytest.raises(SystemExit) as end:
        load_run(["--help"])
    assert not end.value.code
    text = capsys.readouterr().out
    assert not [name for name, flag in BY_NAME.items() if name not in text and not flag.hidden]


def test_every_flag_has_its_sentence_in_chinese_too():
    """And its reason, where it does not act; each group its title."""
    chinese = "library/settings/flags_in_chinese.py, or library/anima_runtime/ for a flag of the family"
    reasoned = {f.dest for f in FLAGS.values() if f.ignored or f.refused or f.refuses}
    for table, wanted in (
        (SENTENCES, set(FLAGS)), (REASONS, reasoned), (TITLES, {*SHARED_GROUPS, "anima"}),
    ):  # fmt: skip
        assert not wanted - set(table), f"add these to {chinese}"
        assert not set(table) - wanted, f"there is no such flag, or none without effect: {chinese}"
    words = [text for dest, text in SENTENCES.items() if dest != "v2"] + list(REASONS.values())
    assert not [text for text in words if not re.search(r"[\u4e00-\u9fff]", text)]


def test_the_document_is_made_from_the_table():
    assert make_flags_doc.TARGET.read_text(encoding="utf-8") == make_flags_doc.document(), (
        "run python tools/make_flags_doc.py"
    )
