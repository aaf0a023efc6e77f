"""A draft as the text of train_args.toml and dataset.toml, and both files written, or neither."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from library.errors import OutputError, Problem
from library.settings.config_text import assignment
from library.system.system_errors import output_errors
from library.utils import atomic_write
from tools.importers.draft import ARGUMENTS, LOST, SECRET, UNKNOWN, Draft, Finding

TITLES = {
    LOST: "not carried over / 未能保留",
    UNKNOWN: "unknown there / 未知的键",
    SECRET: "left out, since they are secret / 出于保密未写入",
}
LONGEST = 160


def toml_value(value: Any) -> str:
    """A value that both tomllib and the older toml package read the same."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{inline_key(k)} = {toml_value(v)}' for k, v in value.items())}}}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str) and "\\" in value and "'" not in value and value.isprintable():
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def inline_key(key: str) -> str:
    return key if key.isascii() and key.replace("_", "").isalnum() else json.dumps(key)


def lines_of(table: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in table.items())


def heading(source: Path) -> str:
    return f"# converted from {source.name} / 由 {source.name} 转换\n"


def argument_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def options(draft: Draft) -> dict[str, Any]:
    """What stands in train_args.toml, the lists of arguments at the end."""
    train = dict(draft.train)
    for table, name in ARGUMENTS.items():
        if values := draft.table(table):
            write = assignment if table != "network" else lambda k, v: f"{k}={argument_text(v)}"
            train[name] = [write(key, value) for key, value in values.items()]
    return train


def train_args(draft: Draft, source: Path) -> str:
    """The text of train_args.toml; what was not carried over stands at its end as comments."""
    return f"{heading(source)}{lines_of(options(draft))}{''.join(comments(draft))}"


def comments(draft: Draft) -> Iterator[str]:
    for status, title in TITLES.items():
        if found := draft.of(status):
            yield f"\n# {title}:\n"
            yield from (f"#   {line}\n" for line in map(finding_line, found))


def finding_line(found: Finding) -> str:
    """A key, its value unless it is secret, what became of it and why, on one line."""
    line = found.key
    if found.status == SECRET:
        return line
    if found.key:
        line += f" = {shown(found.value)}"
    if found.became:
        line += f"  ->  {found.became}" if line else found.became
    if found.why:
        line += f": {found.why}" if not found.became else f" ({found.why})"
    return " ".join(line.split())


def shown(value: Any) -> str:
    words = json.dumps(value, ensure_ascii=False, default=str)
    return words if len(words) <= LONGEST else f"{words[:LONGEST]}..."


def dataset_file(draft: Draft, source: Path) -> str:
    """The text of dataset.toml; "" where the draft has no folders."""
    if not draft.subsets:
        return ""
    parts = [heading(source)]
    if general := draft.table("general"):
        parts.append(f"[general]\n{lines_of(general)}\n")
    for dataset, subsets in grouped(draft):
        parts.append(f"[[datasets]]\n{lines_of(dataset)}\n")
        parts += [f"[[datasets.subsets]]\n{lines_of(subset)}\n" for subset in subsets]
    return "".join(parts).rstrip("\n") + "\n"


def grouped(draft: Draft) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Datasets with their subsets: those of one dataset whose own keys of datasets agree together."""
    groups: list[tuple[int, dict[str, Any], list[dict[str, Any]]]] = []
    for place, subset in sorted(draft.subsets.items()):
        dataset = draft.datasets.get(place[0], {}) | draft.of_subset.get(place, {})
        for number, known, subsets in groups:
            if (number, known) == (place[0], dataset):
                subsets.append(subset)
                break
        else:
            groups.append((place[0], dataset, [subset]))
    return [(dataset, subsets) for _, dataset, subsets in groups]


def check_free(paths: list[Path], overwrite: bool) -> None:
    """Raise OutputError for files that are there, unless they may be replaced."""
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        message = "is there already. Add --overwrite, or name another --output_dir."
        raise OutputError([Problem(message, source=str(path)) for path in there])


def write_all(contents: Mapping[Path, str]) -> None:
    """Write all files, or none: where one cannot be written the others are as they were. OutputError."""
    before = {path: path.read_bytes() if path.is_file() else None for path in contents}
    done: list[Path] = []
    try:
        for path, content in contents.items():
            with output_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as temporary:
                    temporary.write_text(content, encoding="utf-8", newline="\n")
                done.append(path)
    except BaseException:
        for path in done:
            with contextlib.suppress(OSError):
                restore(path, before[path])
        raise


def restore(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
