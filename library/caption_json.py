"""Metadata files of captions: {"picture": {"caption": "...", "tags": "..."}, ...}, sd-scripts' format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.errors import DatasetError, Problem

READ = ("caption", "tags")


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
        texts = {name: values.get(name) for name in READ}
        for name, value in texts.items():
            if value is not None and not isinstance(value, str):
                problems.append(Problem(f"{name} is not text. Use quotes.", f"{picture!r:.60}"))
                texts[name] = None
        unread |= set(values) - set(READ)
        entries[picture] = CaptionEntry(**texts)
    if not document:
        problems.append(Problem("has no entries: there is nothing to train on."))
    if problems:
        raise DatasetError(problems, source=str(path))
    return entries, tuple(sorted(unread))


def _load(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        message = f"cannot be read: {error.strerror}."
    except UnicodeDecodeError:
        message = "is not UTF-8 text. Save it as UTF-8."
    except json.JSONDecodeError as error:
        message = f"is not valid JSON: {error.msg} (line {error.lineno})."
    except (RecursionError, ValueError) as error:
        message = f"is not a metadata file ({error})."
    else:
        if isinstance(document, dict):
            return document
        message = 'expected an object: {"picture": {"caption": "..."}, ...}.'
    raise DatasetError(message, source=str(path))
