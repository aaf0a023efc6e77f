"""The random numbers that samplers add at each step, equal to ComfyUI's."""

from __future__ import annotations

import math
from typing import Protocol

import numpy
import torch
from torch import Tensor

PLACES = 6  # decimals to which the Brownian tree knows sigma
POOL = 24  # words of entropy that it mixes


class StepNoise(Protocol):
    def __call__(self, sigma: float, following: float) -> Tensor:
        """Standard normal numbers for the step between two sigmas, like the latents."""


class DrawnNoise:
    """One draw after another from a generator of its own.

    The generator is the CPU's, seeded with seed + 1, as ComfyUI's is when it samples on the CPU; on_device:
    the device's, seeded with the seed itself, as ComfyUI's is on CUDA.
    """

    def __init__(self, seed: int, like: Tensor, *, on_device: bool = False) -> None:
        own = on_device and like.device.type != "cpu"
        self.like = like
        self.generator = torch.Generator(like.device if own else "cpu")
        self.generator.manual_seed(seed if own else seed + 1)

    def __call__(self, sigma: float, following: float) -> Tensor:
        made = torch.randn(
            self.like.shape, generator=self.generator, device=self.generator.device
        )
        return made.to(self.like)


class BrownianNoise:
    """Increments of one Brownian path over sigma: what is drawn does not depend on the steps taken.

    The path is refined by halving: each half's increment is drawn by a seed of its place alone, so that
    any increment can be had at any time. Always on the CPU.
    """

    def __init__(self, seed: int, like: Tensor, low: float, high: float) -> None:
        self.seed, self.like = seed, like
        self.low, self.high = round(low, PLACES), round(high, PLACES)
        self.whole = self.normal() * math.sqrt(high - low)

    def __call__(self, sigma: float, following: float) -> Tensor:
        change = self.path(sigma) - self.path(following)
        return -(change / math.sqrt(sigma - following)).to(self.like)

    def path(self, sigma: float) -> Tensor:
        """The path at sigma, from 0 at its lowest."""
        wanted = min(max(round(sigma, PLACES), self.low), self.high)
        start, end, change = self.low, self.high, self.whole
        below = torch.zeros_like(change)
        key = depth = 0
        while wanted not in (start, end):
            middle = round((start + end) / 2, PLACES)
            spread = math.sqrt((middle - start) * (end - middle) / (end - start))
            left = change * ((middle - start) / (end - start)) + spread * self.normal(key, depth)
            depth += 1
            if wanted <= middle:
                end, change, key = middle, left, 2 * key
            else:
                start, change, key = middle, change - left, 2 * key + 1
                below = below + left
        return below if wanted == start else below + change

    def normal(self, *place: int) -> Tensor:
        sequence = numpy.random.SeedSequence(self.seed, spawn_key=place, pool_size=POOL)
        generator = torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))
        return torch.randn(self.like.shape, generator=generator)
