"""What was made of a file's modules, for people: how many of which kind, and how far they are off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from library.anima_runtime.family import ANIMA_FILES
from library.anima_workshop import tables
from library.system.tensor_writing import HASHES
from networks.readers import lines, verdicts
from networks.workshop.converting import DROPS, Made

IDLE_RULE = (
    "--rank, --energy, --error: no effect, nothing is approximated here (resize_lora.py cuts ranks)"
)


def counts(rows: Sequence[Made]) -> Iterator[str]:
    """A line for each kind before and after."""
    for (before, after), count in Counter((row.before, row.after) for row in rows).items():
        told = f"{before} -> {after}" if before != after else f"{after}"
        yield f"{count} modules: {told}"


def error_lines(rows: Sequence[Made]) -> Iterator[str]:
    """A table by kind of module of those that are off, and the error of all together."""
    off = [row for row in rows if row.error]
    if not off:
        yield "Exact in every module."
        return
    groups: dict[str, list[Made]] = {}
    for row in rows:
        groups.setdefault(tables.name_of(row.path), []).append(row)
    cells = [["modules", "count", "rank", "error", "largest"]]
    for name, members in groups.items():
        if not any(row.error for row in members):
            continue
        ranks = [row.rank for row in members if row.rank]
        largest = max(row.error for row in members)
        cells.append(
            [name, str(len(members)), tables.spread(ranks) if ranks else "-",
             tables.percent(total_error(members)), tables.percent(largest)]
        )  # fmt: skip
    yield from tables.lines(cells)
    if exact := sum(not row.error for row in rows):
        yield f"exact: {exact} modules"
    worst = max(off, key=lambda row: row.error)
    yield f"all: error {total_error(rows):.3%}; largest {worst.error:.3%}, {worst.path}"


def total_error(rows: Sequence[Made]) -> float:
    """Of all of them as one delta."""
    return tables.together([row.error for row in rows], [row.size for row in rows])


def dropped_lines(dropped: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What was left out as asked, and what there was nothing of."""
    for word, keys in dropped.items():
        yield f"left out: {DROPS[word]}, {len(keys)} keys" if keys else f"--drop {word}: nothing to drop"


def reader_lines(keys: Sequence[str], metadata: Mapping[str, str]) -> Iterator[str]:
    """Which programs take a file with these keys, and what they would drop."""
    yield "Which programs take it / 哪些程序能读取:"
    for line in lines(verdicts(keys, {**metadata, **HASHES}, ANIMA_FILES)):  # as it will be written
        yield f"  {line}"
