"""What rounding to 16 bits costs the numbers of a file: those too small or too large, and the error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 2**22
"""Numbers looked at together; the largest tensors have many more."""
SMALLEST_NORMAL = 2.0**-14
"""Of fp16. Below it numbers lose digits, from 2**-25 on all of them."""


@dataclass
class NumberRange:
    """Counts of numbers stored alike, and what they would lose in fp16 and bf16.

    broken:         NaN or infinite; they count nowhere else
    nonzero, zero:  of the others
    small, lost:    not zero, and in fp16 subnormal (of fewer digits), or zero
    large:          infinite in fp16
    squares:        sum of squares, and of the squared differences by each rounding
    """

    nonzero: int = 0
    zero: int = 0
    broken: int = 0
    small: int = 0
    lost: int = 0
    large: int = 0
    squares: float = 0.0
    fp16_squares: float = 0.0
    bf16_squares: float = 0.0

    def add(self, tensor: Tensor) -> tuple[int, bool]:
        """Counts the tensor; returns how many of its numbers are not finite, and whether all are 0."""
        before = self.broken, self.nonzero
        for part in tensor.reshape(-1).split(CHUNK):
            self.add_part(part.float())
        broken, nonzero = self.broken - before[0], self.nonzero - before[1]
        return broken, not broken and not nonzero

    def add_part(self, numbers: Tensor) -> None:
        finite = torch.isfinite(numbers)
        if not bool(finite.all()):
            self.broken += int((~finite).sum())
            numbers = numbers[finite]
        size = numbers.abs()
        nonzero = int(size.count_nonzero())
        self.nonzero += nonzero
        self.zero += len(numbers) - nonzero
        half = numbers.half().float()
        kept = half.isfinite()
        self.large += int((~kept).sum())
        self.small += int((size < SMALLEST_NORMAL).sum()) - (len(numbers) - nonzero)
        self.lost += nonzero - int(half.count_nonzero())
        self.squares += sum_of_squares(numbers)
        self.fp16_squares += sum_of_squares(torch.where(kept, half - numbers, 0))
        self.bf16_squares += sum_of_squares(numbers.bfloat16().float() - numbers)

    def share(self, count: int) -> float:
        """Of the numbers that are not 0."""
        return count / self.nonzero if self.nonzero else 0.0

    def error(self, squares: float) -> float:
        """|rounded - numbers| / |numbers| over all of them, for one of the sums; infinite ones left out."""
        return math.sqrt(squares / self.squares) if self.squares else 0.0


def sum_of_squares(numbers: Tensor) -> float:
    return float(torch.linalg.vector_norm(numbers, dtype=torch.float64)) ** 2
