"""The largest singular values of a large matrix without all the others.

A random subspace is turned towards the largest ones (Halko, Martinsson and Tropp 2011, algorithm 4.4)
until a further turn gains next to nothing; where that does not come about, all of them are computed.
What is cut away is measured on the matrix, so that the error that is told is that of the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from networks.workshop.deltas import Dense, Svd

SMALLEST, SHARE = 256, 4
"""Matrices with a shorter side, or ranks above this part of it, are decomposed whole: it is no slower."""
TURNS = 6
GAIN = 2e-3
"""Of what is cut away, squared: a turn that gains less is the last."""
ROWS = 1024


def largest_of(matrix: Tensor, rank: int) -> Svd:
    """The best approximation of a rank of a float32 matrix (out, in), or one as good as `GAIN` says.

    The same for the same matrix: the subspace begins at fixed random numbers.
    """
    width = rank + max(16, rank // 3)  # of the subspace
    if min(matrix.shape) < SMALLEST or width * SHARE > min(matrix.shape):
        return Dense(matrix).largest(rank)
    generator = torch.Generator().manual_seed(0)
    basis = orthonormal(matrix @ torch.randn(matrix.shape[1], width, generator=generator))
    total, captured = squares(matrix), 0.0
    for _ in range(TURNS):
        basis = orthonormal(matrix @ orthonormal(matrix.T @ basis))
        left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        before, captured = captured, squares(values[:rank])
        if captured - before <= GAIN * (total - captured) + 1e-12 * total:
            left = basis @ left[:, :rank]
            rest = remainder(matrix, left, values[:rank], right[:rank])
            return Svd(left, values[:rank], right[:rank], rest)
    return Dense(matrix).largest(rank)


def orthonormal(columns: Tensor) -> Tensor:
    return torch.linalg.qr(columns)[0]


def squares(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def remainder(matrix: Tensor, left: Tensor, values: Tensor, right: Tensor) -> float:
    """|matrix - left @ diag(values) @ right|, some rows at a time."""
    weighted = values[:, None] * right
    parts = zip(matrix.split(ROWS), left.split(ROWS))
    return sum(squares(rows - own @ weighted) for rows, own in parts) ** 0.5
