"""What tools that write adapter files share: where the file goes, and what keeps it from going there."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from library.errors import Problem

EXTENSION = ".safetensors"


def add_output(parser: argparse.ArgumentParser) -> None:
    """--output, --overwrite and --dry_run."""
    parser.add_argument("--output", type=Path, required=True, help="the file that is written")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument(
        "--dry_run", action="store_true", help="tell what would be written, and write nothing"
    )


def output_problems(output: Path, inputs: Sequence[Path], *, overwrite: bool) -> Iterator[Problem]:
    """What is wrong with the place of the output."""
    where = f"--output {output}"
    if output.suffix != EXTENSION:
        yield Problem(f"expected a name that ends in {EXTENSION}.", where)
    elif os.path.lexists(output) and not overwrite:
        yield Problem("is there already. Choose another name, or use --overwrite.", where)
    elif os.path.isdir(output):
        yield Problem("is a folder. Give the name of a file.", where)
    elif not output.parent.is_dir():
        yield Problem("no such folder. Make it first.", str(output.parent))
    elif os.path.realpath(output) in map(os.path.realpath, inputs):
        yield Problem("is one of the files that are read. Choose another name.", where)
