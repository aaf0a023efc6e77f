"""Metadata files of captions: {"picture": {"caption": "...", "tags": "..."}, ...}, sd-scripts' format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.errors import DatasetError, Problem, as_utf8
from library.system.text_files import TextFileError, parse_json, read_text

READ_KEYS = ("caption", "tags")


@dataclass(frozen=True)
class CaptionEntry:
    """What the file says of one picture; None where it says nothing."""

    caption: str | None = None
    tags: str | None = None

    def text(self, separator: str, *, several_lines: bool) -> str | None:
        """Caption and tags as one caption, as sd-scripts puts them together.

        The tags follow the caption; where lines are alternatives (wildcards), they follow each line.
        """
        if not self.tags:
            return self.caption
        if not self.caption:
            return self.tags
        if not several_lines:
            return self.caption + separator + self.tags
        tags = self.tags.replace("\n", separator)
        lines = [line for line in self.caption.split("\n") if line.strip()]
        return "\n".join(line + separator + tags for line in lines) if lines else tags


def read_caption_json(path: str | Path) -> tuple[dict[str, CaptionEntry], tuple[str, ...]]:
    """Entries by picture, and the names of keys that are not read.

    Raises DatasetError with every entry that is not as expected.
    """
    document = _load(Path(path))
    problems, entries, unread = [], {}, set()
    for picture, values in document.items():
        if not isinstance(values, dict):
            problems.append(Problem('expected {"caption": "..."}.', f"{picture!r:.60}"))
            continue
        texts = {name: values.get(name) for name in READ_KEYS}
        for name, value in texts.items():
            if value is not None and not isinstance(value, str):
                problems.append(Problem(f"{name} is not text. Use quotes.", f"{picture!r:.60}"))
                texts[name] = None
            elif value is not None and as_utf8(value) != value:
                message = f"{name} holds half a character, which is no text. Write it anew."
                problems.append(Problem(message, f"{picture!r:.60}"))
        unread |= set(values) - set(READ_KEYS)
        entries[picture] = CaptionEntry(**texts)
    if not document:
        problems.append(Problem("has no entries: there is nothing to train on."))
    if problems:
        raise DatasetError(problems, source=str(path))
    return entries, tuple(sorted(unread))


def _load(path: Path) -> Mapping[str, Any]:
    try:
        document = parse_json(read_text(path))
    except (FileNotFoundError, TextFileError) as error:
        missing = isinstance(error, FileNotFoundError)
        message = "no such file." if missing else str(error)
        raise DatasetError(message, source=str(path)) from error
    if not isinstance(document, dict):
        message = 'expected an object: {"picture": {"caption": "..."}, ...}.'
        raise DatasetError(message, source=str(path))
    return document
