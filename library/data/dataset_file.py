"""The dataset file itself: TOML or JSON to a document, where each key stands, folders that are named.

What the keys mean is config_util's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from library.data.picture_folders import (
    KINDS,
    Search,
    cure_of,
    inner_folders,
    some,
)
from library.errors import ConfigError, Problem
from library.settings.family import ForeignMessage
from library.system.text_files import TextFileError, parse_json, parse_toml, read_text
from library.utils import nearest_name

OPTION_NAMES = {"network_module", "learning_rate", "output_dir", "optimizer_type"}
TableLines = dict[tuple, str]
"""(table path, key) -> "line N  its text"; key "" for headers. What it misses has no line."""


def read_document(path: Path, foreign_message: ForeignMessage | None) -> tuple[dict, TableLines]:
    """The file's content and lines. Raises ConfigError when it is neither TOML nor JSON."""
    source, text, document, problem = str(path), "", None, None
    is_json = path.suffix.lower() == ".json"
    try:
        text = read_text(path)
        document = parse_json(text) if is_json else parse_toml(text)
    except FileNotFoundError:
        message = f"no such file. --dataset_config is looked for in {Path.cwd()}."
        raise ConfigError(message, source=source) from None
    except TextFileError as error:
        problem = str(error)
    if foreign_message:
        problem = foreign_message(document, text, path) or problem
    if problem:
        raise ConfigError(problem, source=source)
    if isinstance(document, dict) and "datasets" not in document and OPTION_NAMES & set(document):
        message = "holds options, not pictures. Give it as --config_file."
        raise ConfigError(message, source=source)
    return _object(document, source), {} if is_json else find_lines(text)


def _object(document: Any, source: str) -> dict:
    if not isinstance(document, dict):
        message = 'expected an object: {"general": {...}, "datasets": [...]}.'
        raise ConfigError(message, source=source)
    return document


def find_lines(text: str) -> TableLines:
    """Where the tables and keys of a TOML file stand."""
    found: dict[tuple, str] = {}
    path: tuple = ()
    datasets = subsets = -1
    for number, line in enumerate(text.splitlines(), 1):
        shown = f"line {number}  {line.strip()[:60]}"
        header = re.match(r"\[+([\w.\s-]+)\]+\s*(#.*)?$", line.strip())
        name = header[1].strip() if header else ""
        pair = re.match(r"""\s*["']?([\w-]+)["']?\s*=""", line)
        if name == "datasets":
            datasets, subsets = datasets + 1, -1
            path = ("datasets", datasets)
        elif name == "datasets.subsets":
            subsets += 1
            path = ("datasets", datasets, "subsets", subsets)
        elif header:
            path = (name,)
        if header or pair:
            found.setdefault((path, pair[1] if pair else ""), shown)
    return found


def folders_document(fallbacks: Mapping[str, Any]) -> tuple[dict, TableLines, list[str]]:
    """The document that flags stand for, where each part comes from, and what was left out.

    train_data_dir and reg_data_dir hold folders called `<repeats>_<class>`; with in_json the pictures
    lie in train_data_dir itself, and the JSON has their captions. Raises ConfigError.
    """
    subsets: list[dict[str, Any]] = []
    flags: list[str] = []
    notes: list[str] = []
    parents = {name: fallbacks.get(name) for name in ("train_data_dir", "reg_data_dir")}
    if fallbacks.get("in_json"):
        folder = parents.pop("train_data_dir")
        subsets = [
            {"metadata_file": fallbacks["in_json"], **({"image_dir": folder} if folder else {})}
        ]
        flags = ["--in_json"]
    if fallbacks.get("dataset_class"):
        subsets.append({"dataset_class": fallbacks["dataset_class"]})
        flags.append("--dataset_class")
    for name, parent in parents.items():
        if not parent:
            continue
        for folder, repeats, class_name in repeated_folders(f"--{name}", Path(parent), notes):
            subset = {"image_dir": str(folder), "num_repeats": repeats, "class_tokens": class_name}
            subsets.append({**subset, **({"is_reg": True} if name == "reg_data_dir" else {})})
            flags.append(f"--{name}")
    lines: TableLines = {
        (("datasets", 0, "subsets", number), key): flag
        for number, flag in enumerate(flags)
        for key in ("", *subsets[number])
    }
    lines[("datasets", 0), ""] = "command line"
    return {"datasets": [{"subsets": subsets}]}, lines, notes


def repeated_folders(flag: str, parent: Path, notes: list[str]) -> list[tuple[Path, int, str]]:
    """(folder, repeats, class) of the folders called `<repeats>_<class>`; others become notes."""
    if not os.path.isdir(parent):
        message = folder_problem(str(parent)) or "no such folder."
        raise ConfigError([Problem(message, f"{flag} {parent}")])
    search, found = Search(), []
    try:
        loose = [path.name for path in search.files(parent)]
        folders = list(inner_folders(parent))
    except OSError as error:
        message = f"the folder cannot be read: {error.strerror}."
        raise ConfigError([Problem(message, f"{flag} {parent}")]) from error
    broken = [path.name for path in search.passed.broken]
    if loose:
        notes.append(f"{flag}: pictures beside the folders are left out: {some(loose)}")
    if broken:
        notes.append(f"{flag}: links that lead nowhere are left out: {some(broken)}")
    for folder in folders:
        number, _, name = folder.name.partition("_")
        if number.isascii() and number.isdecimal() and 0 < len(number) < 10 and int(number) > 0:
            found.append((folder, int(number), name))
        else:
            notes.append(f"{flag}: {folder} is left out: its name does not start with repeats_")
    if not found:
        message = (
            f"{parent} has no folder called <repeats>_<class>, for example 10_cat. Make one and"
        )
        message += " move the pictures there."
        if broken:
            message += f" These links lead nowhere: {some(broken)}."
        raise ConfigError([Problem(message, flag)])
    return found


def folder_problem(name: str, *, recursive: bool = False) -> str | None:
    """What is wrong with a picture folder. A relative one counts from the current directory."""
    folder = Path(name)
    if re.search(r"[\x00-\x1f]", name):
        return "a backslash was read as an escape. Use 'single quotes', or / instead of \\."
    if os.path.isfile(folder):
        return "this is a file. Give the folder that holds the pictures."
    if not os.path.isdir(folder):
        there = next((parent for parent in folder.parents if parent.is_dir()), None)
        hint = f"Of this path there is {there}." if there else "The drive is not there."
        hint = hint if folder.is_absolute() else f"It is looked for in {Path.cwd()}."
        if os.name != "nt" and re.match(r"[A-Za-z]:\\", name):
            hint = "This is a Windows path."
        siblings = [p.name for p in folder.parent.iterdir()] if os.path.isdir(folder.parent) else []
        near = nearest_name(folder.name, siblings)
        return f"no such folder. {f'Did you mean {folder.parent / near}? ' if near else ''}{hint}"
    search = Search(deep=recursive)
    try:
        if next(search.files(folder), None):
            return None
        inner = [child.name for child in inner_folders(folder)]
    except OSError as error:
        return f"the folder cannot be read: {error.strerror}."
    message = f"no pictures in this folder (looked for {', '.join(KINDS)})."
    if unread := search.passed.unread:
        return f"{message} {len(unread)} of a kind that is not read: {cure_of(unread)}."
    if not inner or recursive:
        return message
    return f"{message} It is not searched deeper: set recursive = true, or name {inner[0]} itself."
