"""Reading what others wrote: TOML, JSON and YAML to plain values, within limits; nothing is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from library.errors import ConfigError
from library.system.text_files import TextFileError, parse_json, parse_toml, read_text

LARGEST = 2**20  # bytes; a configuration has thousands
DEEPEST = 50  # tables and lists in each other
OPENING = (
    "FlowSequenceStartToken", "FlowMappingStartToken", "BlockSequenceStartToken",
    "BlockMappingStartToken",
)  # fmt: skip
CLOSING = ("FlowSequenceEndToken", "FlowMappingEndToken", "BlockEndToken")
SCRIPTS = (".sh", ".bat", ".cmd", ".ps1")


def read_limited(path: Path) -> str:
    """The text of a file of at most LARGEST bytes. Raises ConfigError."""
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            message = f"has over {LARGEST // 2**20} MiB: no configuration has."
        else:
            return read_text(path)
    except FileNotFoundError:
        message = f"no such file. It is looked for in {Path.cwd()}."
    except TextFileError as error:
        message = str(error)
    raise ConfigError(message, source=str(path))


def parse_limited(path: Path, suffix: str = "") -> Any:
    """The value of a TOML, JSON or YAML file, by its ending or the one that is given. ConfigError."""
    text = read_limited(path)
    try:
        return parse(text, suffix or path.suffix.lower())
    except TextFileError as error:
        raise ConfigError(str(error), source=str(path)) from error


def parse(text: str, suffix: str) -> Any:
    """The value of a text. Raises TextFileError."""
    if suffix == ".json":
        return parse_json(text)
    if suffix in (".yaml", ".yml"):
        return parse_yaml(text)
    return parse_toml(text)


def parse_yaml(text: str) -> Any:
    """The value of a YAML file of plain values. Raises TextFileError.

    Anchors and aliases are refused: a file of a few lines can stand for billions of values.
    """
    try:
        check_tokens(yaml.scan(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        message = f"is not valid YAML{where}: {getattr(error, 'problem', error)}."
        raise TextFileError(message) from error
    except (RecursionError, ValueError) as error:  # a date that does not exist
        raise TextFileError(f"is not YAML that can be used ({error}).") from error


def check_tokens(tokens: Iterable[yaml.Token]) -> None:
    """Raise TextFileError at an alias, and where values are nested too deep to be a configuration."""
    depth = 0
    for token in tokens:
        name, line = type(token).__name__, token.start_mark.line + 1
        depth += name in OPENING
        depth -= name in CLOSING
        if name == "AliasToken":
            raise TextFileError(f"has an alias (*name) in line {line}. Write the value out there.")
        if depth > DEEPEST:
            raise TextFileError(f"is no YAML of a configuration: {DEEPEST} levels in line {line}.")


def folders_near(path: Path) -> Iterator[Path]:
    """Where the files and folders that a configuration names may count from."""
    folder = path.resolve().parent
    yield folder
    yield folder.parent
    yield Path.cwd()
