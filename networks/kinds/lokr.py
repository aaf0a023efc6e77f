"""LoKr: delta = scale * kron(w1, w2), applied by its factors and never built.

w1 (l, m) and w2 (k, n) stand for kron(w1, w2) of shape (l*k, m*n); w2 is passed as the matrices
that are applied in turn, [w2] or [w2_b, w2_a], so that the factored form has no case of its own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from library.errors import Problem
from networks.kinds.adapter import NO_DROPOUT, Dropout, at_use, keep_mask
from networks.kinds.fused import Chain
from networks.kinds.kind import Kind, KindArguments, Request, Training
from networks.kinds.linear import AdditiveAdapter, LinearAdapter, shape_of
from networks.kinds.stored import (
    Factors,
    check_shape,
    float32_beside,
    matrix,
    sizes_of,
    stored_alpha,
    stored_scale,
)

logger = logging.getLogger(__name__)

FACTORS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")


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
            **matrix_shapes("lokr_w1", self.l, self.m, self.w1_rank),
            **matrix_shapes("lokr_w2", self.k, self.n, self.w2_rank),
        }


def matrix_shapes(
    name: str, rows: int, columns: int, rank: int | None
) -> dict[str, tuple[int, int]]:
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
    weight: Sequence[int], rank: int, factor: int, *, decompose_both: bool = False,
    full_matrix: bool = False,
) -> LoKrShape:  # fmt: skip
    """The sizes LyCORIS gives a Linear with a weight (out, in).

    A matrix with a side over twice the rank is factored.
    """
    (l, k), (m, n) = (factorize(features, factor) for features in weight)
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
    mix_at = cheapest_mix(w1.shape, [w2[0].shape[1], *(each.shape[0] for each in w2)])
    for position, each in enumerate(w2):
        if position == mix_at:
            grouped = mix_groups(w1, grouped)
        grouped = F.linear(grouped, each)
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


class LoKr(AdditiveAdapter):
    """LoKrShape says which matrices are factored; the last of w2's starts at zero."""

    lokr_w1: nn.Parameter
    lokr_w1_a: nn.Parameter
    lokr_w1_b: nn.Parameter
    lokr_w2: nn.Parameter
    lokr_w2_a: nn.Parameter
    lokr_w2_b: nn.Parameter

    def __init__(self, shape: LoKrShape, alpha: float, dropout: Dropout = NO_DROPOUT) -> None:
        super().__init__(shape.rank, 1.0 if shape.rank is None else alpha, dropout)
        self.shape = shape
        self._add_factors(shape.factors())
        self.zero_factor = "lokr_w2" if shape.w2_rank is None else "lokr_w2_b"
        for name, factor in self.factors().items():
            if name != self.zero_factor:
                nn.init.kaiming_uniform_(factor, a=math.sqrt(5))

    @classmethod
    def as_file(cls, base: nn.Linear, factors: Factors, dropout: Dropout) -> LoKr:
        shape = lokr_shape_of(factors, shape_of(base))
        return cls(shape, stored_alpha(factors, shape.rank), dropout)

    def added(self, x: Tensor) -> Tensor:
        w1, w2 = self.chains()
        if self.training and self.dropout.rank:
            w1, w2 = self._drop_rank(w1), self._drop_rank(w2)
        scaled = at_use(product(w1) * self.strength(x), x)
        out = lokr_apply(x, scaled, [at_use(each, x) for each in w2])
        if self.training and self.dropout.neuron:
            out = out * keep_mask(out.shape, self.dropout.neuron, out, rescale=True)
        return out

    def chain(self, x: Tensor) -> tuple[Chain, Sequence[Tensor]] | None:
        w1_chain, w2 = self.chains()
        if self.training and self.dropout.rank:
            w1_chain, w2 = self._drop_rank(w1_chain), self._drop_rank(w2)
        w1 = product(w1_chain)
        if w1.numel() == 1 and len(w2) == 1:
            return None  # nothing to regroup: the matrix itself is the cheaper form
        mix_at = cheapest_mix(w1.shape, [w2[0].shape[1], *(each.shape[0] for each in w2)])
        strength, masks = self.scale * self.multiplier, [self.module_mask(x), *[None] * len(w2)]
        if self.training and self.dropout.neuron:
            added = (*x.shape[:-1], self.shape.l, self.shape.k)
            masks[-1] = keep_mask(added, self.dropout.neuron, x)
            strength /= 1 - self.dropout.neuron
        return Chain(self.shape.m, mix_at, strength, tuple(masks), self.fused), (w1, *w2)

    def delta(self) -> Tensor:
        w1, w2 = self.chains()
        return self.scale * lokr_delta(product(w1), w2)

    def chains(self) -> tuple[list[Tensor], list[Tensor]]:
        """w1 and w2 as the matrices applied in turn: [w] or [w_b, w_a]."""
        w1: list[Tensor] = (
            [self.lokr_w1] if self.shape.w1_rank is None else [self.lokr_w1_b, self.lokr_w1_a]
        )
        w2: list[Tensor] = (
            [self.lokr_w2] if self.shape.w2_rank is None else [self.lokr_w2_b, self.lokr_w2_a]
        )
        return w1, w2

    def _drop_rank(self, chain: list[Tensor]) -> list[Tensor]:
        """Mask rank entries, for the whole batch; a full matrix has none."""
        if len(chain) == 1:
            return chain
        first, last = chain
        return [first * keep_mask((len(first), 1), self.dropout.rank, first, rescale=True), last]


@dataclass(frozen=True, kw_only=True)
class LoKrArguments(KindArguments):
    """lokr_factor -1: as near to a square as the sizes allow."""

    ALIASES: ClassVar[Mapping[str, str]] = {
        "factor": "lokr_factor",
        "full_matrix": "lokr_full_matrix",
        "decompose_both": "lokr_decompose_both",
        "lokr_rank_dropout": "rank_dropout",
        "lokr_module_dropout": "module_dropout",
    }
    FULL_MATRICES: ClassVar[bool] = True

    lokr_factor: int = 8
    lokr_full_matrix: bool = False
    lokr_decompose_both: bool = False

    @staticmethod
    def problems_of(values: Mapping[str, object]) -> list[Problem]:
        factor = values.get("lokr_factor", 8)
        if isinstance(factor, int) and factor < 1 and factor != -1:
            return [Problem("expected -1, or 1 or more.", f"lokr_factor={factor}")]
        return []

    def for_request(self, request: Request) -> LoKrArguments:
        if not request.asks_for_full_matrices:
            return self
        logger.info("network_dim=%d >= 100000, forcing lokr_full_matrix=true", request.dim)
        return replace(self, lokr_full_matrix=True)

    def make(self, base: nn.Linear, rank: int, alpha: float, dropout: Dropout) -> LoKr:
        shape = lokr_shape(
            (base.out_features, base.in_features), rank, self.lokr_factor,
            decompose_both=self.lokr_decompose_both, full_matrix=self.lokr_full_matrix,
        )  # fmt: skip
        return LoKr(shape, alpha, dropout)

    def remarks(self, adapters: Sequence[LinearAdapter], request: Request) -> Iterator[str]:
        full = sum(adapter.rank is None for adapter in adapters)
        if request.dropout.rank and full:
            yield (
                f"lokr_rank_dropout has no effect on {full} of {len(adapters)} layers, whose "
                "matrices are full"
            )
        idle = self._idle_where_full(adapters, request)
        if idle and adapters:
            yield f"{', '.join(idle)}: no effect where every matrix is full"

    def _idle_where_full(self, adapters: Sequence[LinearAdapter], request: Request) -> list[str]:
        """What does nothing where no matrix is factored."""
        idle = []
        shapes = [adapter.shape for adapter in adapters if isinstance(adapter, LoKr)]
        if self.lokr_decompose_both and all(shape.w1_rank is None for shape in shapes):
            idle.append("lokr_decompose_both")
        if all(shape.rank is None for shape in shapes):
            idle += ["network_alpha"] * (request.alpha not in (None, 0, 1))
            asked = request.dim_given and not request.asks_for_full_matrices
            idle += ["network_dim"] * (self.lokr_full_matrix and asked)
        return idle


def lokr_shape_of(factors: Factors, weight: Sequence[int]) -> LoKrShape:
    """The sizes of a LoKr that fits a weight of this shape."""
    sizes: dict[str, tuple[int, int | None, int]] = {}
    for name in ("lokr_w1", "lokr_w2"):
        given = [n for n in (name, f"{name}_a", f"{name}_b") if n in factors]
        if given == [name]:
            rows, columns = matrix(factors, name).shape
            sizes[name] = (rows, None, columns)
        elif given == [f"{name}_a", f"{name}_b"]:
            sizes[name] = sizes_of(factors, *given)
        else:
            found = ", ".join(given) or "neither"
            raise ValueError(f"expected {name}, or {name}_a and {name}_b; found {found}")
    (l, w1_rank, m), (k, w2_rank, n) = sizes["lokr_w1"], sizes["lokr_w2"]
    check_shape((l * k, m * n), weight)
    return LoKrShape(l, m, k, n, w1_rank, w2_rank)


def lokr_change(factors: Factors, weight: Tensor) -> Tensor:
    shape = lokr_shape_of(factors, weight.shape)
    w1 = float32_beside(weight, factors, ("lokr_w1", "lokr_w1_b", "lokr_w1_a"))
    w2 = float32_beside(weight, factors, ("lokr_w2", "lokr_w2_b", "lokr_w2_a"))
    return stored_scale(factors, shape.rank) * lokr_delta(product(w1), w2)


KIND = Kind(
    "LoKr",
    factors={name: (name, f"{name}.weight") for name in FACTORS},
    change=lokr_change,
    training=Training("lokr", LoKrArguments, LoKr.as_file, "1e-4 or a little more"),
    refused={"lokr_t2": "a convolution's LoKr"},
)
