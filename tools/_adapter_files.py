"""What all tools for adapter files share: their command lines, and the places of what they write."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from library.errors import Problem


def tool_parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """Of the tool `name`, whose --help is `text` as it stands."""
    shape = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=name, description=text, formatter_class=shape)


def place_problems(
    flag: str, file: Path, inputs: Sequence[Path], *, overwrite: bool
) -> Iterator[Problem]:
    """What keeps a file from being written to the place that a flag names."""
    where = f"{flag} {file}"
    if os.path.realpath(file) in map(os.path.realpath, inputs):
        yield Problem("is one of the files that are read. Choose another name.", where)
    elif os.path.isdir(file):
        yield Problem("is a folder. Give the name of a file.", where)
    elif os.path.lexists(file) and not overwrite:
        yield Problem("is there already. Choose another name, or use --overwrite.", where)
    elif not file.parent.is_dir():
        yield Problem("no such folder. Make it first.", str(file.parent))
