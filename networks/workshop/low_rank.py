"""How many ranks of a delta are kept, and the factors of a LoRA made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from networks.workshop.deltas import Delta, Dense, LowRank, Svd
from networks.workshop.singular import SHARE, largest_of

FIRST = 32
"""The rank that is tried first where an error decides."""


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

    def choose(self, values: Tensor, rest: float = 0.0) -> int:
        """For singular values in descending order. rest: Frobenius norm of what they leave out."""
        squares = values.double().square()
        total = float(squares.sum()) + rest**2
        count = len(values)
        if (allowed := self.allowed(total)) is not None:
            left = total - torch.cumsum(squares, 0)  # what is cut away after 1, 2, ... values
            fits = left <= allowed + 1e-12 * total
            count = int(fits.nonzero()[0]) + 1 if bool(fits.any()) else len(values)
        return max(1, min(count, self.rank or count))

    def allowed(self, total: float) -> float | None:
        """How much of the energy may be cut away; None where the rank alone counts."""
        found = [] if self.energy is None else [(1 - self.energy) * total]
        found += [] if self.error is None else [self.error**2 * total]
        return min(found, default=None)

    def fitting(self, delta: Delta) -> Svd:
        """The best approximation of the rank that it chooses. Of a large matrix no more singular values
        are computed than are needed."""
        if not isinstance(delta, Dense):
            return delta.largest(self.rank_for(delta))
        matrix = delta.columns
        most = min(*matrix.shape, self.rank or matrix.shape[0])
        rank = most if self.allowed(0.0) is None else min(FIRST, most)
        while True:
            found = largest_of(matrix, rank)
            allowed = self.allowed(found.norm**2)
            if rank == most or (allowed is not None and found.rest**2 <= allowed):
                return found.cut(self.choose(found.values, found.rest))
            rank = 2 * rank if 4 * SHARE * rank <= most else most


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
    found = rule.fitting(delta)
    roots = found.values.clamp_min(0).sqrt()
    up, down = found.left * roots, roots[:, None] * found.right
    return Approximation(up, down, found.rest / found.norm if found.norm else 0.0)
