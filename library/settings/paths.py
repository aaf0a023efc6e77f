"""Paths as users write them: ~ and variables of the system, and backslashes that a file has eaten."""

from __future__ import annotations

import os
import re

VARIABLE = re.compile(r"\$\{(\w+)\}|\$([A-Za-z_]\w*)|%([A-Za-z_]\w*)%")
ESCAPED = (
    "a backslash was read as an escape. Use 'single quotes' in TOML, \\\\ in JSON, or / instead of \\."
)


class PathError(ValueError):
    """What is wrong with a path, as a sentence."""


def check_escapes(text: str) -> None:
    """Raise PathError for a text with a tab, a line end or the like: "D:\\new" in double quotes."""
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise PathError(ESCAPED)


def expand_path(text: str) -> str:
    """The path with ~, $NAME, ${NAME} and %NAME% replaced; one that exists as it is stays.

    Raises PathError for a variable that is not set, and for what check_escapes refuses.
    """
    check_escapes(text)
    if os.path.lexists(text):
        return text
    unset = [name for name in map(_name, VARIABLE.finditer(text)) if name not in os.environ]
    if unset:
        raise PathError(f"{unset[0]} is not set on this system. Write the whole path.")
    return os.path.expanduser(VARIABLE.sub(lambda found: os.environ[_name(found)], text))


def _name(found: re.Match) -> str:
    return next(filter(None, found.groups()))
