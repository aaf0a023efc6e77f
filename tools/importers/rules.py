"""A rule: how one key of another program's file is read, and where it goes; and the usual readers.

A reader returns the value in our terms and raises ValueError("expected ...") where it cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Reader = Callable[[Any], Any]


class NoCounterpart(ValueError):
    """A value that the other program takes and that nothing here stands for: why, as lost() has it."""


def as_it_is(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Rule:
    """What becomes of one key.

    target:  "train.x" of train_args.toml; "network.x", "optimizer.x" and "scheduler.x" of its lists of
             arguments; "general.x", "datasets.x" and "subsets.x" of dataset.toml, "of_subset.x" for a
             dataset's key that the file has at its folders; "special.x" for what depends on other keys;
             "" where it has no counterpart
    is_path: a file or a folder
    why:     what to say of the change, or why there is no counterpart
    asks_not: values that ask for nothing, beside empty ones; without a counterpart false and 0 do not
             either
    secret:  left out unless it is asked for
    blank:   an empty text is a value of it
    idle:    it asks for nothing here, whatever its value
    """

    target: str = ""
    read: Reader = as_it_is
    is_path: bool = False
    why: str = ""
    asks_not: tuple[Any, ...] = ()
    secret: bool = False
    blank: bool = False
    idle: bool = False


def lost(why: str, *asks_not: Any) -> Rule:
    """A key without counterpart. asks_not: its values that ask for nothing"""
    return Rule(why=why, asks_not=asks_not)


def idle(why: str) -> Rule:
    """A key that asks for nothing here, whatever its value: a part of another model, for instance."""
    return Rule(why=why, idle=True)


def path_to(target: str) -> Rule:
    return Rule(target, text, is_path=True)


def many(names: str, rule: Callable[[str], Rule], table: str = "") -> dict[str, Rule]:
    """A rule for each of several keys of a table, whose names stand with spaces between them."""
    return {f"{table}{name}": rule(f"{table}{name}") for name in names.split()}


def text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("expected text in quotes")


def whole(value: Any) -> int:
    if type(value) is int:
        return value
    raise ValueError("expected a whole number")


def number(value: Any) -> float:
    if type(value) in (int, float) and math.isfinite(value):
        return value
    raise ValueError("expected a number")


def switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("expected true or false")


def loosely(read: Reader) -> Reader:
    """The reader for programs that also write numbers and true or false as text, and 3 as 3.0."""

    def loose(value: Any) -> Any:
        if isinstance(value, str):
            value = plain(value)
        if read is whole and isinstance(value, float) and value.is_integer():
            value = int(value)
        if read is switch and type(value) is int and value in (0, 1):
            value = bool(value)
        return read(value)

    return loose


def plain(words: str) -> Any:
    """The number, or the true or false, that a text stands for; else the text."""
    stripped = words.strip()
    if stripped.lower() in ("true", "false"):
        return stripped.lower() == "true"
    for kind in (int, float):
        try:
            found = kind(stripped)
        except ValueError:
            continue
        return found if math.isfinite(found) and len(stripped) < 40 else words
    return words


def choice(words: Mapping[Any, Any]) -> Reader:
    """A reader of one of the words, in small letters where they are text."""

    def read(value: Any) -> Any:
        key = value.strip().lower() if isinstance(value, str) else value
        if isinstance(key, (str, bool, int)) and key in words:
            return words[key]
        raise ValueError(f"expected one of {', '.join(map(str, words))}")

    return read


def scaled(factor: float) -> Reader:
    """A reader of a number that counts in another unit here: thousandths of it, for instance."""
    return lambda value: round(loosely(number)(value) * factor)


def size(value: Any) -> int | list[int]:
    """An edge, or [width, height]."""
    if type(value) is int:
        return value
    if isinstance(value, list) and len(value) == 2 and all(type(edge) is int for edge in value):
        return value
    raise ValueError("expected a whole number or [width, height]")


def size_text(value: Any) -> int | list[int]:
    """The same of "1024", "1024,768" and "1024x768" as well."""
    if isinstance(value, str):
        edges = [plain(edge) for edge in value.lower().replace("x", ",").split(",")]
        value = edges[0] if len(edges) == 1 else edges
    return size(value)


def sizes(value: Any) -> list[Any]:
    """A list of sizes; one alone is a list of one. All are [width, height] where one is."""
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise ValueError("expected a list of sizes")
    found = [size_text(each) for each in listed]
    if any(isinstance(each, list) for each in found):  # the older toml package reads no mixture
        return [each if isinstance(each, list) else [each, each] for each in found]
    return found


def empty(value: Any) -> bool:
    """Whether a value is how files leave something out."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})


def asks(value: Any, asks_not: Iterable[Any]) -> bool:
    """Whether a value without counterpart asks for anything that would be missed."""
    off = (False, 0, "0", "false", "False", "none", "None", *asks_not)
    return not (empty(value) or is_one_of(value, off))


def is_one_of(value: Any, others: Iterable[Any]) -> bool:
    """Whether a value is among others; true is not 1."""
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in others
    )
