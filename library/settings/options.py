"""One dataclass field = one flag: the parser, the object and the documentation come from the field.

A flag without effect here says so in its declaration, with the reason: it is accepted, and named
once when the user sets it; or it is refused, where silence would change what is trained. So does one
that has an effect only beside others, see effects.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from library.errors import Problem
from library.settings.effects import Idle, idle_reason

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
KEY = "flag"
PORT_WORDS = {"true": "yes", "yes": "yes", "false": "no", "no": "no"}


@dataclass(frozen=True)
class Reading:
    """Makes a field's value of text or of a TOML value. expected: what, where that is a ValueError"""

    make: Callable[[Any], str | float]
    expected: str

    def __call__(self, value: Any) -> str | float:
        return self.make(value)


@dataclass(frozen=True)
class Flag:
    """What is declared of one flag, beside its type and default.

    names:   flags as typed; the first is the one shown
    check:   what is wrong with a value of the right type, as a sentence, or None
    refuses: values that other programs take and that are an error here, each with the reason
    off:     values that ask for nothing, beside the default, false, "" and an empty list; where the
             default is None, one that `check` refuses means it
    ignored: the reason why it has no effect here; named once when set
    idle:    when it has no effect beside the other options
    refused: the reason why setting it is an error
    read:    where the field's value is more than a conversion to its type
    alone:   the value that the name without one stands for on the command line
    hidden:  not shown in --help (old misspellings)
    path:    a file or a folder: ~ and variables are replaced
    prose:   a text that may hold tabs and line ends
    """

    dest: str
    type: Any
    default: Any
    help: str
    names: tuple[str, ...] = ()
    choices: tuple[Any, ...] | None = None
    many: bool = False
    check: Callable[[Any], str | None] | None = None
    refuses: Mapping[Any, str] = dataclasses.field(default_factory=dict)
    off: tuple[Any, ...] = ()
    read: Reading | None = None
    alone: str = ""
    ignored: str = ""
    idle: tuple[Idle, ...] = ()
    refused: str = ""
    hidden: bool = False
    path: bool = False
    prose: bool = False

    @property
    def is_switch(self) -> bool:
        return self.type is bool

    def has_text(self, value: Any) -> bool:
        """Whether a value as it was written is text, or a list of texts where lists are taken."""
        if not self.many:
            return isinstance(value, str)
        return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)

    @property
    def is_negatable(self) -> bool:
        """Whether --help shows its --no-... form: switches that are on unless said otherwise."""
        return self.is_switch and self.default is not False

    def asks(self, value: Any) -> bool:
        """Whether a value asks for anything: false, nothing and the default do not."""
        if value is False or value is None or value == self.default or value in self.off:
            return False
        if isinstance(value, tuple):
            return any(value)
        return value != "" and not (value == 0 and not self.default)


def flag(default: Any, help: str, **declared: Any) -> Any:
    """A dataclass field that is a flag; see Flag for what can be declared."""
    return dataclasses.field(default=default, metadata={KEY: {"help": help, **declared}})


def at_least(lowest: float) -> Callable[[Any], str | None]:
    return lambda value: None if value >= lowest else f"expected {lowest} or more."


def above(limit: float) -> Callable[[Any], str | None]:
    return lambda value: None if value > limit else f"expected more than {limit}."


def between(lowest: float, highest: float) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        return None if lowest <= value <= highest else f"expected {lowest} to {highest}."

    return check


def read_steps_or_fraction(value: Any) -> float | int:
    """Steps (a whole number), a fraction of the run (below 1) or a percentage ("10%")."""
    percent = isinstance(value, str) and value.strip().endswith("%")
    if isinstance(value, str):
        value = float(value.strip().rstrip("%")) / (100 if percent else 1)
    if isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError
    if value >= 1 and (percent or value != int(value)):
        raise ValueError
    return int(value) if value >= 1 else float(value)


steps_or_fraction = Reading(
    read_steps_or_fraction, "whole steps, a fraction below 1, or a percentage like 10% below 100%"
)


def read_size(value: Any) -> str:
    """One or two whole numbers as text: 1024, "1024", "1024,768", [1024, 768] -> "1024,768"."""
    parts = value.split(",") if isinstance(value, str) else value
    parts = parts if isinstance(parts, list) else [parts]
    if len(parts) not in (1, 2) or any(isinstance(part, (bool, float)) for part in parts):
        raise ValueError
    edges = [int(part) for part in parts]
    if min(edges) < 1:
        raise ValueError
    return ",".join(map(str, edges))


size = Reading(read_size, 'a whole number or "width,height"')


def read_word(value: Any) -> str:
    """Text; true and false may stand without quotes."""
    if not isinstance(value, (bool, str)):
        raise ValueError
    return str(value).lower() if isinstance(value, bool) else value


word = Reading(read_word, "text in quotes")


def read_number_or_word(value: Any) -> str:
    """A whole number, with or without quotes, or text; as text."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError
    return str(value)


def read_port(value: Any) -> str:
    """true, false or the number of a port, as yes, no or the number."""
    text = str(value).lower()
    if text in PORT_WORDS and not isinstance(value, (int, float)) or isinstance(value, bool):
        return PORT_WORDS[text]
    if isinstance(value, float) or not 1 <= int(text) <= 65535:
        raise ValueError
    return str(int(text))


port = Reading(read_port, "true, false or a port from 1 to 65535")


number_or_word = Reading(read_number_or_word, "a whole number, or text in quotes")


def flags_of(group: type) -> tuple[Flag, ...]:
    """The flags of a group of options, in order."""
    return _declared(group)


@cache  # type hints are slow to read
def _declared(group: type) -> tuple[Flag, ...]:
    hints = typing.get_type_hints(group)
    found = []
    for field in dataclasses.fields(group):
        if KEY not in field.metadata:
            continue  # a family's class has the flag of it
        declared = dict(field.metadata[KEY])
        kind, many = plain_type(hints[field.name])
        declared.setdefault("names", (f"--{field.name}",))
        found.append(Flag(dest=field.name, type=kind, default=field.default, many=many, **declared))
    return tuple(found)


def written_names(options: DataclassInstance) -> dict[str, str]:
    """How the user writes each option of a group in a file: dest -> the name that is shown."""
    return {flag_.dest: flag_.names[0].removeprefix("--") for flag_ in flags_of(type(options))}


def all_flags(groups: Iterable[type]) -> dict[str, Flag]:
    """Every flag by dest. A dest or a name that is declared twice is our mistake."""
    found: dict[str, Flag] = {}
    for flag_ in (f for group in groups for f in flags_of(group)):
        assert flag_.dest not in found, f"{flag_.dest} is declared twice"
        found[flag_.dest] = flag_
    names = [name for flag_ in found.values() for name in flag_.names]
    assert len(names) == len(set(names)), "a name is declared twice"
    return found


def plain_type(hint: Any) -> tuple[type, bool]:
    """The type of a value, and whether it is a list: `tuple[str, ...] | None` is (str, True)."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
        origin = typing.get_origin(hint)
    return (typing.get_args(hint)[0], True) if origin is tuple else (hint, False)


def add_flags(parser: argparse.ArgumentParser, group: type) -> None:
    """Show a group's flags in --help; config_file reads what is typed."""
    section = parser.add_argument_group((group.__doc__ or group.__name__).split("\n")[0])
    for flag_ in flags_of(group):
        shown = argparse.SUPPRESS if flag_.hidden else help_text(flag_)
        add = partial(
            section.add_argument, *flag_.names, dest=flag_.dest, default=argparse.SUPPRESS, help=shown
        )
        if flag_.is_switch:
            negatable = argparse.BooleanOptionalAction
            add(action=negatable if flag_.is_negatable else "store_true")
        else:
            count = "?" if flag_.alone else None
            add(metavar=flag_.type.__name__.upper(), nargs="*" if flag_.many else count)


def help_text(flag_: Flag) -> str:
    """The line of --help: meaning, choices, default, and what it does not do."""
    parts = [flag_.help]
    if flag_.choices:
        parts.append(f"({', '.join(map(str, flag_.choices))})")
    if flag_.default not in (None, False, ""):
        parts.append(f"[{flag_.default}]")
    if flag_.ignored or flag_.refused:
        parts.append("[no effect here]" if flag_.ignored else "[refused]")
    return " ".join(parts).replace("%", "%%")


def build(group: type[T], values: dict[str, Any]) -> T:
    """The group from checked values by dest; others are ignored, absent ones take the default."""
    names = {field.name for field in dataclasses.fields(group)}
    return group(**{name: value for name, value in values.items() if name in names})


@runtime_checkable
class SelfChecking(Protocol):
    """A group some of whose fields can contradict one another."""

    def problems(self) -> list[Problem]:
        """What is wrong between its own fields."""


def group_problems(groups: Iterable[object]) -> list[Problem]:
    """What each group finds wrong between its own fields."""
    return [p for group in groups if isinstance(group, SelfChecking) for p in group.problems()]


def idle_flags(flags: Iterable[Flag], options: SimpleNamespace) -> dict[str, str]:
    """Why flags have no effect beside the others, by dest; of those whose value asks for something.

    options: every option as an attribute, and what else conditions look at
    """
    found = {}
    for flag_ in flags:
        value = getattr(options, flag_.dest)
        if value is None or value is False or value in ("", ()):
            continue
        if reason := idle_reason(flag_.idle, options, asks=flag_.asks(value)):
            found[flag_.dest] = reason
    return found
