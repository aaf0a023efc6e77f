"""How the demo's networks learn: AdamW, a rate that rises and falls, an average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

WARMUP = 50  # steps
LONGEST = 1.0  # norm of a gradient


def falling_to_zero(rate: float, steps: int) -> Callable[[int], float]:
    """The rate of each step: half a cosine, after the warm-up."""
    return lambda n: rate * rise(n) * max(0.5 + 0.5 * math.cos(math.pi * n / steps), 0.01)


def falling_slowly(rate: float, halved: float) -> Callable[[int], float]:
    """The rate of each step: half of it after three times `halved` steps; it knows no end."""
    return lambda n: rate * rise(n) * (1 + n / halved) ** -0.5


def rise(step: int) -> float:
    return min(1.0, (step + 1) / WARMUP)


class Learning:
    """Updates of a network in place; `finish` gives it the weights' average.

    rate_at: number of the step, from 0, to its learning rate
    Matrices are updated by Muon (Jordan et al. 2024), all else by AdamW; both at one rate, to which
    Muon's updates are scaled (Liu et al. 2025, sec. 2.2).
    """

    def __init__(self, network: nn.Module, rate_at: Callable[[int], float]) -> None:
        self.weights = [weight for weight in network.parameters() if weight.requires_grad]
        self.average = [weight.detach().clone() for weight in self.weights]
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, weight in network.named_parameters():
            is_matrix = weight.ndim == 2 and not name.endswith("embed.weight")
            (matrices if is_matrix else others).append(weight)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
        ]
        if matrices:
            self.optimizers.append(
                torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            )
        self.rate_at, self.done = rate_at, 0

    def step(self, loss: Tensor) -> None:
        """One update; the average follows at a pace that suits how much has been learned."""
        loss.backward()
        nn.utils.clip_grad_norm_([w for w in self.weights if w.grad is not None], LONGEST)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = self.rate_at(self.done)
            optimizer.step()
            optimizer.zero_grad()
        self.done += 1
        keep = min(0.995, self.done / (self.done + 9))
        for mean, weight in zip(self.average, self.weights):
            mean.lerp_(weight.detach(), 1 - keep)

    def finish(self) -> None:
        for mean, weight in zip(self.average, self.weights):
            weight.data.copy_(mean)
