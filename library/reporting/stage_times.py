"""How long each stage of a run took, by the wall clock."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class StageTimes:
    """Seconds by stage, in the order in which they began. A stage inside another counts for itself.

    clock: seconds; the real one unless a caller brings another
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = {}
        self.open: list[str] = []
        self.since = clock()

    @property
    def current(self) -> str:
        """The stage in progress; "" between stages."""
        return self.open[-1] if self.open else ""

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Count the time inside for the stage of this name."""
        self._turn()
        self.open.append(name)
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self._turn()
            self.open.pop()

    def add(self, name: str, seconds: float) -> None:
        """Count time that was measured elsewhere; the stage in progress loses it."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if self.open:
            self.seconds[self.open[-1]] -= seconds

    def read(self) -> dict[str, float]:
        """Seconds of each stage until now; changes nothing, so that any thread may ask."""
        seconds, current, since = dict(self.seconds), self.current, self.since
        if current in seconds:
            seconds[current] += max(self.clock() - since, 0.0)
        return seconds

    def _turn(self) -> None:
        now = self.clock()
        if self.open:
            self.seconds[self.open[-1]] += now - self.since
        self.since = now


class Timed(Protocol):
    """What has stages: a trainer."""

    @property
    def times(self) -> StageTimes: ...


S = TypeVar("S", bound=Timed)


def timed(stage: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A method that counts as a stage of its name."""

    @functools.wraps(stage)
    def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.times.within(stage.__name__):
            return stage(self, *args, **kwargs)

    return run
