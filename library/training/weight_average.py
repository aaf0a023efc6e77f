"""The exponential moving average of what is trained (EMA): a second file of each save.

It lies beside the parameters, in float32 whatever they are trained in, and is never what a step, a
validation or an evaluation uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of parameters over the updates from one on.

    parameters: in an order that a resumed run has again
    decay:      the share of the average that stays at an update; its first ones keep less, see decay_at
    start_step: the first update that counts, from 1; 0 is the first one too
    tensors:    the average, float32, on the parameters' devices; none before the first update that counts
    updates:    how many changed it
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float, start_step: int) -> None:
        self.parameters = list(parameters)
        self.decay, self.start_step = decay, start_step
        self.tensors: list[Tensor] = []
        self.updates = 0

    def decay_at(self, update: int) -> float:
        """The share that stays at an update (from 1): at most (1 + n) / (10 + n), so that the average
        leaves its beginning soon. Source: TensorFlow's ExponentialMovingAverage, num_updates."""
        return min(self.decay, (1 + update) / (10 + update))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Count the parameters as they are after update `step` (from 1); the host does not wait."""
        if step < self.start_step:
            return
        if not self.tensors:
            self.tensors = [p.detach().to(torch.float32, copy=True) for p in self.parameters]
            return
        self.updates += 1
        now = [p.detach().float() for p in self.parameters]
        torch._foreach_lerp_(self.tensors, now, 1 - self.decay_at(self.updates))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While inside, the parameters hold the average; afterwards what they held, the same memory."""
        held = [parameter.data for parameter in self.parameters]
        try:
            for parameter, average in zip(self.parameters, self.tensors, strict=True):
                parameter.data = average
            yield
        finally:
            for parameter, tensor in zip(self.parameters, held):
                parameter.data = tensor

    def kept(self) -> dict[str, Any]:
        """For a state: plain values and tensors."""
        return {"updates": self.updates, "tensors": list(self.tensors)}

    def fits(self, kept: Mapping[str, Any]) -> bool:
        """Whether what was kept is of parameters like these."""
        shapes = [parameter.shape for parameter in self.parameters]
        return not kept["tensors"] or [tensor.shape for tensor in kept["tensors"]] == shapes

    def take_back(self, kept: Mapping[str, Any]) -> None:
        """The opposite of `kept`, of the same parameters."""
        self.updates = kept["updates"]
        self.tensors = [
            tensor.to(parameter.device, torch.float32, copy=True)
            for parameter, tensor in zip(self.parameters, kept["tensors"])
        ]
