"""Values of each step, kept on the device until a log point, then read in one transfer and shown."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from library.data.data_types import StepResult


@dataclass(frozen=True)
class StepSamples:
    """The samples of one step over its micro-steps, in one order: picture keys, losses, sigmas."""

    keys: Sequence[str] = ()
    losses: Sequence[float] = ()
    sigmas: Sequence[float] = ()


@dataclass(frozen=True)
class StepRow:
    """One step, read. values: by log key; a monitor adds its own before they are written."""

    step: int
    values: dict[str, float]
    samples: StepSamples = StepSamples()


@dataclass(frozen=True)
class UnreadStep:
    """One step whose tensors are still where they were computed. losses, sigmas: (B,) per micro-step."""

    step: int
    scalars: Mapping[str, Tensor]
    numbers: Mapping[str, float]
    keys: tuple[str, ...]
    losses: tuple[Tensor, ...]
    sigmas: tuple[Tensor, ...]

    def tensors(self) -> list[Tensor]:
        """In the order in which `read` takes their values."""
        return [*self.scalars.values(), *self.losses, *self.sigmas]

    def read(self, values: Iterator[float]) -> StepRow:
        scalars = {name: next(values) for name in self.scalars}
        losses, sigmas = (tuple(islice(values, len(self.keys))) for _ in range(2))
        return StepRow(
            self.step, {**scalars, **self.numbers}, StepSamples(self.keys, losses, sigmas)
        )


class StepLogs:
    """Buffers steps without reading them; `flush` is the one host synchronisation.

    window: number of steps in the running mean of the loss
    """

    def __init__(self, window: int) -> None:
        self.recent: deque[float] = deque(maxlen=window)
        self.unread: list[UnreadStep] = []

    def add(
        self,
        step: int,
        scalars: Mapping[str, Tensor],
        numbers: Mapping[str, float | Tensor],
        results: Sequence[StepResult] = (),
    ) -> None:
        """Keep one step: scalar tensors (detached, any device), numbers or more such, samples' losses."""
        keys = tuple(key for result in results for key in result.keys)
        losses = tuple(result.per_sample for result in results)  # not the loss: it holds a graph
        sigmas = tuple(result.sigma for result in results)
        late = {name: value for name, value in numbers.items() if isinstance(value, Tensor)}
        plain = {n: value for n, value in numbers.items() if not isinstance(value, Tensor)}
        self.unread.append(UnreadStep(step, {**scalars, **late}, plain, keys, losses, sigmas))

    def flush(self) -> list[StepRow]:
        """All steps since the last flush; empties the buffer.

        loss/current is the mean over all processes. loss/average is the running mean of the losses
        that are finite, so that one lost step does not hide the others.
        """
        self._share_losses()
        flat = [t.float().reshape(-1) for unread in self.unread for t in unread.tensors()]
        values = iter(torch.cat(flat).tolist() if flat else [])
        rows = [unread.read(values) for unread in self.unread]
        self.unread = []
        for row in rows:
            if math.isfinite(row.values["loss/current"]):
                self.recent.append(row.values["loss/current"])
            mean = sum(self.recent) / len(self.recent) if self.recent else math.nan
            row.values["loss/average"] = mean
        return rows

    def _share_losses(self) -> None:
        """Average the losses of the steps over the processes, in one exchange."""
        from accelerate.state import PartialState
        from accelerate.utils import reduce

        if not self.unread or PartialState().num_processes == 1:
            return
        losses = torch.stack([step.scalars["loss/current"] for step in self.unread])
        means = reduce(losses, reduction="mean").unbind()
        self.unread = [
            replace(step, scalars={**step.scalars, "loss/current": mean})
            for step, mean in zip(self.unread, means)
        ]
