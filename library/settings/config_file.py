"""train_args.toml and the command line -> groups of options, with every problem in one error.

Sections of the TOML are flattened, as sd-scripts does, but values get the type and the choices of
their flag, misspelt names are errors, and each problem says where it stands. The command line is
read here too, since argparse would end at its first problem; argparse only writes --help.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from library.errors import ConfigError, Problem
from library.settings.config_text import assignment, flatten, key_lines, misplaced, split_options
from library.settings.family import Family, family_of
from library.settings.flag_values import convert, value_problem
from library.settings.foreign_names import OWN
from library.settings.moved_keys import Key, adapter_lines, is_moved, optimizer_line
from library.settings.options import Flag, all_flags, build, group_problems
from library.settings.paths import PathError, expand_path
from library.settings.presets import preset_file, yields
from library.settings.unknown_keys import explain_key, explain_typed, ignored_note
from library.system.text_files import TextFileError, parse_json, parse_toml, read_text

COMMAND_LINE = "the command line"
ONLY_TYPED = ("config_file", "output_config")
OTHER_KINDS = (".json", ".yaml", ".yml", ".sh", ".bat", ".ps1", ".txt")
MOST_UNKNOWN = 200


class Parser(argparse.ArgumentParser):
    """Writes --help."""

    def __init__(self, **keywords: Any) -> None:
        shape = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=shape, **keywords)


@dataclass
class Given:
    """A value the user gave: under which name, where it stands, as text or as a TOML value."""

    value: Any
    name: str
    where: str
    source: str
    from_text: bool


@dataclass
class LoadedConfig:
    """What was read: groups by their class, what the user set, and what to tell once.

    explicit: flags that were set to a usable value, be it the default
    broken:   flags that were set to something unusable: what follows from their absence is no news
    """

    groups: dict[type, Any]
    explicit: frozenset[str]
    notes: tuple[str, ...]
    problems: list[Problem] = field(default_factory=list)
    given: dict[str, Given] = field(default_factory=dict)
    broken: frozenset[str] = frozenset()
    source: str = COMMAND_LINE

    def add(self, found: Iterable[Problem]) -> None:
        """Add what checks between flags found, each with its line, but not mere consequences."""
        self.problems += [self.locate(p) for p in found if not self.is_consequence(p)]

    def is_consequence(self, problem: Problem) -> bool:
        """Whether the problem may come from a default that stands in for a value not understood."""
        elsewhere = problem.source and not problem.source.startswith("--")
        if elsewhere and "is missing" not in problem.message:
            return False  # another file's own problem
        text = f"{problem.where} {problem.source} {problem.message}"
        return not self.broken.isdisjoint(re.findall(r"\w+", text))

    def locate(self, problem: Problem) -> Problem:
        """The problem with the line or the flag it is about, where its own place names a flag."""
        if problem.source and not problem.source.startswith("--"):
            return problem
        name = re.split(r"\W", problem.source.lstrip("-") or problem.where, maxsplit=1)[0]
        if name not in self.given:
            return replace(problem, where=problem.where or name, source=self.source)
        item = self.given[name]
        detail = f"{problem.where}: " if problem.source and problem.where else ""
        return Problem(detail + problem.message, item.where, item.source)

    def require(self) -> None:
        """Raise ConfigError with all problems."""
        if self.problems:
            raise ConfigError(sorted(dict.fromkeys(self.problems), key=line_number))


def read_config(parser: Parser, argv: Sequence[str], groups: Sequence[type]) -> LoadedConfig:
    """Defaults < preset < TOML < command line. Nothing is raised: problems are in the result.

    --help is answered here. With --output_config the file is yet to be written, so it is not read.
    """
    if "--help" in argv or "-h" in argv:
        parser.print_help()
        parser.exit()
    reader = ConfigReader(all_flags(groups), family_of(groups))
    typed = reader.read_command_line(argv)
    writes = "output_config" in typed and typed["output_config"].value != "false"
    in_file: dict[str, Given] = {}
    if "config_file" in typed and not writes:
        path = with_suffix(reader.path_of(typed["config_file"]))
        in_file = reader.read_file(path)
        reader.tell_moved({**in_file, **typed}, str(path))
        if reader.foreign:
            reader.notes.append(ignored_note(reader.foreign, str(path)))
    own = {**in_file, **typed}
    given = {**reader.read_preset(own), **own}
    given = {dest: item for dest, item in given.items() if item.value != ""}
    values = reader.convert_all(given)
    built: dict[type, Any] = {group: build(group, values) for group in groups}
    source = next((item.source for item in in_file.values()), COMMAND_LINE)
    for dest, item in given.items():
        flag_ = reader.flags[dest]
        if flag_.ignored and flag_.asks(values.get(dest, item.value)):
            reader.notes.append(f"{item.name} has no effect: {flag_.ignored}.")
    broken, explicit = frozenset(reader.broken), frozenset(values)
    loaded = LoadedConfig(
        built, explicit, tuple(reader.notes), reader.problems, given, broken, source
    )
    if not writes:  # what is written may still be incomplete
        loaded.add(group_problems(built.values()))
    return loaded


def line_number(problem: Problem) -> float:
    """Where a problem stands in its file; what has no line comes last."""
    number = re.match(r"line (\d+)", problem.where)
    return int(number[1]) if number else math.inf


def with_suffix(name: str) -> Path:
    """The file meant by --config_file; `.toml` may be left out, but not of what is no TOML."""
    return Path(name if name.lower().endswith((".toml", *OTHER_KINDS)) else f"{name}.toml")


class ConfigReader:
    """Reads the command line and the file, collecting problems and notes on the way."""

    def __init__(self, flags: dict[str, Flag], family: Family) -> None:
        self.flags, self.family = flags, family
        self.by_name = {name.removeprefix("--"): f for f in flags.values() for name in f.names}
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.broken: set[str] = set()
        self.unknown = 0
        self.moved: list[Key] = []
        self.foreign: list[str] = []

    def problem(self, message: str, where: str, source: str, name: str | None = "") -> None:
        """name: the flag that is without a usable value now, if one is known."""
        self.problems.append(Problem(message, where, source))
        if flag_ := self.by_name.get((name or "").removeprefix("--").removeprefix("no-")):
            self.broken |= {flag_.dest, *(each.removeprefix("--") for each in flag_.names)}

    def read_command_line(self, argv: Sequence[str]) -> dict[str, Given]:
        """The flags that were typed, the last of each name."""
        found: dict[str, Given] = {}
        for name, words in split_options(argv):
            plain = name.removeprefix("--")
            item = Given(words, name, " ".join([name, *words]), COMMAND_LINE, True)
            if not name:
                self.problem("does not belong to an option.", item.where, COMMAND_LINE)
            elif name.startswith("--") and plain in self.by_name:
                self.typed(found, self.by_name[plain], item)
            elif name.startswith("--no-") and self.is_switch(name):
                flag_ = self.by_name[plain.removeprefix("no-")]
                item.name, item.value = f"--{plain.removeprefix('no-')}", ["false", *words]
                self.typed(found, flag_, item)
            else:
                self.unknown_typed(name, words)
        return found

    def path_of(self, item: Given) -> str:
        """The path that was typed, as it is where it cannot be expanded: convert_all says why."""
        try:
            return expand_path(item.value)
        except PathError:
            return item.value

    def is_switch(self, name: str) -> bool:
        flag_ = self.by_name.get(name.removeprefix("--no-"))
        return flag_ is not None and flag_.is_switch

    def typed(self, found: dict[str, Given], flag_: Flag, item: Given) -> None:
        """Take the words of one option, if their number is right."""
        words = item.value
        if flag_.is_switch and not words:
            words = ["true"]
        if flag_.alone and not words:
            words = [flag_.alone]
        if not flag_.many and len(words) != 1:
            message = f"expected one value, got {len(words)}. Put a text with spaces in quotes."
            message = "takes no value." if flag_.is_switch else message
            self.problem(message if words else "expected a value.", *place(item))
            return
        item.value = words if flag_.many else words[0]
        self.take(found, flag_, item, repeats=True)

    def unknown_typed(self, name: str, words: list[str]) -> None:
        names = [name for f in self.flags.values() for name in f.names]
        names += [f"--no-{name[2:]}" for f in self.flags.values() if f.is_negatable
                  for name in f.names]  # fmt: skip
        message, near = explain_typed(name, words, names)
        self.problem(message, name, COMMAND_LINE, near)

    def take(
        self, found: dict[str, Given], flag_: Flag, item: Given, repeats: bool = False
    ) -> None:
        """Keep a value; two names of one flag, or one name twice in a file, may not differ.

        A true switch stays on beside a false one of an old name. repeats: the last of a name wins,
        and lists add up
        """
        before = found.get(flag_.dest)
        if before is None:
            found[flag_.dest] = item
        elif repeats and flag_.many:
            before.value, before.where = before.value + item.value, f"{before.where} {item.where}"
        elif before.value == item.value:
            return
        elif repeats and before.name == item.name:
            self.notes.append(f"{item.name} is given twice: the last counts, {item.value}.")
            found[flag_.dest] = item
        elif flag_.is_switch and before.name != item.name:
            found[flag_.dest] = item if is_on(item.value) else before
        else:
            self.problem(f"contradicts {before.where}. Keep one.", *place(item))

    def read_file(self, path: Path) -> dict[str, Given]:
        """The values of a TOML file by flag; keys that belong to other programs become notes."""
        text, document = self.parse(path)
        if document is None:
            self.broken |= {*self.flags, *self.by_name}  # nothing is known of any flag
            return {}
        lines = key_lines(text)
        found: dict[str, Given] = {}
        for section, key, value in flatten(document):
            where = lines.get((section, key)) or lines.get(("", key), key)
            if key in self.by_name:
                item = Given(value, key, where, str(path), False)
                self.take(found, self.by_name[key], item)
            elif not self.is_list(section.rpartition(".")[2]):
                self.unknown_key(key, value, where, str(path))
        self.list_tables(document, lines, str(path))
        for dest in ONLY_TYPED:
            if dest in found:
                self.notes.append(f"{path}: {dest} has no effect: it belongs on the command line.")
                del found[dest]
        return found

    def read_preset(self, own: Mapping[str, Given]) -> dict[str, Given]:
        """The values of --preset, less those that yield to what else is given."""
        if "preset" not in own or not (name := own["preset"].value):
            return {}
        try:
            path = preset_file(str(name))
        except ValueError as error:
            self.problem(str(error), *place(own["preset"]))
            return {}
        found = self.read_file(path)
        return {dest: item for dest, item in found.items() if not yields(dest, own)}

    def is_list(self, name: str) -> bool:
        return name in self.by_name and self.by_name[name].many

    def list_tables(self, document: dict[str, Any], lines: dict, source: str) -> None:
        """Sections called like a list of arguments: how each is written here."""
        tables: dict[str, list[str]] = {}
        for section, key, value in flatten(document):
            if self.is_list(section.rpartition(".")[2]):
                tables.setdefault(section, []).append(assignment(key, value))
        for section, items in tables.items():
            name, listed = section.rpartition(".")[2], json.dumps(items, ensure_ascii=False)
            message = f"is a list here. Write {name} = {listed}."
            self.problem(message, lines.get((section, ""), section), source, name)

    def unknown_key(self, key: str, value: Any, where: str, source: str) -> None:
        """A misspelt flag, or one that stands elsewhere here, is a problem; anything else a note."""
        self.unknown += 1
        if self.unknown > MOST_UNKNOWN:  # looking for the nearest name of each would take minutes
            if self.unknown == MOST_UNKNOWN + 1:
                message = (
                    f"over {MOST_UNKNOWN} keys are no options here. Is it another program's file?"
                )
                self.problem(message, where, source)
        elif value == "":
            return  # not given
        elif is_moved(key):
            self.moved.append(Key(key, value, where))
        else:
            message, near = explain_key(key, value, self.by_name)
            if message:
                self.problem(message, where, source, near)
            else:
                self.foreign.append(key)

    def tell_moved(self, given: Mapping[str, Given], source: str) -> None:
        """The keys that decide the adapter or the optimizer elsewhere, with the lines to write."""
        values = {d: item.value for d, item in given.items() if self.flags[d].has_text(item.value)}
        adapter, line = adapter_lines(self.moved, values, self.family.modules)
        self.tell_together("decides the adapter", adapter, line, source)
        if adapter:
            self.broken |= {"network_module", "network_args"}
        optimizer, idle, line = optimizer_line(self.moved, values)
        self.tell_together("decides the optimizer", optimizer, line, source)
        chosen = values.get("optimizer_type") or "AdamW"
        self.notes += [f"{k.name} has no effect: optimizer_type is {chosen}." for k in idle]
        asked = {key.name for key in (*adapter, *optimizer, *idle)}
        self.foreign += [k.name for k in self.moved if k.name not in asked and k.name in OWN]

    def tell_together(self, what: str, keys: Sequence[Key], line: str, source: str) -> None:
        """One problem a key; the first has the line that stands for all of them."""
        for key in keys:
            first = key is keys[0]
            cure = f"{line} Or import the file: {self.family.import_command(Path(source))}"
            message = f"{what}. {cure}" if first else f"{what} too: see {place_of(keys[0])}."
            self.problem(message, key.where, source)

    def parse(self, path: Path) -> tuple[str, dict[str, Any] | None]:
        """The file's text and its content; None, with a problem, when it cannot be read."""
        text = ""
        try:
            text = read_text(path)
            document = parse_json(text) if path.suffix.lower() == ".json" else parse_toml(text)
            message = self.family.foreign_message(document, text, path)
            message = message or misplaced(document, path)
        except FileNotFoundError:
            message = f"no such file. It is looked for in {Path.cwd()}."
            self.problem(message, f"--config_file {path}", COMMAND_LINE)
            return text, None
        except TextFileError as error:
            message = self.family.foreign_message(None, text, path) or str(error)
        if message:
            self.problem(message, "", str(path))
        return text, None if message else document

    def convert_all(self, given: dict[str, Given]) -> dict[str, Any]:
        """Values of the right type by dest; the others become problems, where they would matter."""
        values = {}
        for dest, item in given.items():
            flag_ = self.flags[dest]
            try:
                value = convert(flag_, item.value, item.from_text)
                complaint = value_problem(flag_, value)
            except PathError as error:
                complaint = str(error)
            except ValueError as error:
                complaint = f"expected {error}."
            if not complaint:
                values[dest] = value
            elif not flag_.ignored:
                self.problem(complaint, *place(item))
        return values


def is_on(value: Any) -> bool:
    """Whether a switch's value, of a file or typed, switches on."""
    return str(value).lower() in ("true", "1")


def place_of(key: Key) -> str:
    """Where a key stands, in a word: "line 3", or its name."""
    found = re.match(r"line \d+", key.where)
    return found[0] if found else key.name


def place(item: Given) -> tuple[str, str, str]:
    return item.where, item.source, item.name
