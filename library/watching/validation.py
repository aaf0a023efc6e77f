"""The loss on held-out pictures, at fixed noise and fixed sigmas: comparable from run to run.

Every picture is judged at the middle of each quarter of [0, 1], with noise that depends on its name
and validation_seed alone; nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from library.data.data_types import Batch, StepResult
from library.watching.fixed_pictures import FixedPictures, is_due

if TYPE_CHECKING:
    from accelerate import Accelerator

    from library.data.catalogue import Catalogue
    from library.settings.flags.validation import ValidationOptions

QUARTERS = {"0.00-0.25": 0.125, "0.25-0.50": 0.375, "0.50-0.75": 0.625, "0.75-1.00": 0.875}
"""Range of sigma -> where in it the loss is taken."""


class Validation(FixedPictures):
    """When to validate, and on which batches.

    catalogue: the held-out pictures, see Catalogue.validation
    """

    def __init__(self, catalogue: Catalogue, options: ValidationOptions) -> None:
        super().__init__(catalogue, options.validation_seed or 0)
        self.options = options

    def is_due_at_step(self, step: int) -> bool:
        return self._is_due(step, self.options.validate_every_n_steps)

    def is_due_after_epoch(self, epoch: int) -> bool:
        """epoch counts from 1. Without either interval, after every epoch."""
        by_step = self.options.validate_every_n_steps
        every = self.options.validate_every_n_epochs or (None if by_step else 1)
        return self._is_due(epoch, every)

    def _is_due(self, number: int, every: int | None) -> bool:
        return bool(self.catalogue.images) and is_due(number, every)

    def batches(self, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """This rank's share of the batches, in an order that never changes."""
        return self.share(rank, world_size, self.options.max_validation_steps)

    def run(
        self, process: Callable[[Batch, Tensor], StepResult], accelerator: Accelerator
    ) -> dict[str, float]:
        """The mean loss by log key: of all, and of each quarter of sigma.

        process: a batch on the device at sigma (B,); called without gradients
        """
        losses: list[Tensor] = []  # stay on the device until all are there
        with torch.no_grad():
            for batch in self.batches(accelerator.process_index, accelerator.num_processes):
                batch = batch.to(accelerator.device)
                for sigma in QUARTERS.values():
                    sigmas = torch.full((len(batch.keys),), sigma, device=accelerator.device)
                    losses.append(process(batch, sigmas).per_sample)
        sums = sums_of(losses).to(accelerator.device, torch.float32)
        *totals, count = accelerator.reduce(sums).tolist()
        means = {f"loss/validation/sigma_{name}": s / count for name, s in zip(QUARTERS, totals)}
        return {"loss/validation/average": sum(means.values()) / len(means), **means}


def sums_of(losses: list[Tensor]) -> Tensor:
    """The sum of each quarter's losses, and the number of samples; reads the device once.

    losses: (B,) of each batch at the sigma of each quarter in turn
    """
    sums = torch.zeros(len(QUARTERS) + 1, dtype=torch.float64)
    if losses:
        read = torch.cat(losses).cpu().double()
        for number, of_batch in enumerate(read.split([len(each) for each in losses])):
            sums[number % len(QUARTERS)] += of_batch.sum()
        sums[-1] = len(read) // len(QUARTERS)
    return sums


def describe(values: dict[str, float]) -> str:
    """The line for the log."""
    average, *quarters = values.values()
    shown = ", ".join(f"{name} {value:.4f}" for name, value in zip(QUARTERS, quarters))
    return f"validation loss {average:.4f} (by sigma: {shown})"
