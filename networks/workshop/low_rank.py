"""How many ranks of a delta are kept, and the factors of a LoRA made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from networks.workshop.deltas import Delta, LowRank


@dataclass(frozen=True)
class RankRule:
    """At most `rank`; where one is given, as few as keep a share of the energy (the sum of the squared
    singular values), or as leave a relative error (Frobenius) of at most `error`. At least 1."""

    rank: int | None = None
    energy: float | None = None
    error: float | None = None

    def rank_for(self, delta: Delta) -> int:
        """A rank alone asks for no singular values, which may take long."""
        if self.rank is not None and self.energy is None and self.error is None:
            return self.rank
        return self.choose(delta.values())

    def choose(self, values: Tensor) -> int:
        """For singular values in descending order."""
        squares = values.double().square()
        total = float(squares.sum())
        allowed = []
        if self.energy is not None:
            allowed.append((1 - self.energy) * total)
        if self.error is not None:
            allowed.append(self.error**2 * total)
        count = len(values)
        if allowed:
            left = total - torch.cumsum(squares, 0)  # what is cut away after 1, 2, ... values
            fits = left <= min(allowed) + 1e-12 * total
            count = int(fits.nonzero()[0]) + 1 if bool(fits.any()) else len(values)
        return max(1, min(count, self.rank or count))


class Approximation(NamedTuple):
    """A LoRA of scale 1 in place of a delta. error: |delta - up @ down| / |delta|, 0 for a zero delta."""

    up: Tensor
    down: Tensor
    error: float

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def delta(self) -> LowRank:
        return LowRank(self.up, self.down)


def approximate(delta: Delta, rule: RankRule) -> Approximation:
    """The best LoRA of the rank that the rule chooses. The root of each singular value goes to each side."""
    found = delta.largest(rule.rank_for(delta))
    roots = found.values.clamp_min(0).sqrt()
    up, down = found.left * roots, roots[:, None] * found.right
    whole = math.hypot(float(found.values.double().norm()), found.rest)
    return Approximation(up, down, found.rest / whole if whole else 0.0)
