"""The page about adapter files: figures, findings, heat maps by block and layer, curves and tables.

One HTML file that needs no other, as the report of a run is. What stands in files (names, metadata) is
data for it. Every text is there in both languages; the reader chooses on the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from library.anima_workshop.findings import SEVERITIES, Finding, worst
from library.reporting.page import page
from library.reporting.strength import place_of
from library.reporting.texts import Text

Cell = Text | str | float | None
GENERATOR = "adapter page v1"
"""Another than that of runs, whose index would else take such a page for an old one of its own."""
PLACES_SHOWN = 40
"""Of a finding. The JSON of a tool has them all."""


@dataclass(frozen=True)
class HeatMap:
    """A figure of each module, by block and layer.

    note:   what the figure is, with its unit
    paths:  the modules
    values: what is measured, or whose it is (a file's name) -> a value for each module; None where it
            has none. The reader chooses among several, which have one scale.
    most:   the value of the full colour; the largest there is if None. Values below 0 get another colour
    """

    title: Text
    note: Text
    paths: Sequence[str]
    values: Mapping[str, Sequence[float | None]]
    most: float | None = None

    def data(self) -> dict[str, Any]:
        return {
            "kind": "heat",
            "title": shown(self.title),
            "note": shown(self.note),
            "places": [place_of(path) for path in self.paths],
            "values": [[name, list(map(finite, values))] for name, values in self.values.items()],
            "most": self.most,
        }


@dataclass(frozen=True)
class Curves:
    """Lines over 1, 2, 3, ... across: what is counted there; lines: name -> a value for each"""

    title: Text
    note: Text
    across: Text
    lines: Mapping[str, Sequence[float | None]]

    def data(self) -> dict[str, Any]:
        return {
            "kind": "curves",
            "title": shown(self.title),
            "note": shown(self.note),
            "across": shown(self.across),
            "lines": [[name, list(map(finite, values))] for name, values in self.lines.items()],
        }


@dataclass(frozen=True)
class Table:
    """Rows under columns, which the reader can sort. is_closed: opened by a click"""

    title: Text
    columns: Sequence[Text]
    rows: Sequence[Sequence[Cell]]
    is_closed: bool = False

    def data(self) -> dict[str, Any]:
        return {
            "kind": "table",
            "title": shown(self.title),
            "columns": list(map(shown, self.columns)),
            "rows": [list(map(shown, row)) for row in self.rows],
            "closed": self.is_closed,
        }


@dataclass(frozen=True)
class AdapterPage:
    """title: names of files; figures: what is told first, (name, value); parts: in their order

    intro:   a sentence or two under the figures
    verdict: what stands beside the title; how serious the findings are if None
    """

    title: str
    figures: Sequence[tuple[Text, Cell]]
    findings: Sequence[Finding]
    parts: Sequence[HeatMap | Curves | Table]
    intro: Text | None = None
    verdict: Text | None = None

    def html(self) -> str:
        return page(self.title, "adapters.js", {"adapters": self.data()}, generator=GENERATOR)

    def data(self) -> dict[str, Any]:
        severity = worst(self.findings)
        verdict = SEVERITIES[severity] if severity else Text("healthy", "健康")
        return {
            "title": self.title,
            "verdict": {**shown(self.verdict or verdict), "severity": int(severity)},
            "figures": [[shown(name), shown(value)] for name, value in self.figures],
            "intro": shown(self.intro),
            "findings": list(map(finding_data, self.findings)),
            "parts": [part.data() for part in self.parts],
        }


def finding_data(finding: Finding) -> dict[str, Any]:
    return {
        "severity": int(finding.severity),
        "name": shown(SEVERITIES[finding.severity]),
        "text": shown(finding.text),
        "advice": shown(finding.advice),
        "where": list(finding.where[:PLACES_SHOWN]),
        "more": max(0, len(finding.where) - PLACES_SHOWN),
    }


def shown(cell: Cell) -> Any:
    """As the page's program takes it: what has two languages is an object of them."""
    if isinstance(cell, Text):
        return {"en": cell.english, "zh": cell.chinese}
    return finite(cell) if isinstance(cell, float) else cell


def finite(value: float | None) -> float | None:
    """JSON has no other numbers."""
    return value if value is not None and math.isfinite(value) else None
