"""The findings as a page: one HTML file with the pictures and the words that they are about.

What others named or wrote (files, captions) is data for it, as on every page.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from library.linting.findings import Finding, Place
from library.previews.pictures import small_jpeg
from library.reporting.page import page
from library.reporting.texts import Text

GENERATOR = "findings page v1"
SIDE = 240
PICTURES_OF_A_PLACE, PLACES_SHOWN = 12, 100
BUDGET = 12 * 2**20
"""Bytes of all the pictures in one page."""


class Thumbnails:
    """Small copies of pictures, each once, as long as there is room for them."""

    def __init__(self) -> None:
        self.numbers: dict[Path, int | None] = {}
        self.copies: list[str] = []
        self.left = BUDGET

    def number_of(self, path: Path) -> int | None:
        """The place of its copy in `copies`; None where it has none."""
        if path not in self.numbers:
            copy = small_jpeg(path, SIDE) if self.left > 0 else ""
            self.left -= len(copy)
            self.numbers[path] = len(self.copies) if copy else None
            self.copies += [copy] * bool(copy)
        return self.numbers[path]


def findings_page(title: str, findings: Sequence[Finding], pictures: int) -> str:
    """The page's text. pictures: how many were looked at"""
    copies = Thumbnails()
    told = [finding_data(finding, copies) for finding in findings]
    data = {"title": title, "looked_at": pictures, "findings": told, "pictures": copies.copies}
    return page(title, "findings.js", {"findings": data}, generator=GENERATOR)


def finding_data(finding: Finding, copies: Thumbnails) -> dict[str, Any]:
    return {
        "title": both(finding.kind.title),
        "cure": both(finding.kind.cure),
        "subset": finding.subset,
        "count": len(finding.places),
        "places": [place_data(place, copies) for place in finding.places[:PLACES_SHOWN]],
    }


def place_data(place: Place, copies: Thumbnails) -> dict[str, Any]:
    shown = place.pictures[:PICTURES_OF_A_PLACE]
    return {
        "files": list(place.files),
        "words": place.words,
        "pictures": [copies.number_of(path) for path in shown],
    }


def both(text: Text) -> dict[str, str]:
    return {"en": text.english, "zh": text.chinese}
