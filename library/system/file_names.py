"""Names that files can have on every system: they travel, and Windows takes the fewest."""

from __future__ import annotations

import os
import re
import unicodedata

FORBIDDEN_LETTERS = '< > : " / \\ | ? *'
LONGEST_NAME = 200  # bytes, which leaves room for what is added: steps, -state, temporary names
DEVICE_NAMES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{device}{digit}" for device in ("COM", "LPT") for digit in "0123456789¹²³"
}


def name_problem(name: str) -> str | None:
    """What keeps text from being the name of a file or folder, as the rest of a sentence, or None."""
    if wrong := characters_problem(name):
        return wrong
    if name.partition(".")[0].rstrip(" ").upper() in DEVICE_NAMES:
        return (
            "names a device on Windows, so that no file can be written there. Choose another name."
        )
    if name.endswith((".", " ")):
        return "ends in a dot or a space, which Windows drops. Choose a name without."
    if len(os.fsencode(name)) > LONGEST_NAME:
        return f"is no name for a file. Choose one of at most {LONGEST_NAME} bytes."
    return None


def characters_problem(name: str) -> str | None:
    """The same of the start of a name, to which something will be added."""
    if found := sorted(set(name) & set(FORBIDDEN_LETTERS.replace(" ", ""))):
        return (
            f"holds {' '.join(found)}: Windows takes none of {FORBIDDEN_LETTERS} in a name. Leave it out."
        )
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        return "holds a control character, which no file's name should. Leave it out."
    return None


def path_problem(parts: str, *, is_start: bool = False) -> str | None:
    """name_problem of what may be folders and a name; is_start: something is added to the last."""
    *folders, last = re.split(r"[/\\]", parts)
    problems = [
        *map(name_problem, folders),
        (characters_problem if is_start else name_problem)(last),
    ]
    return next(filter(None, problems), None)
