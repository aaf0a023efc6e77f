"""train_args.toml and the command line -> groups of options, with every problem in one error.

Sections of the TOML are flattened, as sd-scripts does, but values get the type and the choices of
their flag, misspelt names are errors, and each problem says where it stands.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from library.errors import ConfigError, Problem
from library.options import Flag, all_flags, build, convert, group_problems, value_problem
from library.utils import nearest_name

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

COMMAND_LINE = "the command line"
ROOT_STYLE_SECTIONS = {"model", "training"}
CONVERTER = "tools/convert_anima_root_to_kohya.py"


@dataclass
class LoadedConfig:
    """What was read: groups by their class, what the user set, and what to tell once."""

    groups: dict[type, Any]
    explicit: frozenset[str]
    notes: tuple[str, ...]
    problems: list[Problem] = field(default_factory=list)

    def require(self, more: Sequence[Problem] = ()) -> None:
        """Raise ConfigError with all problems, these and `more`."""
        if problems := [*self.problems, *more]:
            raise ConfigError(problems)


@dataclass
class Given:
    """A value the user gave: where, and as text or as a TOML value."""

    value: Any
    where: str
    source: str
    from_text: bool


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are collected instead of ending the program."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, **keywords)
        self.complaints: list[str] = []

    def error(self, message: str) -> NoReturn:
        self.complaints.append(message)
        raise argparse.ArgumentError(None, message)


def read_config(parser: Parser, argv: Sequence[str], groups: Sequence[type]) -> LoadedConfig:
    """Defaults < TOML < command line. Nothing is raised: problems are in the result."""
    flags = all_flags(groups)
    problems: list[Problem] = []
    typed = parse_command_line(parser, argv, flags, problems)
    file = typed.get("config_file")
    in_file, notes = read_file(file.value, flags, problems) if file else ({}, [])
    given = {**in_file, **typed}
    values = convert_all(given, flags, problems)
    built = {group: build(group, values) for group in groups}
    if not problems:
        problems += group_problems(built.values())
    explicit = frozenset(name for name, v in values.items() if v != flags[name].default)
    for name in sorted(explicit):
        if reason := flags[name].ignored:
            notes.append(f"{flags[name].names[0]} has no effect: {reason}.")
    return LoadedConfig(built, frozenset(values), tuple(notes), problems)


def parse_command_line(
    parser: Parser, argv: Sequence[str], flags: dict[str, Flag], problems: list[Problem]
) -> dict[str, Given]:
    """The flags that were typed; those that are unknown, with the nearest name, become problems."""
    try:
        namespace, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError:
        problems += [Problem(f"{text}.", "", COMMAND_LINE) for text in parser.complaints]
        return {}
    names = [name for flag_ in flags.values() for name in flag_.names]
    for word in unknown:
        name = word.partition("=")[0]
        if word.startswith("--"):
            near = nearest_name(name, names)
            hint = f" Did you mean {near}?" if near else ""
            problems.append(Problem(f"no such option.{hint}", name, COMMAND_LINE))
        else:
            problems.append(Problem("does not belong to an option.", word, COMMAND_LINE))
    return {
        dest: Given(value, f"{flags[dest].names[0]} {shown(value)}", COMMAND_LINE, True)
        for dest, value in vars(namespace).items()
    }


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return str(value)


# ---- the file --------------------------------------------------------------------------------


def read_file(
    name: str, flags: dict[str, Flag], problems: list[Problem]
) -> tuple[dict[str, Given], list[str]]:
    """The values of a TOML file by flag, and notes on keys that belong to other programs."""
    path = Path(name if name.endswith(".toml") else f"{name}.toml")
    document = parse_toml(path, problems)
    if ROOT_STYLE_SECTIONS <= {key for key, value in document.items() if isinstance(value, dict)}:
        problems.append(root_style_problem(path))
        return {}, []
    lines = key_lines(path) if document else {}
    by_name = {n.removeprefix("--"): f.dest for f in flags.values() for n in f.names}
    found: dict[str, Given] = {}
    notes = []
    for key, value in flatten(document):
        where = lines.get(key, key)
        if key in by_name:
            found[by_name[key]] = Given(value, where, str(path), False)
        elif near := nearest_name(key, by_name):
            problems.append(Problem(f"no such option. Did you mean {near}?", where, str(path)))
        else:
            notes.append(f"{path}: {key} is not an option of this trainer and was ignored.")
    return found, notes


def parse_toml(path: Path, problems: list[Problem]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        problems.append(Problem("no such file.", f"--config_file {path}", COMMAND_LINE))
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(f"cannot be read as UTF-8 text ({error}).", "", str(path)))
    except tomllib.TOMLDecodeError as error:
        problems.append(Problem(f"not valid TOML: {error}.{toml_hint(path, error)}", "", str(path)))
    return {}


def toml_hint(path: Path, error: Exception) -> str:
    """A backslash in double quotes is the usual cause on Windows."""
    line = re.search(r"line (\d+)", str(error))
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    text = lines[int(line[1]) - 1] if line and int(line[1]) <= len(lines) else ""
    if "\\" in text and '"' in text:
        return " Write Windows paths in single quotes, 'C:\\models\\a.safetensors', or with /."
    return ""


def flatten(document: dict[str, Any]) -> list[tuple[str, Any]]:
    """Top-level keys, and the keys of sections, whose names mean nothing."""
    found = []
    for key, value in document.items():
        found += list(value.items()) if isinstance(value, dict) else [(key, value)]
    return found


def key_lines(path: Path) -> dict[str, str]:
    """key -> 'line 14  learning_rate = "1e-4"', where a line starts with the key."""
    found = {}
    for number, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if match := re.match(r"\s*[\"']?([\w-]+)[\"']?\s*=", text):
            found.setdefault(match[1], f"line {number}  {text.strip()[:60]}")
    return found


def root_style_problem(path: Path) -> Problem:
    """A configuration of the earlier trainer is recognised and pointed to its converter."""
    if (Path(__file__).resolve().parent.parent / CONVERTER).exists():
        advice = f"Convert it: python {CONVERTER} --input {path}"
    else:
        advice = "Write train_args.toml and dataset.toml as in configs/examples/; see README.md."
    return Problem(
        f"is a root-style configuration (it has [model] and [training]), not train_args.toml. {advice}",
        "",
        str(path),
    )


# ---- values ----------------------------------------------------------------------------------


def convert_all(
    given: dict[str, Given], flags: dict[str, Flag], problems: list[Problem]
) -> dict[str, Any]:
    """Values of the right type by dest; the others become problems."""
    values = {}
    for dest, item in given.items():
        flag_ = flags[dest]
        try:
            value = convert(flag_, item.value, item.from_text)
        except ValueError as error:
            problems.append(Problem(f"expected {error}.", item.where, item.source))
            continue
        complaint = value_problem(flag_, value)
        if not complaint and flag_.refused and value not in (flag_.default, False, None, ""):
            complaint = f"is refused: {flag_.refused}."
        if complaint:
            problems.append(Problem(complaint, item.where, item.source))
        else:
            values[dest] = value
    return values


# ---- writing ---------------------------------------------------------------------------------


def write_config(path: str, loaded: LoadedConfig) -> Path:
    """--output_config: write what differs from the defaults; refuses to overwrite."""
    import tomlkit

    target = Path(path if path.endswith(".toml") else f"{path}.toml")
    if target.exists():
        raise ConfigError(f"--output_config: {target} exists already. Name another --config_file.")
    document = tomlkit.document()
    for group, values in loaded.groups.items():
        for flag_ in all_flags([group]).values():
            value = getattr(values, flag_.dest)
            if value != flag_.default and flag_.dest not in ("config_file", "output_config"):
                key = flag_.names[0].removeprefix("--")
                document[key] = list(value) if flag_.many else value
    target.write_text(tomlkit.dumps(document), encoding="utf-8")
    return target


def command_line() -> list[str]:
    return sys.argv[1:]
