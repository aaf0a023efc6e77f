"""LoHa: delta = scale * (w1_a @ w1_b) * (w2_a @ w2_b), entry by entry.

Two products of rank R multiplied entry by entry are one product of rank R * R: as long as that is the
cheaper form an input goes through it, and the difference is never built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from networks.kinds.adapter import NO_DROPOUT, Dropout, at_use, keep_mask
from networks.kinds.fused import Chain
from networks.kinds.kind import Kind, KindArguments, Training
from networks.kinds.linear import AdditiveAdapter, chain_norm, shape_of
from networks.kinds.stored import (
    Factors,
    check_shape,
    float32_beside,
    sizes_of,
    stored_alpha,
    stored_scale,
)

PAIRS = (("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"))


def entrywise_product(w1: Sequence[Tensor], w2: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(a1 @ b1) * (a2 @ b2) as matrices applied in turn, (R1 * R2, in) and (out, R1 * R2).

    w1, w2: a (out, R) and b (R, in) each
    """
    (a1, b1), (a2, b2) = w1, w2
    down = torch.einsum("ri,si->rsi", b1, b2).flatten(0, 1)
    up = torch.einsum("or,os->ors", a1, a2).flatten(1)
    return down, up


class DenseProduct(torch.autograd.Function):
    """(a1 @ b1) * (a2 @ b2), (out, in); the two products are made again for backward and not kept."""

    @staticmethod
    def forward(ctx: Any, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
        ctx.save_for_backward(a1, b1, a2, b2)
        return (a1 @ b1).mul_(a2 @ b2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        a1, b1, a2, b2 = ctx.saved_tensors
        first = (a2 @ b2).mul_(grad)  # the gradient of the first product
        of_first = first @ b1.t(), a1.t() @ first
        second = torch.mm(a1, b1, out=first).mul_(grad)
        return *of_first, second @ b2.t(), a2.t() @ second


class LoHa(AdditiveAdapter):
    """Started as LyCORIS does: w2_a at zero, the others random."""

    zero_factor = "hada_w2_a"
    not_universal = "a LoHa"
    rank: int
    hada_w1_a: nn.Parameter
    hada_w1_b: nn.Parameter
    hada_w2_a: nn.Parameter
    hada_w2_b: nn.Parameter

    def __init__(
        self, in_features: int, out_features: int, rank: int, alpha: float,
        dropout: Dropout = NO_DROPOUT,
    ) -> None:  # fmt: skip
        super().__init__(rank, alpha, dropout)
        self.is_factored = rank * rank * (in_features + out_features) < in_features * out_features
        left, right = (out_features, rank), (rank, in_features)
        self._add_factors({name: shape for pair in PAIRS for name, shape in zip(pair, (left, right))})
        nn.init.normal_(self.hada_w1_b, std=1.0)
        nn.init.normal_(self.hada_w1_a, std=0.1)
        nn.init.normal_(self.hada_w2_b, std=1.0)

    @classmethod
    def as_file(cls, base: nn.Linear, factors: Factors, dropout: Dropout) -> LoHa:
        rank, other = loha_ranks(factors, shape_of(base))
        if rank != other:
            raise ValueError(f"has the ranks {other} and {rank}; only --base_weights can take two")
        alpha = stored_alpha(factors, rank)
        return cls(base.in_features, base.out_features, rank, alpha, dropout)

    def pairs(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """a and b of both products, with rank dropout: a mask for the whole batch."""
        first, second = self.hada_w1_b, self.hada_w2_b
        if self.training and self.dropout.rank:
            masks = [keep_mask((self.rank, 1), self.dropout.rank, first, rescale=True) for _ in PAIRS]
            return (self.hada_w1_a, first * masks[0]), (self.hada_w2_a, second * masks[1])
        return (self.hada_w1_a, first), (self.hada_w2_a, second)

    def matrices(self) -> Sequence[Tensor]:
        """What is applied in turn: two, or the difference itself where that is smaller."""
        w1, w2 = self.pairs()
        return entrywise_product(w1, w2) if self.is_factored else [DenseProduct.apply(*w1, *w2)]

    def added(self, x: Tensor) -> Tensor:
        out = x
        for matrix in self.matrices():
            out = F.linear(out, at_use(matrix, x))
        out = out * self.strength(out)
        if self.training and self.dropout.neuron:
            out = out * keep_mask(out.shape, self.dropout.neuron, out, rescale=True)
        return out

    def chain(self, x: Tensor) -> tuple[Chain, Sequence[Tensor]]:
        matrices, strength, masks = self.matrices(), self.scale * self.multiplier, []
        if self.training and self.dropout.neuron:
            added = (*x.shape[:-1], 1, len(self.hada_w1_a))
            masks.append(keep_mask(added, self.dropout.neuron, x))
            strength /= 1 - self.dropout.neuron
        masks += [mask for mask in [self.module_mask(x)] if mask is not None]
        last = reduce(torch.mul, masks) if masks else None
        return Chain(1, None, strength, (*[None] * (len(matrices) - 1), last)), matrices

    def delta(self) -> Tensor:
        return self.scale * DenseProduct.apply(*self.factors().values())

    @torch.no_grad()
    def change_norm(self) -> Tensor:
        w1, w2 = list(self.factors().values())[:2], list(self.factors().values())[2:]
        chain = entrywise_product(w1, w2) if self.is_factored else [DenseProduct.apply(*w1, *w2)]
        return abs(self.scale) * chain_norm(chain)


@dataclass(frozen=True, kw_only=True)
class LoHaArguments(KindArguments):
    """LoHa has no arguments of its own."""

    def make(self, base: nn.Linear, rank: int, alpha: float, dropout: Dropout) -> LoHa:
        return LoHa(base.in_features, base.out_features, rank, alpha, dropout)


def loha_ranks(factors: Factors, weight: Sequence[int]) -> tuple[int, int]:
    """The ranks of w1 and w2 of a LoHa that fits a weight of this shape; alpha is divided by w1's."""
    ranks = []
    for pair in PAIRS:
        rows, rank, columns = sizes_of(factors, *pair)
        check_shape((rows, columns), weight)
        ranks.append(rank)
    return ranks[0], ranks[1]


def loha_change(factors: Factors, weight: Tensor) -> Tensor:
    rank, _ = loha_ranks(factors, weight.shape)
    products = []
    for pair in PAIRS:
        left, right = float32_beside(weight, factors, pair)
        products.append(left @ right)
    return stored_scale(factors, rank) * products[0] * products[1]


KIND = Kind(
    "LoHa",
    factors={name: (name,) for pair in PAIRS for name in pair},
    change=loha_change,
    training=Training("loha", LoHaArguments, LoHa.as_file, "1e-4 or less, at ranks of 4 to 16"),
    refused=dict.fromkeys(("hada_t1", "hada_t2"), "a convolution's LoHa"),
)
