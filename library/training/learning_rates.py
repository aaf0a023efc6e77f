"""The learning rates that act in an update, by log key: the schedule's, and what an optimizer makes of them.

lr/<group> is the rate of a group; lr/d*lr/<group>, as sd-scripts calls it, what D-Adaptation and Prodigy
make of it with the factor d that they found. What lies on a device stays there until it is logged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from library.training.optimizers import ChoosesStepSize

if TYPE_CHECKING:
    from torch.optim import Optimizer

FOUND_RATE = "lr/d*lr/"


class LearningRates:
    """Reads the rates around each update: some stand before it, some are chosen in it.

    optimizer: torch's, without a wrapper; names: of its groups
    latest:    of the last update, by log key; a number, or a scalar on its device
    """

    def __init__(self, optimizer: Optimizer, names: Sequence[str]) -> None:
        self.optimizer, self.names = optimizer, names
        self.latest: dict[str, float | Tensor] = {}

    @contextmanager
    def of_update(self) -> Iterator[None]:
        """Within: one update, by the rates that become the latest."""
        groups = list(zip(self.names, self.optimizer.param_groups))
        rates = {f"lr/{name}": _kept(group["lr"]) for name, group in groups}
        for name, group in groups:
            if "d" in group:  # the update is made with the factor found before it
                rates[f"{FOUND_RATE}{name}"] = _kept(group["d"] * group["lr"])
        yield
        for name, group in groups:
            rate = self._chosen(group)
            if rate is not None:
                rates[f"lr/{name}"] = _kept(rate)
        self.latest = rates

    def _chosen(self, group: dict[str, Any]) -> float | Tensor | None:
        """The rate that the optimizer chose in its update; None where it took the group's.

        Adafactor's differs from tensor to tensor with scale_parameter: the first one's, as sd-scripts.
        """
        if "scheduled_lr" in group:  # schedule-free: with its warm-up and rectification
            return group["scheduled_lr"]
        state = self.optimizer.state.get(group["params"][0], {})
        relative = group.get("relative_step") and "step" in state
        if relative and isinstance(self.optimizer, ChoosesStepSize):
            return self.optimizer._get_lr(group, state)
        return None


def _kept(rate: float | Tensor) -> float | Tensor:
    """The value as it is now, whatever is done to the tensor that holds it."""
    return rate.detach().clone() if isinstance(rate, Tensor) else float(rate)


def shown_rate(values: dict[str, float]) -> float:
    """The one rate of a progress bar: the highest that was found, else the highest of all."""
    found = [value for key, value in values.items() if key.startswith(FOUND_RATE)]
    return max(found or [value for key, value in values.items() if key.startswith("lr/")])
