"""What tools that tell of adapter files share: where JSON and pages go, and that nothing is lost to them."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from library.errors import Problem
from library.system.system_errors import output_errors
from library.system.text_files import json_text
from library.utils import atomic_write
from tools._adapter_files import place_problems

STANDARD_OUTPUT = "-"


def add_reports(parser: argparse.ArgumentParser) -> None:
    """--json, --html and --overwrite."""
    add = parser.add_argument
    add("--json", metavar="FILE", help="all figures and findings; - writes them instead of the table")
    add("--html", metavar="FILE", help="a page with heat maps and curves, which needs no other file")
    add("--overwrite", action="store_true", help="replace reports that are there")


def report_problems(options: argparse.Namespace, inputs: Sequence[Path]) -> Iterator[Problem]:
    """What is wrong with the places of the reports."""
    given = [("--json", options.json), ("--html", options.html)]
    files = [(flag, Path(name)) for flag, name in given if name and name != STANDARD_OUTPUT]
    if options.html == STANDARD_OUTPUT:
        yield Problem("expected the name of a file.", "--html -")
    for flag, file in files:
        yield from place_problems(flag, file, inputs, overwrite=options.overwrite)
    if len(files) == 2 and len({os.path.realpath(file) for _, file in files}) == 1:
        yield Problem("is the file of --json too. Choose two names.", f"--html {options.html}")


def write_json(where: str, document: Any) -> None:
    """Into a file, whole or not at all; or to standard output, in letters that any console has."""
    if where == STANDARD_OUTPUT:
        print(json.dumps(document, allow_nan=False, indent=1))
    else:
        write_text(where, json_text(document, allow_nan=False, indent=1) + "\n")


def write_text(where: str, text: str) -> None:
    """Whole or not at all. Raises OutputError."""
    with output_errors(where), atomic_write(where) as temporary:
        temporary.write_text(text, encoding="utf-8")
