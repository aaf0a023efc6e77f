"""A flag's value: made of text or of a TOML value, as the flag is declared, and what is wrong with it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from library.settings.foreign_names import VALUES
from library.settings.options import Flag
from library.settings.paths import check_escapes, expand_path
from library.settings.user_classes import separate_assignments
from library.utils import nearest_name

LARGEST = 2**64  # whole numbers stay below, as seeds do
SWITCH_WORDS = {"true": True, "false": False, "1": True, "0": False}


def convert(flag_: Flag, value: Any, from_text: bool) -> Any:
    """A value of the command line (text) or of TOML as the flag's type; else ValueError.

    A number alone may stand for a list of one. A value that means "off" becomes the default.
    """
    if flag_.many:
        if flag_.type is not str and isinstance(value, (int, float)):
            value = [value]
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"a list: {flag_.dest} = {list_shown(value)}")
        return tuple(convert_one(flag_, item, from_text) for item in value if item != "")
    converted = convert_one(flag_, value, from_text)
    is_off = flag_.default is None and converted in flag_.off
    return None if is_off and flag_.check and flag_.check(converted) else converted


def list_shown(value: Any) -> str:
    """How a value that is no list would be written as one."""
    items = separate_assignments(value) if isinstance(value, str) else [value]
    return (
        json.dumps(items, ensure_ascii=False) if isinstance(value, (str, int, float)) else "[...]"
    )


def convert_one(flag_: Flag, value: Any, from_text: bool) -> Any:
    if flag_.read is not None:
        try:
            return flag_.read(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(flag_.read.expected) from error
    if flag_.type is bool:
        return convert_switch(value, from_text)
    if flag_.type is str:
        if not isinstance(value, str):
            raise ValueError("text in quotes")
        if flag_.path:
            return expand_path(value)
        if not flag_.prose:
            check_escapes(value)
        return value
    return convert_number(flag_, value, from_text)


def convert_switch(value: Any, from_text: bool) -> bool:
    """true and false, or 1 and 0."""
    if from_text and str(value).lower() in SWITCH_WORDS:
        return SWITCH_WORDS[str(value).lower()]
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    if not isinstance(value, bool):
        hint = ", got text. Remove the quotes" if isinstance(value, str) and not from_text else ""
        raise ValueError(f"true or false{hint}")
    return value


def convert_number(flag_: Flag, value: Any, from_text: bool) -> int | float:
    """Numbers of TOML, or text of the command line; a whole number may be written 1e3 or 10.0."""
    expected = "a whole number" if flag_.type is int else "a number"
    if isinstance(value, str) and not from_text:
        raise ValueError(f"{expected}, got text. Remove the quotes")
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(expected)
    try:
        number = int(value) if isinstance(value, str) and flag_.type is int else value
    except ValueError:
        number = value  # perhaps written as a decimal
    try:
        number = number if isinstance(number, int) and flag_.type is int else float(number)
    except (ValueError, OverflowError) as error:
        raise ValueError(expected) from error
    if isinstance(number, float) and not math.isfinite(number):
        raise ValueError(f"{expected} that is finite")
    if flag_.type is int and number != int(number):
        raise ValueError(expected)
    if abs(number) >= LARGEST and flag_.type is int:
        raise ValueError("a whole number below 2**64")
    return flag_.type(number)


def value_problem(flag_: Flag, value: Any) -> str | None:
    """What is wrong with a value of the right type, as a sentence."""
    if value is None:  # switched off
        return None
    for item in value if flag_.many else (value,):
        if item in flag_.refuses:
            return f"is refused: {flag_.refuses[item]}."
        if flag_.choices and item not in flag_.choices:
            near = nearest_choice(str(item), list(map(str, flag_.choices)))
            hint = f" Did you mean {near}?" if near else ""
            return f"expected one of {', '.join(map(str, flag_.choices))}.{hint}"
        if flag_.check and (complaint := flag_.check(item)):
            return complaint
    if flag_.refused and flag_.asks(value):
        return f"is refused: {flag_.refused}."
    return None


def nearest_choice(value: str, choices: Sequence[str]) -> str | None:
    """The choice that a value probably means: by another program's word for it, then by letters."""
    meant = next((word for word in VALUES.get(value.lower(), ()) if word in choices), None)
    return meant or nearest_name(value, choices)
