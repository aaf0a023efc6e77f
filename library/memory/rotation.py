"""Products of rows of activations in int8, and the rotation that makes 8 bits enough for them.

A Hadamard matrix spreads what is large in few channels over all of a group. It is orthogonal and symmetric:
turning twice gives back what was.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST_GROUP = 128
INT8_END = 127
ROWS_AT_ONCE = 32
"""cuBLAS multiplies integers in rows by so many: on an H200 it refused 118 and 120."""
SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def hadamard(size: int, device: torch.device) -> Tensor:
    """(size, size) float32, orthogonal; size: a power of 2. Sylvester's construction."""
    smallest = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float32)
    matrix = smallest.new_ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(matrix, smallest)
    return (matrix / math.sqrt(size)).to(device)


kept_hadamard = cache(hadamard)


def rotated(rows: Tensor) -> Tensor:
    """(..., n), columns turned in groups: of the largest power of 2 that divides n, up to 128."""
    size = math.gcd(rows.shape[-1], LARGEST_GROUP)
    if size == 1:
        return rows
    matrix = (hadamard if torch.compiler.is_compiling() else kept_hadamard)(size, rows.device)
    return (rows.unflatten(-1, (-1, size)) @ matrix.to(rows.dtype)).flatten(-2)


def integer_product(rows: Tensor, codes: Tensor) -> Tensor:
    """rows (T, k), each rounded to int8 by its largest value, times codes (k, n) int8; float32."""
    step = (rows.abs().amax(1, keepdim=True).float() / INT8_END).clamp_(min=SMALLEST_SCALE)
    rounded = (rows / step).round_().to(torch.int8)
    count = len(rows)
    missing = -count % ROWS_AT_ONCE
    if not isinstance(missing, int) or missing:
        rounded = F.pad(rounded, (0, 0, 0, missing))
    return torch._int_mm(rounded, codes)[:count] * step
