"""Adapter algebra: what factors mean as a dense delta, how to apply them without it, their scale.

Pure functions. w1 (l, m) and w2 (k, n) stand for kron(w1, w2) of shape (l*k, m*n); w2 is passed
as the matrices that are applied in turn, [w2] or [w2_b, w2_a], so that the factored form has no
case of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

FULL_MATRIX_DIM = 100_000


def training_alpha(alpha: float | None, rank: int) -> float:
    """The alpha that is trained and written: `alpha`, or the rank when it is 0 or not given."""
    return float(alpha) if alpha else float(rank)


def adapter_scale(alpha: float, rank: int | None) -> float:
    """alpha / rank; 1 without a rank (LoKr with both factors full). A stored alpha of 0 gives 0."""
    return 1.0 if rank is None else alpha / rank


def forces_full_matrix(network_dim: int) -> bool:
    """Whether `network_dim` is the sentinel by which LyCORIS users ask for full factors."""
    return network_dim >= FULL_MATRIX_DIM


def lora_delta(down: Tensor, up: Tensor) -> Tensor:
    """down (R, in), up (out, R) -> (out, in)."""
    return up @ down


def lora_apply(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """x @ lora_delta(down, up).T; x (..., in) -> (..., out)."""
    return F.linear(F.linear(x, down), up)


@dataclass(frozen=True)
class LoKrShape:
    """The sizes of a LoKr's factors: w1 (l, m), w2 (k, n), each full or a product through a rank.

    w1_rank, w2_rank: None when the matrix is full
    """

    l: int
    m: int
    k: int
    n: int
    w1_rank: int | None = None
    w2_rank: int | None = None

    @property
    def rank(self) -> int | None:
        """The rank that alpha is divided by: w2's, else w1's, else None (ComfyUI's rule)."""
        return self.w1_rank if self.w2_rank is None else self.w2_rank

    def factors(self) -> dict[str, tuple[int, int]]:
        """Names and shapes of the factors, named as in files."""
        return {
            **_matrix("lokr_w1", self.l, self.m, self.w1_rank),
            **_matrix("lokr_w2", self.k, self.n, self.w2_rank),
        }


def _matrix(name: str, rows: int, columns: int, rank: int | None) -> dict[str, tuple[int, int]]:
    if rank is None:
        return {name: (rows, columns)}
    return {f"{name}_a": (rows, rank), f"{name}_b": (rank, columns)}


def factorize(dimension: int, factor: int = -1) -> tuple[int, int]:
    """Two numbers (small, large) whose product is `dimension`, as LyCORIS chooses them.

    A factor that divides the dimension is one of the two. Otherwise the pair is the one nearest
    to a square whose smaller number is at most `factor`; -1 means no limit.
    """
    if factor > 0 and dimension % factor == 0:
        return min(factor, dimension // factor), max(factor, dimension // factor)
    limit = dimension if factor < 0 else factor
    small = 1
    for candidate in range(2, min(limit, dimension) + 1):
        if candidate * candidate > dimension:
            break
        if dimension % candidate == 0:
            small = candidate
    return small, dimension // small


def lokr_shape(
    out_features: int, in_features: int, rank: int, factor: int, *, decompose_both: bool = False,
    full_matrix: bool = False,
) -> LoKrShape:  # fmt: skip
    """The sizes LyCORIS gives a Linear; a matrix with a side over twice the rank is factored."""
    l, k = factorize(out_features, factor)
    m, n = factorize(in_features, factor)
    factor_w1 = decompose_both and not full_matrix and rank < max(l, m) / 2
    factor_w2 = not full_matrix and rank < max(k, n) / 2
    return LoKrShape(l, m, k, n, rank if factor_w1 else None, rank if factor_w2 else None)


def lokr_delta(w1: Tensor, w2: Sequence[Tensor]) -> Tensor:
    """kron(w1, w2), (l*k, m*n)."""
    return torch.kron(w1, product(w2))


def product(matrices: Sequence[Tensor]) -> Tensor:
    """The one matrix that equals applying `matrices` in turn."""
    return reduce(lambda done, matrix: matrix @ done, matrices)


def lokr_apply(x: Tensor, w1: Tensor, w2: Sequence[Tensor]) -> Tensor:
    """x @ kron(w1, w2).T without building the product; x (..., m*n) -> (..., l*k).

    w1 acts across groups and w2 inside them, so they commute: w1 is mixed in where that is
    cheapest, usually where the rows are narrowest. With one group (factor 1) and w2 full there is
    nothing to regroup, and the matrix itself is the cheaper form.
    """
    if w1.numel() == 1 and len(w2) == 1:
        return F.linear(x, w1 * w2[0])
    grouped = x.unflatten(-1, (w1.shape[1], -1))  # (..., m, n)
    mix_at = cheapest_mix(w1.shape, [w2[0].shape[1], *(matrix.shape[0] for matrix in w2)])
    for position, matrix in enumerate(w2):
        if position == mix_at:
            grouped = mix_groups(w1, grouped)
        grouped = F.linear(grouped, matrix)
    if mix_at == len(w2):
        grouped = mix_groups(w1, grouped)
    return grouped.flatten(-2)  # (..., l, k) -> (..., l*k)


def mix_groups(w1: Tensor, grouped: Tensor) -> Tensor:
    """w1 (l, m) across the groups of (..., m, width) -> (..., l, width)."""
    return torch.einsum("lm,...mw->...lw", w1, grouped)


def cheapest_mix(w1_shape: Sequence[int], widths: Sequence[int]) -> int:
    """Before which of w2's matrices w1 costs least; len(widths) - 1 means after all of them.

    widths: of a group's rows before, between and after w2's matrices
    """
    l, m = w1_shape
    steps = [before * after for before, after in pairwise(widths)]

    def multiplications(position: int) -> int:
        return m * sum(steps[:position]) + l * m * widths[position] + l * sum(steps[position:])

    return min(range(len(widths)), key=multiplications)
