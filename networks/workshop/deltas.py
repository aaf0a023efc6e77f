"""What an adapter adds to one weight, kept as its factors: norm, products and singular values without
building it wherever that is possible.

A delta D has shape (out, in), scale and alpha included, and is float32; sums over it are float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Svd(NamedTuple):
    """D = left @ diag(values) @ right, cut to the largest values. left (out, r), right (r, in).

    values: descending, above 0 but for rounding
    rest:   Frobenius norm of what was cut away
    """

    left: Tensor
    values: Tensor
    right: Tensor
    rest: float

    @property
    def norm(self) -> float:
        """Of D."""
        return math.hypot(float(self.values.double().norm()), self.rest)

    def cut(self, rank: int) -> Svd:
        """Cut to fewer values."""
        lost = float(self.values[rank:].double().norm())
        return Svd(
            self.left[:, :rank], self.values[:rank], self.right[:rank], math.hypot(lost, self.rest)
        )


class Delta(ABC):
    """One weight's difference. shape: (out, in), or that of a vector."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @abstractmethod
    def norm(self) -> float:
        """Its Frobenius norm."""

    @abstractmethod
    def applied(self, x: Tensor) -> Tensor:
        """D @ x for x (in, n), in the numbers of x."""

    @abstractmethod
    def dense(self) -> Tensor:
        """D itself."""

    @abstractmethod
    def values(self) -> Tensor:
        """All singular values that may differ from 0, descending."""

    @abstractmethod
    def largest(self, rank: int) -> Svd:
        """The best approximation of a rank; fewer where D has fewer."""

    def inner(self, other: Delta) -> float:
        """The sum over all entries of D * other."""
        return frobenius(self.dense(), other.dense())


@dataclass(frozen=True)
class LowRank(Delta):
    """up @ down: up (out, r), down (r, in), the scale inside `up`."""

    up: Tensor
    down: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.up), self.down.shape[1]

    def norm(self) -> float:
        return math.sqrt(max(self.inner(self), 0.0))

    def applied(self, x: Tensor) -> Tensor:
        return self.up.to(x) @ (self.down.to(x) @ x)

    def dense(self) -> Tensor:
        return self.up @ self.down

    def values(self) -> Tensor:
        (_, r_up), (_, r_down) = torch.linalg.qr(self.up), torch.linalg.qr(self.down.T)
        return torch.linalg.svdvals(r_up @ r_down.T)

    def largest(self, rank: int) -> Svd:
        (q_up, r_up), (q_down, r_down) = torch.linalg.qr(self.up), torch.linalg.qr(self.down.T)
        left, values, right = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
        kept = slice(min(rank, len(values)))
        rest = float(values[kept.stop :].double().norm())
        return Svd(q_up @ left[:, kept], values[kept], right[kept] @ q_down.T, rest)

    def inner(self, other: Delta) -> float:
        if isinstance(other, LowRank):
            return frobenius(self.up.T.double() @ other.up.double(),
                             self.down.double() @ other.down.T.double())  # fmt: skip
        return frobenius(other.applied(self.down.T.double()), self.up)


@dataclass(frozen=True)
class Kronecker(Delta):
    """kron(first, second): first (l, m) with the scale inside, second (k, n)."""

    first: Tensor
    second: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        (l, m), (k, n) = self.first.shape, self.second.shape
        return l * k, m * n

    def norm(self) -> float:
        return float(self.first.double().norm() * self.second.double().norm())

    def applied(self, x: Tensor) -> Tensor:
        (l, m), (k, n) = self.first.shape, self.second.shape
        mixed = torch.einsum("lm,mnx->lnx", self.first.to(x), x.reshape(m, n, -1))
        return torch.einsum("kn,lnx->lkx", self.second.to(x), mixed).reshape(l * k, -1)

    def dense(self) -> Tensor:
        return torch.kron(self.first, self.second)

    def values(self) -> Tensor:
        own, others = torch.linalg.svdvals(self.first), torch.linalg.svdvals(self.second)
        return torch.outer(own, others).flatten().sort(descending=True).values

    def largest(self, rank: int) -> Svd:
        """Singular triples of a Kronecker product are the products of its factors' triples."""
        l1, s1, r1 = torch.linalg.svd(self.first, full_matrices=False)
        l2, s2, r2 = torch.linalg.svd(self.second, full_matrices=False)
        values, places = torch.outer(s1, s2).flatten().sort(descending=True)
        kept, rest = places[:rank], float(values[rank:].double().norm())
        i, j = kept // len(s2), kept % len(s2)
        left = torch.einsum("lr,kr->lkr", l1[:, i], l2[:, j]).flatten(0, 1)
        right = torch.einsum("rm,rn->rmn", r1[i], r2[j]).flatten(1)
        return Svd(left, values[:rank], right, rest)

    def inner(self, other: Delta) -> float:
        if isinstance(other, Kronecker):
            nested = nested_inner(self, other)
            return super().inner(other) if nested is None else nested
        if isinstance(other, LowRank):
            return other.inner(self)
        return self.inner_of_matrix(other.dense())

    def inner_of_matrix(self, matrix: Tensor) -> float:
        """One row of `first` at a time, so that the product is never built."""
        (l, m), (k, n) = self.first.shape, self.second.shape
        blocks = matrix.reshape(l, k, m, n)
        return sum(
            frobenius(torch.einsum("kmn,m->kn", block.double(), row.double()), self.second)
            for block, row in zip(blocks, self.first)
        )


@dataclass(frozen=True)
class Dense(Delta):
    """A difference as it is: of a matrix, or of a vector, which counts as one column."""

    matrix: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.matrix.shape)

    @property
    def columns(self) -> Tensor:
        return self.matrix.reshape(len(self.matrix), -1)

    def norm(self) -> float:
        return float(torch.linalg.vector_norm(self.matrix, dtype=torch.float64))

    def applied(self, x: Tensor) -> Tensor:
        return self.columns.to(x) @ x

    def dense(self) -> Tensor:
        return self.matrix

    def values(self) -> Tensor:
        return torch.linalg.svdvals(self.columns)

    def largest(self, rank: int) -> Svd:
        left, values, right = torch.linalg.svd(self.columns, full_matrices=False)
        rest = float(values[rank:].double().norm())
        return Svd(left[:, :rank], values[:rank], right[:rank], rest)

    def inner(self, other: Delta) -> float:
        return super().inner(other) if isinstance(other, Dense) else other.inner(self)


@dataclass(frozen=True)
class Sum(Delta):
    """Of deltas of one shape, each kept as it is."""

    terms: tuple[Delta, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.terms[0].shape

    def norm(self) -> float:
        return math.sqrt(max(self.inner(self), 0.0))

    def applied(self, x: Tensor) -> Tensor:
        return torch.stack([term.applied(x) for term in self.terms]).sum(0)

    def dense(self) -> Tensor:
        total = self.terms[0].dense().clone()
        for term in self.terms[1:]:
            total += term.dense()
        return total

    def values(self) -> Tensor:
        return torch.linalg.svdvals(self.dense())

    def largest(self, rank: int) -> Svd:
        return Dense(self.dense()).largest(rank)

    def inner(self, other: Delta) -> float:
        others = other.terms if isinstance(other, Sum) else (other,)
        return math.fsum(term.inner(each) for term in self.terms for each in others)


def nested_inner(one: Kronecker, other: Kronecker) -> float | None:
    """The inner product by the factors, whose own sizes may differ as long as one of a kind divides the
    other: of a row's number the coarse part belongs to both `first`, the fine one to both `second`, and
    what is between to `first` of the one and `second` of the other. Columns likewise. None else.
    """
    axes = [
        axis_parts(one.first.shape[axis], other.first.shape[axis], one.shape[axis])
        for axis in (0, 1)
    ]
    firsts, seconds = [], []
    for side, delta in enumerate((one, other)):
        sizes = [parts[side] for parts in axes if parts]
        if len(sizes) < len(axes):
            return None
        (c, x, inner_x, f), (d, y, inner_y, g) = sizes
        firsts.append(delta.first.double().reshape(c, x, d, y))
        seconds.append(delta.second.double().reshape(inner_x, f, inner_y, g))
    shared = torch.einsum("cxdy,cxdy->xy", *firsts)
    return float((shared * torch.einsum("xfyg,xfyg->xy", *seconds)).sum())


Parts = tuple[int, int, int, int]
"""(coarse, between in first, between in second, fine) of one axis of a Kronecker product."""


def axis_parts(one: int, other: int, whole: int) -> tuple[Parts, Parts] | None:
    """How an axis of `whole` numbers is split between the factors, `one` and `other` of them in `first`."""
    coarse, many = min(one, other), max(one, other)
    if many % coarse:
        return None
    between, fine = many // coarse, whole // many
    with_few, with_many = (coarse, 1, between, fine), (coarse, between, 1, fine)
    return (with_few, with_many) if one == coarse else (with_many, with_few)


def frobenius(one: Tensor, other: Tensor) -> float:
    """The sum of the products of the entries, in float64."""
    return float((one.double() * other.double()).sum())


def cosine(one: Delta, other: Delta) -> float:
    """Of two deltas of one shape; 0 where one of them is zero."""
    size = one.norm() * other.norm()
    return one.inner(other) / size if size else 0.0


def distance(one: Delta, other: Delta) -> float:
    """|one - other|, for two deltas of one form; what is below 1e-8 of them is rounding."""
    return math.sqrt(max(one.inner(one) - 2 * one.inner(other) + other.inner(other), 0.0))
