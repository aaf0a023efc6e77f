"""Stochastic rounding to bf16: up or down by chance, so that on average nothing is lost."""

from __future__ import annotations

import torch
from torch import Tensor

HALF = 16
"""The bits of a float32 that bf16 lacks."""


def stochastically_rounded(values: Tensor, generator: torch.Generator) -> Tensor:
    """float32 -> bf16: one of the two neighbours, each as likely as the other is far.

    The mean over many draws is the value. A value that bf16 has, zero, infinity and NaN stay. As the bits
    of a float count magnitudes in order, the chance is an addition to those that are cut off.
    generator: of the device of the values. Source: Gupta et al. 2015, Deep Learning with Limited Numerical
    Precision, sec. 3.
    """
    noise = torch.randint(
        0, 1 << HALF, values.shape, dtype=torch.int32, device=values.device, generator=generator
    )
    bits = values.contiguous().view(torch.int32)
    rounded = noise.add_(bits).bitwise_and_(-1 << HALF).view(torch.float32)
    return torch.where(torch.isfinite(values), rounded, values).to(torch.bfloat16)
