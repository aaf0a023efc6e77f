"""`network_args` -> a frozen dataclass: texts or typed values in, all problems in one error out.

An argument is a dataclass field; its type says how its text is read. Unknown names and unreadable
values are errors that name the nearest known name.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, ClassVar, Protocol

from library.errors import ConfigError, Problem
from library.settings.user_classes import separate_assignments, several_message
from library.utils import nearest_name

SOURCE = "network_args"
TRUE_WORDS = ("true", "1", "yes", "y", "on", "t")
FALSE_WORDS = ("false", "0", "no", "n", "off", "f")

Pairs = tuple[tuple[str, float], ...]
Words = tuple[tuple[str, str], ...]


def parse_network_args(strings: Sequence[str] | None) -> dict[str, str]:
    """["key=value", ...] -> {key: value}. ConfigError for a word without = and for repeats.

    A value as a whole in quotes, as sd-scripts reads it, is what stands between them.
    """
    values: dict[str, str] = {}
    problems = []
    for string in strings or ():
        key, equals, value = str(string).partition("=")
        key, value = key.strip(), unquoted(value)
        if len(parts := separate_assignments(str(string))) > 1:
            problems.append(Problem(several_message(parts), string))
        elif not equals or not key:
            problems.append(Problem("expected key=value.", string))
        elif key in values and values[key] != value:
            problems.append(Problem("given twice, with different values.", key))
        else:
            values[key] = value
    if problems:
        raise ConfigError(problems, source=SOURCE)
    return values


def unquoted(text: str) -> str:
    """The text without spaces and one pair of quotes around the whole of it."""
    text = text.strip()
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1].strip() if is_quoted and text[0] not in text[1:-1] else text


class Arguments(Protocol):
    """A dataclass of arguments that can say what is wrong with values that could be read."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @staticmethod
    def problems_of(values: Mapping[str, Any]) -> list[Problem]: ...


def read_arguments(
    classes: Sequence[type[Arguments]], values: Mapping[str, Any], aliases: Mapping[str, str],
    elsewhere: Mapping[str, str],
) -> list[dict[str, Any]]:  # fmt: skip
    """What `values` give for the fields of each of `classes`; None means not given.

    aliases: accepted name -> field.  elsewhere: known name that does not belong here -> what to do
    """
    readers = {field.name: READERS[str(field.type)] for cls in classes for field in fields(cls)}
    read: dict[str, Any] = {}
    problems: list[Problem] = []
    for given, value in values.items():
        name = aliases.get(given, given)
        if value is None:
            continue
        if name not in readers:
            problems.append(unknown_argument(given, [*readers, *aliases], elsewhere))
            continue
        try:
            result = readers[name](value)
        except ValueError as error:
            problems.append(Problem(f"{error}.", f"{given}={value}"))
            continue
        if name in read and read[name] != result:
            problems.append(Problem(f"differs from {name}, of which it is another name.", given))
        read[name] = result
    for cls in classes:
        problems += cls.problems_of(read)
    if problems:
        raise ConfigError(problems, source=SOURCE)
    return [{f.name: read[f.name] for f in fields(cls) if f.name in read} for cls in classes]


def unknown_argument(name: str, known: Sequence[str], elsewhere: Mapping[str, str]) -> Problem:
    if name in elsewhere:
        return Problem(elsewhere[name], name)
    near = nearest_name(name, [*known, *elsewhere])
    if near is None:
        return Problem(f"no such argument. Known: {', '.join(known)}.", name)
    note = f" That one: {elsewhere[near]}" if near in elsewhere else ""
    return Problem(f"no such argument. Did you mean {near}?{note}", name)


def read_bool(value: Any) -> bool:
    word = str(value).strip().lower()
    if word in TRUE_WORDS or word in FALSE_WORDS:
        return word in TRUE_WORDS
    near = nearest_name(word, ("true", "false"))
    raise ValueError("expected true or false" + (f", perhaps {near}" if near else ""))


def read_int(value: Any) -> int:
    try:
        number = float(str(value))
    except ValueError:
        raise ValueError("expected a whole number") from None
    if isinstance(value, bool) or not number.is_integer():
        raise ValueError("expected a whole number")
    return int(number)


def read_number(value: Any) -> float:
    try:
        number = float(str(value))
    except ValueError:
        raise ValueError("expected a number") from None
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError("expected a finite number")
    return number


def read_string(value: Any) -> str:
    return str(value).strip()


def read_list(value: Any) -> tuple[str, ...]:
    """A sequence, a Python list or tuple as text, or texts parted by commas outside brackets."""
    if isinstance(value, str):
        value = python_list(value) or map(unquoted, split_outside_brackets(value))
    return tuple(str(part).strip() for part in value if str(part).strip())


def python_list(text: str) -> Sequence[str] | None:
    """The texts of a Python list or tuple that is written as text; None when it is not one."""
    if not re.match(r"""\s*[\[(]\s*["']""", text):
        return None  # a regular expression may begin with a bracket
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an escape that Python does not know stays as it is
            found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return (found,) if isinstance(found, str) else found


def read_pairs(value: Any) -> Pairs:
    """regex=number,... -> ((regex, number), ...)."""
    pairs = []
    for part in read_list(value):
        pattern, equals, number = part.rpartition("=")
        if not equals or not pattern:
            raise ValueError(f"expected regex=number,..., found {part!r}")
        pairs.append((pattern.strip(), read_number(number)))
    return tuple(pairs)


def read_words(value: Any) -> Words:
    """regex=word,... -> ((regex, word), ...)."""
    pairs = []
    for part in read_list(value):
        pattern, equals, word = part.rpartition("=")
        if not equals or not pattern or not word.strip():
            raise ValueError(f"expected regex=word,..., found {part!r}")
        pairs.append((pattern.strip(), word.strip()))
    return tuple(pairs)


def split_outside_brackets(text: str) -> list[str]:
    """Split at commas that are not inside (), [] or {}: regexes such as a{1,2} stay whole."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


READERS: dict[str, Callable[[Any], Any]] = {
    "bool": read_bool,
    "bool | None": read_bool,
    "int": read_int,
    "int | None": read_int,
    "float": read_number,
    "float | None": read_number,
    "str": read_string,
    "tuple[str, ...]": read_list,
    "tuple[str, ...] | None": read_list,
    "Pairs": read_pairs,
    "Words": read_words,
}


def argument_text(value: Any) -> str:
    """A value as it would be written in network_args."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(
            part if isinstance(part, str) else f"{part[0]}={argument_text(part[1])}" for part in value
        )
    return f"{value:g}" if isinstance(value, float) else str(value)
