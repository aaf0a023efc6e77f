"""Tables for people, and the rows that modules of one name share."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence

from library.errors import visible

NUMBER = re.compile(r"\bblocks\.\d+\.|\blayers\.\d+\.")


def name_of(path: str) -> str:
    """A module without the number of its block, e.g. blocks.*.mlp.layer1."""
    return NUMBER.sub(lambda found: f"{found[0].partition('.')[0]}.*.", path)


def lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells, the first row being the heading, as aligned lines: words left, numbers right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [visible(cell) for cell in row]
        right = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:])]
        yield "  ".join([cells[0].ljust(widths[0]), *right]).rstrip()


def spread(values: Iterable[int]) -> str:
    """Several ranks, e.g. 4 or 2..16."""
    low, high = min(values := list(values)), max(values)
    return str(low) if low == high else f"{low}..{high}"


def together(errors: Iterable[float], norms: Iterable[float]) -> float:
    """The relative error of several deltas as one."""
    pairs = list(zip(errors, norms))
    whole = math.fsum(norm**2 for _, norm in pairs)
    lost = math.fsum((error * norm) ** 2 for error, norm in pairs)
    return math.sqrt(lost / whole) if whole else 0.0


def bytes_text(size: int) -> str:
    """E.g. 54 kB, 183 MB."""
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e3:.0f} kB"


def percent(share: float) -> str:
    """With two digits that count, e.g. 12 %, 3.1 %, 0.052 %; tiny ones are rounding."""
    return "0 %" if share < 5e-7 else f"{100 * share:.2g} %" if share < 0.995 else "100 %"
