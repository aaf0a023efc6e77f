"""What a command line and a TOML file say, before anyone knows what it means: words, keys, lines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def split_options(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each option with the words after it; "" for words before the first. -0.1 is a word.

    `--name=value` gives value as the first word.
    """
    found: list[tuple[str, list[str]]] = []
    for word in argv:
        if re.match(r"--?[A-Za-z]", word):
            name, equals, value = word.partition("=")
            found.append((name, [value] if equals else []))
        else:
            if not found:
                found.append(("", []))
            found[-1][1].append(word)
    return found


def flatten(document: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """(section, key, value) of every key outside and inside sections, however deep: "a.b" of [a.b]."""
    found: list[tuple[str, str, Any]] = []
    open_tables = [("", iter(document.items()))]
    while open_tables:
        section, items = open_tables[-1]
        for key, value in items:
            if isinstance(value, dict):
                inner = f"{section}.{key}" if section else key
                open_tables.append((inner, iter(value.items())))
                break
            found.append((section, key, value))
        else:
            open_tables.pop()
    return found


def assignment(key: str, value: Any) -> str:
    """`key=value` as items of network_args and optimizer_args are written."""
    value = value if isinstance(value, str) else value_text(value)
    word = not re.match(r"[-+.\d(\[]", value)
    is_name = word and value.lower() not in ("true", "false", "none")
    return f"{key}='{value}'" if is_name else f"{key}={value}"


def value_text(value: Any) -> str:
    """A value of TOML as text; a list without brackets."""
    try:
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)
    except ValueError:  # a number of thousands of digits
        return "..."


def key_lines(text: str) -> dict[tuple[str, str], str]:
    """(section, key) -> 'line 14  learning_rate = "1e-4"', where a line starts with the key.

    Key "" is the section's header.
    """
    found: dict[tuple[str, str], str] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        shown = f"line {number}  {line.strip()[:60]}"
        if header := re.match(r"\s*\[+\s*[\"']?([\w.-]+)[\"']?\s*\]+\s*(#|$)", line):
            section = header[1]
            found.setdefault((section, ""), shown)
        elif key := re.match(r"\s*[\"']?([\w-]+)[\"']?\s*=", line):
            found.setdefault((section, key[1]), shown)
    return found


def misplaced(document: Any, path: Path) -> str | None:
    """Why a file that no other program is known for holds no options of ours; None when it may."""
    top = document if isinstance(document, dict) else {}
    tables = top.get("datasets")
    listed = isinstance(tables, list) and any(isinstance(table, dict) for table in tables)
    if listed and top.keys() <= {"general", "datasets"}:
        return "is a dataset file. Give it as --dataset_config."
    if path.suffix.lower() == ".json":
        return 'is JSON. The options belong in TOML: name = value instead of "name": value,'
    return None
