"""Modules that are much weaker or stronger than others of their kind in the same file."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

T = TypeVar("T", bound=Hashable)
FEWEST = 4
"""Fewer of a kind tell nothing of what is usual."""
DEAD = 1e-3
EXPLODED = 10.0
DEVIATIONS = 10.0
NORMAL = 1.4826
"""Standard deviations of a normal distribution in its median absolute deviation."""


@dataclass(frozen=True)
class Outlier:
    """ratio: of a module's norm to the median of its kind; None where that is 0"""

    path: str
    norm: float
    ratio: float | None


@dataclass(frozen=True)
class Outliers:
    """dead:     of norm 0, or below DEAD times the median of their kind
    exploded: above EXPLODED times the median, and DEVIATIONS standard deviations (robust) above it
    """

    dead: Sequence[Outlier]
    exploded: Sequence[Outlier]


def outliers(norms: Mapping[str, float], kinds: Mapping[str, T]) -> Outliers:
    """norms: of the modules' deltas; kinds: what each is compared with. Medians are of those not 0."""
    groups: dict[T, list[str]] = {}
    for path in norms:
        groups.setdefault(kinds[path], []).append(path)
    dead: list[Outlier] = []
    exploded: list[Outlier] = []
    for paths in groups.values():
        middle, limit = usual(norms[path] for path in paths)
        for path in paths:
            found = Outlier(path, norms[path], norms[path] / middle if middle else None)
            if found.norm == 0 or (found.ratio is not None and found.ratio < DEAD):
                dead.append(found)
            elif limit is not None and found.norm > limit:
                exploded.append(found)
    return Outliers(dead, exploded)


def usual(norms: Iterable[float]) -> tuple[float, float | None]:
    """(median, above which a norm is exploded) of the norms that are not 0; 0 and None of too few."""
    living = [norm for norm in norms if norm]
    if len(living) < FEWEST:
        return 0.0, None
    middle = median(living)
    deviation = NORMAL * median(abs(norm - middle) for norm in living)
    return middle, max(EXPLODED * middle, middle + DEVIATIONS * deviation)
