"""T-LoRA: how many ranks of a LoRA act depends on the noise, fewer the more there is of it.

Soboleva et al. 2025, "T-LoRA: Single Image Diffusion Model Customization Without Overfitting", 3.2, with the
exponent of its authors' code. In training alone: files are plain LoRAs, whose ranks all act at any noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class NoiseRanks:
    """floor((rank - least) * (1 - sigma)^power) + least ranks act.

    least: of them that act on noise alone
    """

    least: int
    power: float = 1.0

    def acting(self, sigma: Tensor, rank: int) -> Tensor:
        """(B, R) for sigma (B,): 1 for the first ranks, which act, 0 for the others; float32."""
        count = ((1 - sigma.float()) ** self.power * (rank - self.least)).floor() + self.least
        order = torch.arange(rank, device=sigma.device)
        return (order < count[:, None]).float()


class Noise:
    """How much noise each sample of the model's present pass has; what has been made of it."""

    def __init__(self) -> None:
        self.sigma: Tensor | None = None
        self.masks: dict[tuple[NoiseRanks, int, torch.dtype], Tensor] = {}

    def stand_before(self, model: nn.Module) -> list[RemovableHandle]:
        """Take the sigma (B,) with which `model` is called, model(latents, sigma, ...).

        It stays until the next pass: what checkpointing computes again belongs to the last.
        """
        return [model.register_forward_pre_hook(self.take, with_kwargs=True)]

    def take(self, model: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        self.sigma = named["sigma"] if "sigma" in named else inputs[1]
        self.masks = {}

    def mask(self, ranks: NoiseRanks, rank: int, x: Tensor) -> Tensor:
        """(B, 1, ..., R) to multiply the entries between the factors with, for x (B, ..., in)."""
        assert self.sigma is not None, "the model has not been called"
        assert len(self.sigma) == len(x), "what is adapted sees every sample of the batch"
        key = (ranks, rank, x.dtype)
        if torch.compiler.is_compiling():
            found = ranks.acting(self.sigma, rank).to(x.dtype)
        elif (kept := self.masks.get(key)) is None:
            found = self.masks[key] = ranks.acting(self.sigma, rank).to(x.dtype)
        else:
            found = kept
        return found.view(len(x), *(1,) * (x.dim() - 2), rank)
