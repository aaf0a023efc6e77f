"""Text files that users write: UTF-8, TOML and JSON, with errors that say how to mend the file."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from library.errors import HALF_CHARACTER

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class TextFileError(Exception):
    """What is wrong with a text file, as the rest of a sentence about it."""


def read_text(path: str | Path) -> str:
    """The file as text. Raises FileNotFoundError, and TextFileError when it cannot be read otherwise."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise TextFileError(f"cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        message = "is not UTF-8 text. Save it as UTF-8 (Notepad: Save as, Encoding UTF-8)."
        raise TextFileError(message) from error
    except ValueError as error:  # a zero byte in the name
        raise TextFileError(f"cannot be read: {error}.") from error


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML file. Raises TextFileError."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # endless numbers and nesting raise their own
        found = re.search(r"at line (\d+)", str(error))
        line = text.splitlines()[int(found[1]) - 1].strip() if found else ""
        shown = f" The line: {line}" if line else ""
        if "\\" in line:
            shown += "  A path with \\ needs 'single quotes', or / instead of \\."
        raise TextFileError(f"is not valid TOML: {error}.{shown}") from error


def parse_json(text: str) -> Any:
    """The value of a JSON file, in whose objects every key stands once. Raises TextFileError."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        lines = text.splitlines()
        line = lines[error.lineno - 1].strip()[:60] if error.lineno <= len(lines) else ""
        shown = f" The line: {line}" if line else ""
        if "\\" in line:
            shown += "  A path needs / or \\\\ instead of \\."
        message = f"is not valid JSON: {error.msg} (line {error.lineno}).{shown}"
        raise TextFileError(message) from error
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise TextFileError(f"is not JSON that can be used ({error}).") from error


def json_text(value: Any, **layout: Any) -> str:
    """The value as JSON in UTF-8, letters of every script as they are; layout: of json.dumps.

    What UTF-8 cannot hold, as in names from systems of another encoding, is escaped and read back.
    """
    text = json.dumps(value, ensure_ascii=False, **layout)
    return HALF_CHARACTER.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(name for name, _ in pairs)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise TextFileError(f"{twice[0]} stands there twice. Keep one.")
    return dict(pairs)
