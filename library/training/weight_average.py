"""The exponential moving average of what is trained (EMA): a second file of each save.

It lies beside the parameters, in float32 whatever they are trained in, and is never what a step, a
validation or an evaluation uses.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from library.memory.swapping import Swap, in_ram
from library.memory.visits import Visits

if TYPE_CHECKING:
    from library.settings.run_config import AverageOptions
    from networks.trained import Trained


def average_of(options: AverageOptions, network: Trained) -> WeightAverage | None:
    """Of what is trained, if the options ask for one."""
    if not options.ema_decay:
        return None
    trained, how = network.get_trainable_params(), (options.ema_decay, options.ema_start_step)
    if network.swap is None:
        return WeightAverage(trained, *how)
    away = {n for n, (weight, _) in enumerate(network.pairs()) if id(weight) in network.swap.numbers}
    return SwappedAverage(trained, *how, network.swap, away)


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


class SwappedAverage(WeightAverage):
    """The same where some parameters wait in RAM: so do their averages, which are changed on the device.

    away: the numbers of those parameters
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], decay: float, start_step: int, swap: Swap,
        away: set[int],
    ) -> None:  # fmt: skip
        super().__init__(parameters, decay, start_step)
        self.swap, self.away = swap, away
        self.visits = Visits(swap.device, self._homes, swap.lane)
        swap.before_reading.append(self.visits.settle)

    @torch.no_grad()
    def update(self, step: int) -> None:
        if not self.tensors:
            self.swap.settle()
            super().update(step)
            self._pin()
        elif step >= self.start_step:
            self.updates += 1
            self.visits.begin()
            for number, parameter in enumerate(self.parameters):
                average, now = self.tensors[number], parameter.detach()
                if number in self.away:
                    average, now = self.visits.come(number)
                torch._foreach_lerp_([average], [now.float()], 1 - self.decay_at(self.updates))
                if number in self.away:
                    self.visits.leave(number, [(self.tensors[number], average)])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        self.swap.settle()
        with super().in_place():
            yield

    def kept(self) -> dict[str, Any]:
        self.swap.settle()
        return super().kept()

    def take_back(self, kept: Mapping[str, Any]) -> None:
        self.swap.settle()
        super().take_back(kept)
        self._pin()

    def _pin(self) -> None:
        pinned = self.swap.device.type == "cuda"
        for number in self.away if self.tensors else ():
            self.tensors[number] = in_ram(self.tensors[number], pinned=pinned)

    def _homes(self, key: Hashable) -> list[Tensor]:
        assert isinstance(key, int)
        return [self.tensors[key], self.parameters[key].data]
