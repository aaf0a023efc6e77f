"""What each picture's loss did over the run, at like sigma: which never learn, which are memorised.

Losses at different sigma differ many times over, so that a picture's plain mean says mostly where its
sigmas fell. Here every loss is compared with what is usual at its sigma: the geometric mean of all
pictures over the whole run, in steps of 0.05. Sums are kept and no samples, so that processes can be
added up and a run that goes on from a state counts on.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from library.errors import as_utf8
from library.utils import position_seed

if TYPE_CHECKING:
    from library.watching.step_logs import StepRow

PARTS, BINS = 4, 20
"""Of the run's steps, and of sigma's range from 0 to 1."""
CLEARLY = 1.25
"""How many times above or below the others a picture is at least, to be judged."""
ERRORS = 3.0
"""And how many standard errors."""
NEVER_LEARNS, MEMORISED = "never learns", "memorised"
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
"""With these a spreadsheet takes a text for a formula."""
COLUMNS = (
    "picture", "dataset", "samples", "loss",
    *(f"loss_{part + 1}_of_{PARTS}" for part in range(PARTS)), "change", "verdict",
)  # fmt: skip


@dataclass
class Sums:
    """Of the logarithms of losses: how many, their sum, the sum of their squares."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, count: int, total: float, squares: float) -> None:
        self.count += count
        self.total += total
        self.squares += squares

    @property
    def mean(self) -> float:
        return self.total / self.count


@dataclass(frozen=True)
class LedgerRow:
    """One picture. Ratios are to what is usual at its samples' sigmas: 1 is as usual.

    loss:    over the whole run; parts: over each quarter of it, None where the picture was not met
    change:  the last quarter in which it was met over the first, None if that is the same
    verdict: NEVER_LEARNS, MEMORISED, or ""
    """

    key: str
    samples: int
    loss: float
    parts: tuple[float | None, ...]
    change: float | None
    verdict: str = ""

    def cells(self) -> tuple[str | int | float | None, ...]:
        """By COLUMNS; the name and the dataset ("<dataset>.<subset>") are the key's two halves."""
        place, _, name = self.key.partition("/")
        ratios = (self.loss, *self.parts, self.change)
        shown = (None if ratio is None else round(ratio, 4) for ratio in ratios)
        return name, place, self.samples, *shown, self.verdict


@dataclass
class Standing:
    """A picture's logarithms above what is usual, by part of the run."""

    parts: dict[int, Sums] = field(default_factory=lambda: defaultdict(Sums))

    @property
    def first(self) -> Sums:
        return self.parts[min(self.parts)]

    @property
    def last(self) -> Sums:
        return self.parts[max(self.parts)]

    @property
    def change(self) -> float | None:
        return self.last.mean - self.first.mean if len(self.parts) > 1 else None


class PictureLedger:
    """Sums of log losses by picture, part of the run and sigma.

    pictures:    keys, in an order that a resumed run has again
    total_steps: of the run; its quarters are the parts
    """

    def __init__(self, pictures: Sequence[str], total_steps: int) -> None:
        self.pictures = list(pictures)
        self.numbers = {key: number for number, key in enumerate(self.pictures)}
        self.total_steps = total_steps
        self.sums: dict[tuple[int, int, int], Sums] = defaultdict(Sums)

    @property
    def fingerprint(self) -> int:
        """A number for the pictures and their order."""
        return position_seed(*self.pictures)

    def add(self, rows: Iterable[StepRow]) -> None:
        """Count the samples of steps that were read; those whose loss is 0 or not finite do not count."""
        for row in rows:
            part = min(PARTS - 1, (row.step - 1) * PARTS // max(1, self.total_steps))
            samples = row.samples
            for key, loss, sigma in zip(samples.keys, samples.losses, samples.sigmas):
                if 0 < loss < math.inf:
                    place = min(BINS - 1, int(sigma * BINS))
                    logarithm = math.log(loss)
                    cell = self.sums[self.numbers[key], part, place]
                    cell.add(1, logarithm, logarithm**2)

    def kept(self) -> Tensor:
        """All sums as rows (picture, part, bin of sigma, count, total, squares); float64 on the CPU."""
        rows = [
            (*place, sums.count, sums.total, sums.squares)
            for place, sums in sorted(self.sums.items())
        ]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)

    def take(self, kept: Tensor) -> None:
        """Add what another ledger of the same pictures has kept."""
        for picture, part, place, count, total, squares in kept.tolist():
            self.sums[int(picture), int(part), int(place)].add(int(count), total, squares)

    def usual(self) -> dict[int, float]:
        """The mean log loss of all pictures over the run, by bin of sigma."""
        bins: dict[int, Sums] = defaultdict(Sums)
        for (_, _, place), sums in sorted(self.sums.items()):
            bins[place].add(sums.count, sums.total, sums.squares)
        return {place: sums.mean for place, sums in bins.items()}

    def standings(self) -> dict[int, Standing]:
        usual, found = self.usual(), defaultdict[int, Standing](Standing)
        for (picture, part, place), sums in sorted(self.sums.items()):
            level = usual[place]
            squares = sums.squares - 2 * level * sums.total + sums.count * level**2
            above = sums.total - sums.count * level
            found[picture].parts[part].add(sums.count, above, squares)
        return dict(found)

    def table(self) -> list[LedgerRow]:
        """The pictures that were met, those with the highest loss in their last quarter first."""
        standings = self.standings()
        verdicts = judge(standings)
        order = sorted(standings, key=lambda number: -standings[number].last.mean)
        return [
            row_of(self.pictures[number], standings[number], verdicts.get(number, ""))
            for number in order
        ]


def row_of(key: str, standing: Standing, verdict: str) -> LedgerRow:
    count = sum(sums.count for sums in standing.parts.values())
    total = sum(sums.total for sums in standing.parts.values())
    parts = tuple(
        math.exp(standing.parts[part].mean) if part in standing.parts else None
        for part in range(PARTS)
    )
    change = standing.change
    change = None if change is None else math.exp(change)
    return LedgerRow(key, count, math.exp(total / count), parts, change, verdict)


def judge(standings: dict[int, Standing]) -> dict[int, str]:
    """Which pictures stand out, by number.

    never learns: at its end clearly above the others, and it fell no more than they did
    memorised:    at its end clearly below the others, because it fell clearly more than they did
    Clearly: by CLEARLY and by ERRORS standard errors, from how much one picture's samples scatter.
    """
    moved = {n: s for n, s in standings.items() if s.change is not None}
    scatter = scatter_within(moved.values())
    if len(moved) < 3 or scatter is None:
        return {}
    usual_level = statistics.median(s.last.mean for s in moved.values())
    usual_change = statistics.median(s.change for s in moved.values() if s.change is not None)
    found = {}
    for number, standing in moved.items():
        assert standing.change is not None, "these have moved"
        level, change = standing.last.mean - usual_level, standing.change - usual_change
        of_level = ERRORS * scatter / math.sqrt(standing.last.count)
        of_change = ERRORS * scatter * math.sqrt(1 / standing.last.count + 1 / standing.first.count)
        if level > max(math.log(CLEARLY), of_level) and change >= 0:
            found[number] = NEVER_LEARNS
        elif level < -max(math.log(CLEARLY), of_level) and change < -of_change:
            found[number] = MEMORISED
    return found


def scatter_within(standings: Iterable[Standing]) -> float | None:
    """The standard deviation of a picture's samples within a part; None where none was met twice."""
    freedom, squares = 0, 0.0
    for sums in (each for standing in standings for each in standing.parts.values()):
        freedom += sums.count - 1
        squares += max(0.0, sums.squares - sums.total**2 / sums.count)
    return math.sqrt(squares / freedom) if freedom else None


def csv_text(rows: Iterable[LedgerRow]) -> str:
    """The table for a spreadsheet; begins with the mark by which Excel knows UTF-8."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows([harmless(cell) for cell in row.cells()] for row in rows)
    return f"\ufeff{text.getvalue()}"


def harmless(cell: str | float | None) -> str | float | None:
    """A cell that no spreadsheet runs: a text that looks like a formula begins with an apostrophe."""
    if not isinstance(cell, str):
        return cell
    text = as_utf8(cell)
    return f"'{text}" if text.startswith(FORMULA_SIGNS) else text
