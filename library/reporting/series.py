"""A value by step, however long the run: neighbours are merged where there are too many points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Point = tuple[int, float | None, float | None, float | None]
"""(step, mean, lowest, highest); None where no value was finite."""

LIMIT = 1000
"""A series keeps from so many points up to twice as many."""
DIGITS = 6


class Series:
    """Points of one value in the order of the steps.

    stride:  how many values a point stands for
    points:  whole ones
    pending: values that wait for their point to be whole
    """

    def __init__(self) -> None:
        self.stride = 1
        self.points: list[Point] = []
        self.pending: list[Point] = []

    def add(self, step: int, value: float) -> None:
        seen = value if math.isfinite(value) else None
        point = (step, seen, seen, seen)
        if self.stride == 1:
            self.points.append(point)
        else:
            self.pending.append(point)
            if len(self.pending) == self.stride:
                self.points.append(merged(self.pending))
                self.pending = []
        if len(self.points) >= 2 * LIMIT:
            pairs = range(0, len(self.points), 2)
            self.points = [merged(self.points[i : i + 2]) for i in pairs]
            self.stride *= 2

    def shown(self) -> dict[str, Any]:
        """Columns for the page, rounded; the extremes only where a point stands for several values."""
        points = [*self.points, *([merged(self.pending)] if self.pending else [])]
        columns = {"steps": [point[0] for point in points], "mean": _column(points, 1)}
        if self.stride > 1:
            columns |= {"low": _column(points, 2), "high": _column(points, 3)}
        return columns

    def kept(self) -> dict[str, Any]:
        """All of it, for `restore`."""
        return {"stride": self.stride, "points": self.points, "pending": self.pending}

    @classmethod
    def restored(cls, kept: dict[str, Any]) -> Series:
        """The opposite of `kept`; a ValueError, KeyError or TypeError where it is something else."""
        self = cls()
        self.stride = kept["stride"]
        self.points, self.pending = ([point_of(p) for p in kept[n]] for n in ("points", "pending"))
        if type(self.stride) is not int or not 1 <= self.stride <= 2**40:
            raise ValueError(self.stride)
        return self


def point_of(value: Any) -> Point:
    step, *values = value
    if type(step) is not int or len(values) != 3:
        raise ValueError(value)
    if not all(value is None or type(value) in (int, float) for value in values):
        raise ValueError(value)
    return step, values[0], values[1], values[2]


def merged(points: Sequence[Point]) -> Point:
    """One point for several, at the last one's step."""
    means = [point[1] for point in points if point[1] is not None]
    if not means:
        return points[-1][0], None, None, None
    low = min(point[2] for point in points if point[2] is not None)
    high = max(point[3] for point in points if point[3] is not None)
    return points[-1][0], sum(means) / len(means), low, high


def rounded(value: float | None) -> float | None:
    """The value with the digits that a page shows; None for what is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")


def _column(points: Sequence[Point], place: int) -> list[float | None]:
    return [rounded(point[place]) for point in points]
