"""What merging adapters into a base model changed, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from library.anima_workshop import tables
from library.anima_workshop.base_merging import Changed

MUCH, EXACT = 0.5, 1e-6


def merged_lines(rows: Sequence[Changed]) -> Iterator[str]:
    """A table by kind of module, and all of them together."""
    groups: dict[str, list[Changed]] = {}
    for row in rows:
        groups.setdefault(tables.name_of(row.path), []).append(row)
    cells = [["modules", "count", "survive", "off"]]
    if any(row.error > EXACT for row in rows):
        cells += [line_of(name, members) for name, members in groups.items()]
    yield from tables.lines([*cells, line_of("all", rows)])
    yield "survive: share of the changed numbers that differ in the file; off: of what was added, rounding"
    if together(rows) > MUCH:
        yield (
            "Note: rounding changes most of what was added. A finer --save_precision keeps it, and so does "
            "the adapter beside the base."
        )


def line_of(name: str, rows: Sequence[Changed]) -> list[str]:
    changed, survived = sum(row.changed for row in rows), sum(row.survived for row in rows)
    share = tables.percent(survived / changed) if changed else "-"
    return [name, str(len(rows)), share, tables.percent(together(rows))]


def together(rows: Sequence[Changed]) -> float:
    return tables.together([row.error for row in rows], [row.size for row in rows])
