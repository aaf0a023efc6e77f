"""Adapters of Linears and the layer that carries one.

What an adapter makes of a Linear is its own affair: it gets the frozen weight and bias and returns
the layer's output, and tells what merging and limiting mean. Kinds that add to the output share
AdditiveAdapter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import reduce
from typing import TypeGuard

import torch
from torch import Tensor, nn

from library.memory.gradient_sums import sum_for
from library.memory.quantised import Frozen, QuantisedLinear, frozen_weight
from library.memory.side_by_side import SharesInput, frozen_products, matrix_of
from networks.kinds.activated import activated, is_for
from networks.kinds.adapter import AdaptedModule, Adapter, Dropout, keep_mask
from networks.kinds.copies import NO_COPIES, Copies, parts_of
from networks.kinds.frozen import base_product
from networks.kinds.fused import Chain, add_chain, can_fuse
from networks.kinds.joined import Low, add_low
from networks.kinds.noise_ranks import Noise
from networks.kinds.stored import Factors, adapter_scale, stored_alpha


def is_adaptable_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    return isinstance(module, nn.Linear)


def shape_of(base: nn.Linear) -> tuple[int, int]:
    """(out, in), in whatever form the weight is stored."""
    return base.out_features, base.in_features


class LinearAdapter(Adapter):
    """An adapter of a Linear: its input (..., in) and frozen parameters -> its output (..., out).

    rank:          None where the matrices are full
    copies:        of all the model's factors, for each of its passes
    noise:         of each pass, for an adapter that acts by it
    not_universal: what the universal form has no place for; "" where it can stand for the adapter
    no_norm_limit: by what the norm of what is added cannot be limited, and why; "" where it can
    """

    not_universal = ""
    no_norm_limit = ""

    alpha: float
    copies = NO_COPIES
    noise = Noise()

    def __init__(self, rank: int | None, alpha: float, dropout: Dropout) -> None:
        super().__init__()
        self.rank, self.alpha, self.dropout = rank, alpha, dropout

    @property
    def size(self) -> str:
        """In a word or two, for people."""
        return "full" if self.rank is None else f"rank {self.rank}"

    def adopt(self, base: nn.Module) -> AdaptedLinear:
        assert is_adaptable_linear(base), f"{type(base).__name__} is no Linear"
        return AdaptedLinear.adopt(base, self)

    def forward(self, x: Tensor, weight: Frozen, bias: Tensor | None) -> Tensor:
        """The Linear's output with this adapter, whose strength is not 0."""
        raise NotImplementedError

    def use_copies(self, copies: Copies) -> None:
        self.copies = copies

    @property
    def acts_by_noise(self) -> bool:
        return False

    def use_noise(self, noise: Noise) -> None:
        self.noise = noise

    def module_mask(self, x: Tensor) -> Tensor | None:
        """0 or 1 for the whole of this call; None without module dropout."""
        if not (self.training and self.dropout.module):
            return None
        return keep_mask((), self.dropout.module, x)

    def limit_norm(self, limit: float) -> Tensor:
        """Shrink the weight difference to this Frobenius norm; returns what the norm was.

        Nothing is read on the host.
        """
        raise NotImplementedError

    @torch.no_grad()
    def fill(self, factors: Factors, base: nn.Module, whole: Collection[str]) -> None:
        super().fill(factors, base, whole)
        if self.rank is not None:
            self.alpha = stored_alpha(factors, self.rank)


class AdaptedLinear(AdaptedModule, nn.Linear):
    """A frozen Linear with its adapter, which decides the output."""

    adapter: LinearAdapter

    @classmethod
    def adopt(cls, base: nn.Linear, adapter: LinearAdapter) -> AdaptedLinear:
        """Take over `base`'s parameters (the same objects, the same keys) and hold `adapter`."""
        assert not isinstance(base, AdaptedLinear), "this Linear already has an adapter"
        self = cls(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.take_over(base, adapter)
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.adapter.multiplier == 0:  # the user's choice, the same on every rank
            return base_product(x, frozen_weight(self), self.bias)
        return self.adapter(x, frozen_weight(self), self.bias)

    def activated(self, x: Tensor) -> Tensor | None:
        """As `Activates` of library/memory/activation.py has it: of a low rank, by a kernel of our own."""
        adapter, weight = self.adapter, frozen_weight(self)
        if not (isinstance(adapter, AdditiveAdapter) and adapter.is_low_rank and adapter.fused):
            return None
        if adapter.multiplier == 0 or self.bias is not None or sum_for(x) is not None:
            return None
        if not isinstance(weight, Tensor) or not can_fuse(x, weight):
            return None
        if adapter.rank is None or not is_for(x, weight, adapter.rank):
            return None
        return activated(x, weight, adapter.low(x), adapter.copies)

    def joined_products(self, x: Tensor, linears: Sequence[nn.Linear]) -> tuple[Tensor, ...] | None:
        """As `JoinsProducts` of library/memory/side_by_side.py has it: of frozen matrices and low ranks."""
        adapters: list[AdditiveAdapter | None] = []
        for each in linears:
            adapter = each.adapter if isinstance(each, AdaptedLinear) else None
            if adapter is None and type(each) not in (nn.Linear, QuantisedLinear):
                return None
            if adapter is None or adapter.multiplier == 0:
                adapters.append(None)
            elif isinstance(adapter, AdditiveAdapter) and adapter.is_low_rank:
                adapters.append(adapter)
            else:
                return None
        if not any(adapters):
            return frozen_products(x, linears)
        weight = matrix_of(x, linears)
        if weight is None:
            return None
        added = [None if each is None else each.low(x) for each in adapters]
        outputs = [each.out_features for each in linears]
        return add_low(x, weight, outputs, added, self.adapter.copies)


class AdditiveAdapter(LinearAdapter):
    """Adds to the output what a weight difference, scale * a product of factors, makes of the input.

    cut_at_export: its universal form has at most the rank that is asked for
    is_low_rank:   what it adds is two products with the input as a whole, which `low` tells
    """

    cut_at_export = False
    is_low_rank = False

    @property
    def scale(self) -> float:
        return adapter_scale(self.alpha, self.rank)

    def forward(self, x: Tensor, weight: Frozen, bias: Tensor | None) -> Tensor:
        chain = self.chain(x) if can_fuse(x, weight) else None
        if chain is None:
            return base_product(x, weight, bias) + self.added(x)
        return add_chain(x, weight, bias, *chain, self.copies)

    def added(self, x: Tensor) -> Tensor:
        """x (..., in) -> what is added to the output, (..., out); by plain autograd."""
        raise NotImplementedError

    def chain(self, x: Tensor) -> tuple[Chain, Sequence[Tensor]] | None:
        """The same as a chain with its factors; None for what is none."""
        return None

    def low(self, x: Tensor) -> Low:
        """The same where it is of low rank; its draws are those of `chain`."""
        raise NotImplementedError

    def delta(self) -> Tensor:
        """The dense weight difference at strength 1, (out, in)."""
        raise NotImplementedError

    def chains(self) -> Sequence[Sequence[Tensor]]:
        """The trained matrices: of each Kronecker factor those applied in turn, [w] or [first, last]."""
        raise NotImplementedError

    def merged(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = parameters["weight"]
        return {"weight": weight + self.multiplier * self.delta().to(weight.device, torch.float32)}

    @torch.no_grad()
    def change_norm(self) -> Tensor:
        """The difference itself is never built."""
        return abs(self.scale) * reduce(torch.mul, map(chain_norm, self.chains()))

    @torch.no_grad()
    def limit_norm(self, limit: float) -> Tensor:
        """The factors share the shrinking evenly."""
        norm = self.change_norm()
        ratio = (limit / norm.clamp(min=1e-30)).clamp(max=1.0)
        factors = self.factors().values()
        for factor in factors:
            factor.mul_(ratio ** (1 / len(factors)))
        return norm

    def strength(self, x: Tensor) -> float | Tensor:
        """scale * multiplier, times the mask of module dropout: 0 or 1 for this call."""
        mask = self.module_mask(x)
        strength = self.scale * self.multiplier
        return strength if mask is None else strength * mask


def chain_norm(chain: Sequence[Tensor]) -> Tensor:
    """The Frobenius norm of the matrices applied in turn, by their Gram matrices alone."""
    if len(chain) == 1:
        return chain[0].norm()
    first, last = chain  # (r, in), (out, r)
    return ((last.T @ last) * (first @ first.T)).sum().clamp(min=0).sqrt()


def copies_for(
    adapters: Sequence[LinearAdapter], dtype: torch.dtype, model: nn.Module | None = None
) -> Copies:
    """One copy of the factors of these adapters for each pass; to be called before the model's forward.

    model: where they are, which says what lies side by side and what is computed again together
    """
    factors = [factor for each in adapters for factor in each.parameters()]
    together = (used_together(model, adapters), parts_of(model, factors)) if model else ()
    copies = Copies(factors, dtype, *together)
    for adapter in adapters:
        adapter.use_copies(copies)
    return copies


def used_together(
    model: nn.Module, adapters: Sequence[LinearAdapter]
) -> Iterator[Sequence[Tensor]]:
    """Factors that are one in products: of low-rank adapters of Linears with one input."""
    own = set(adapters)
    for module in model.modules():
        if isinstance(module, SharesInput):
            linears = [each for each in module.of_one_input() if isinstance(each, AdaptedLinear)]
            low = [
                each.adapter for each in linears
                if isinstance(each.adapter, AdditiveAdapter) and each.adapter.is_low_rank
                and each.adapter in own
            ]  # fmt: skip
            for alike in zip(*(each.factors().values() for each in low)):
                if len({factor.shape[1] for factor in alike}) == 1:
                    yield alike
