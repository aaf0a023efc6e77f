"""Values of each step, kept on the device until a log point, then read in one transfer."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor


class StepLogs:
    """Buffers scalars per step without reading them; `flush` is the one host synchronisation.

    window: number of steps in the running mean of the loss
    """

    def __init__(self, window: int) -> None:
        self.recent: deque[float] = deque(maxlen=window)
        self.steps: list[int] = []
        self.tensors: list[dict[str, Tensor]] = []
        self.numbers: list[dict[str, float]] = []

    def add(self, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        """Keep one step's scalar tensors (detached, any device) and plain numbers."""
        self.steps.append(step)
        self.tensors.append(dict(tensors))
        self.numbers.append(dict(numbers))

    def flush(self) -> list[tuple[int, dict[str, float]]]:
        """All rows since the last flush, with the running mean as loss/average; empties the buffer."""
        flat = [value.float() for row in self.tensors for value in row.values()]
        values = iter(torch.stack(flat).tolist() if flat else [])
        rows = []
        for step, tensors, numbers in zip(self.steps, self.tensors, self.numbers):
            row = {name: next(values) for name in tensors}
            self.recent.append(row["loss/current"])
            row["loss/average"] = sum(self.recent) / len(self.recent)
            rows.append((step, {**row, **numbers}))
        self.steps, self.tensors, self.numbers = [], [], []
        return rows
