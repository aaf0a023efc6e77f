"""One dataclass field = one flag: the parser, the object and the documentation come from the field.

A flag without effect here says so in its declaration, with the reason: it is accepted, and named once
when the user sets it; or it is refused, where silence would change what is trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from library.errors import Problem
from library.utils import nearest_name

T = TypeVar("T")
KEY = "flag"


@dataclass(frozen=True)
class Flag:
    """What is declared of one flag, beside its type and default.

    names:   flags as typed; the first is the one shown
    check:   what is wrong with a value of the right type, as a sentence, or None
    ignored: the reason why it has no effect here; named once when set
    refused: the reason why setting it is an error
    read:    from text or a TOML value to the field's value; ValueError says what was expected
    hidden:  not shown in --help (old misspellings)
    """

    dest: str
    type: Any
    default: Any
    help: str
    names: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None
    many: bool = False
    check: Callable[[Any], str | None] | None = None
    read: Callable[[Any], Any] | None = None
    ignored: str = ""
    refused: str = ""
    hidden: bool = False

    @property
    def is_switch(self) -> bool:
        return self.type is bool

    @property
    def is_negatable(self) -> bool:
        """Whether there is a --no-... form: for switches that are on unless said otherwise."""
        return self.is_switch and self.default is not False


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


def steps_or_fraction(value: Any) -> float | int:
    """Steps (a whole number), a fraction of the run (below 1) or a percentage ("10%")."""
    if isinstance(value, str):
        text = value.strip()
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise ValueError
    if value >= 1 and value != int(value):
        raise ValueError
    return int(value) if value >= 1 else float(value)


steps_or_fraction.expected = "a whole number of steps, a fraction below 1, or a percentage like 10%"


def flags_of(group: type) -> tuple[Flag, ...]:
    """The flags of a group of options, in order."""
    hints = typing.get_type_hints(group)
    found = []
    for field in dataclasses.fields(group):
        declared = dict(field.metadata[KEY])
        kind, many = plain_type(hints[field.name])
        declared.setdefault("names", (f"--{field.name}",))
        found.append(Flag(dest=field.name, type=kind, default=field.default, many=many, **declared))
    return tuple(found)


def plain_type(hint: Any) -> tuple[type, bool]:
    """The type of a value, and whether it is a list: `tuple[str, ...] | None` is (str, True)."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
        origin = typing.get_origin(hint)
    return (typing.get_args(hint)[0], True) if origin is tuple else (hint, False)


def add_flags(parser: argparse.ArgumentParser, group: type) -> None:
    """Add a group's flags. Values stay text: types are checked with those of the TOML file."""
    section = parser.add_argument_group((group.__doc__ or group.__name__).split("\n")[0])
    for flag_ in flags_of(group):
        shown = argparse.SUPPRESS if flag_.hidden else help_text(flag_)
        common = {"dest": flag_.dest, "default": argparse.SUPPRESS, "help": shown}
        if flag_.is_switch and flag_.is_negatable:
            action = argparse.BooleanOptionalAction
            section.add_argument(*flag_.names, action=action, **common)
        elif flag_.is_switch:
            section.add_argument(*flag_.names, action="store_const", const=True, **common)
        else:
            metavar = flag_.type.__name__.upper()
            nargs = "*" if flag_.many else None
            section.add_argument(*flag_.names, nargs=nargs, metavar=metavar, **common)


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


def convert(flag_: Flag, value: Any, from_text: bool) -> Any:
    """A value from the command line (text) or from TOML as the flag's type; ValueError if it is not."""
    if flag_.many:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"a list, e.g. {flag_.dest} = [...]")
        return tuple(convert_one(flag_, item, from_text) for item in value)
    return convert_one(flag_, value, from_text)


def convert_one(flag_: Flag, value: Any, from_text: bool) -> Any:
    if flag_.read is not None:
        try:
            return flag_.read(value)
        except (ValueError, TypeError) as error:
            raise ValueError(flag_.read.expected) from error
    if flag_.type is bool:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value
    if flag_.type is str:
        if not isinstance(value, str):
            raise ValueError("text in quotes")
        return value
    return convert_number(flag_, value, from_text)


def convert_number(flag_: Flag, value: Any, from_text: bool) -> int | float:
    expected = "a whole number" if flag_.type is int else "a number"
    if isinstance(value, str) and not from_text:
        raise ValueError(f"{expected}, got text. Remove the quotes")
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(expected)
    try:
        number = float(value)
        whole = int(value) if flag_.type is int else None
    except (ValueError, OverflowError) as error:
        raise ValueError(expected) from error
    if not math.isfinite(number):
        raise ValueError(f"{expected} that is finite")
    if whole is not None and whole != number:
        raise ValueError(expected)
    return number if whole is None else whole


def value_problem(flag_: Flag, value: Any) -> str | None:
    """What is wrong with a value of the right type, as a sentence."""
    for item in value if flag_.many else (value,):
        if flag_.choices and item not in flag_.choices:
            near = nearest_name(str(item), map(str, flag_.choices))
            hint = f" Did you mean {near}?" if near else ""
            return f"expected one of {', '.join(map(str, flag_.choices))}.{hint}"
        if flag_.check and (complaint := flag_.check(item)):
            return complaint
    return None


def build(group: type[T], values: dict[str, Any]) -> T:
    """The group from checked values by dest; others are ignored, absent ones take the default."""
    names = {field.name for field in dataclasses.fields(group)}
    return group(**{name: value for name, value in values.items() if name in names})


def group_problems(groups: Iterable[Any]) -> list[Problem]:
    """What each group finds wrong between its own fields (its `problems` method, where it has one)."""
    return [p for group in groups if hasattr(group, "problems") for p in group.problems()]


def all_flags(groups: Sequence[type]) -> dict[str, Flag]:
    """Every flag by dest. A dest in two groups is our mistake."""
    found: dict[str, Flag] = {}
    for group in groups:
        for flag_ in flags_of(group):
            assert flag_.dest not in found, f"{flag_.dest} is declared twice"
            found[flag_.dest] = flag_
    return found
