"""What is told of pictures and captions: what it is, where it stands, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from library.data.picture_folders import some
from library.reporting.texts import Text


@dataclass(frozen=True)
class Kind:
    """One kind of thing worth mending. name: stable, for programs; cure: what to do"""

    name: str
    title: Text
    cure: Text


@dataclass(frozen=True)
class Place:
    """Where one finding stands.

    pictures: those that it is about
    files:    names of the files to mend
    words:    what stands there, in the user's own words, which no bug report may have; "" when nothing
    """

    pictures: tuple[Path, ...]
    files: tuple[str, ...]
    words: str = ""


@dataclass(frozen=True)
class Finding:
    """All places of one kind. subset: the folder it is of; "" where it is of the whole run"""

    kind: Kind
    places: tuple[Place, ...]
    subset: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """Each file once, in order."""
        return tuple(dict.fromkeys(name for place in self.places for name in place.files))


def found(kind: Kind, places: Iterable[Place], subset: str = "") -> Iterator[Finding]:
    """A finding, if there is any place."""
    if listed := tuple(places):
        yield Finding(kind, listed, subset)


def report_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """For a report that may be published: kinds, numbers, names of files and cures; no words of captions."""
    for finding in findings:
        where = f"{finding.subset}: " if finding.subset else ""
        files = f" ({len(finding.places)}): {some(finding.files)}" if finding.files else ""
        yield f"{where}{finding.kind.title.english}{files}"
        yield f"  {finding.kind.cure.english}"
