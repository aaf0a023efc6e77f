"""What keeps the base's knowledge: pictures and prompts for which its own prediction is learned."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from library.device_utils import to_device
from library.utils import position_seed

if TYPE_CHECKING:
    from library.data.catalogue import Catalogue
    from library.data.data_types import Batch
    from library.settings.flags.loss import LossOptions


@dataclass(frozen=True)
class Prior:
    """weight: of the loss of what is kept so; 0: nothing is

    prompts: one of them for each batch, at the noise of its pictures
    folder:  of a picture, beside which their encoder outputs may be kept
    """

    weight: float
    prompts: tuple[str, ...]
    folder: Path

    @staticmethod
    def of(options: LossOptions, catalogue: Catalogue) -> Prior:
        folder = catalogue.images[0].path.parent
        return Prior(options.prior_preservation_weight, options.prior_prompts, folder)

    def captions(self) -> dict[str, Path]:
        """Every text it uses, and a folder of a picture."""
        return dict.fromkeys(self.prompts, self.folder)

    def passes(self, batch: Batch) -> Iterator[Batch]:
        """The batch, and after it the same noise with a prompt, if there are any."""
        yield batch
        if self.prompts:
            count = len(batch.keys)
            chosen = random.Random(position_seed(batch.seeds[0], "prior prompt"))
            yield replace(
                batch,
                captions=(chosen.choice(self.prompts),) * count,
                texts=None,
                conditioning=None,
                loss_weight=torch.full_like(batch.loss_weight, self.weight),
                loss_mask=None,
                of_prior=(True,) * count,
            )

    def applies(self, batch: Batch) -> bool:
        """Whether the base's prediction is learned for a sample of it."""
        return bool(self.weight) and any(batch.of_prior)


def mixed_targets(velocity: Tensor, base: Tensor, batch: Batch) -> Tensor:
    """What each sample learns, (B, C, H, W): the base's prediction or the data's velocity."""
    own = to_device(torch.tensor(batch.of_prior), velocity.device).view(-1, 1, 1, 1)
    return torch.where(own, base.to(velocity.dtype), velocity)
