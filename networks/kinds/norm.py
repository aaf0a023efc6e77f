"""Trained norms: a float32 difference of a norm's weight and, where there is one, of its bias."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.kinds.adapter import AdaptedModule, Adapter
from networks.kinds.full import DIFF, SET_WEIGHT
from networks.kinds.kind import Kind
from networks.kinds.stored import BIAS, DIFF_B, WEIGHT, Factors, difference

W_NORM, B_NORM = "w_norm", "b_norm"
NORM_PARAMETERS = {W_NORM: "weight", B_NORM: "bias"}

# What other factors are for a norm: its own factor, and whether they hold the whole parameter.
OF_NORMS = {
    DIFF: (W_NORM, False),
    DIFF_B: (B_NORM, False),
    SET_WEIGHT: (W_NORM, True),
    WEIGHT: (W_NORM, True),
    BIAS: (B_NORM, True),
}

Norm = nn.RMSNorm | nn.LayerNorm


def is_adaptable_norm(module: nn.Module) -> TypeGuard[Norm]:
    """A norm with a one-dimensional weight; norms without one have nothing to train."""
    weight = getattr(module, "weight", None)
    return isinstance(module, Norm) and weight is not None and weight.dim() == 1


class NormDelta(Adapter):
    """The differences of one norm; zero at first."""

    w_norm: nn.Parameter
    b_norm: nn.Parameter

    def __init__(self, size: int, *, bias: bool) -> None:
        super().__init__()
        self._add_factors({W_NORM: (size,), **({B_NORM: (size,)} if bias else {})})
        self.changed = tuple(NORM_PARAMETERS[name] for name in self.factors())

    @classmethod
    def of(cls, base: nn.Module) -> NormDelta:
        """Fresh differences for a norm."""
        weight = base.get_parameter("weight")
        return cls(weight.numel(), bias=getattr(base, "bias", None) is not None)

    def adopt(self, base: nn.Module) -> AdaptedNorm:
        assert is_adaptable_norm(base), f"{type(base).__name__} is no norm that can be adapted"
        return AdaptedNorm.adopt(base, self)

    def changes(self) -> dict[str, Tensor]:
        """What is added to each of the base's parameters at strength 1."""
        return {NORM_PARAMETERS[name]: factor for name, factor in self.factors().items()}

    @torch.no_grad()
    def change_norm(self) -> Tensor:
        return torch.cat([change.float() for change in self.changes().values()]).norm()

    def merged(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: parameters[name]
            + self.multiplier * change.to(parameters[name].device, torch.float32)
            for name, change in self.changes().items()
        }

    @torch.no_grad()
    def fill(self, factors: Factors, base: nn.Module, whole: Collection[str]) -> None:
        """A whole parameter is filled in as its difference from the base's own."""
        own = dict(factors)
        for name in whole:
            value = factors[name].to(self.w_norm.device, torch.float32)
            parameter = base.get_parameter(NORM_PARAMETERS[name]).detach()
            own[name] = value - parameter.to(value.device, torch.float32)
        super().fill(own, base, frozenset())

    def weight(self, base: Tensor) -> Tensor:
        """The norm's weight with its difference added, in float32."""
        return self.added_to(base, self.w_norm)

    def bias(self, base: Tensor | None) -> Tensor | None:
        return None if base is None else self.added_to(base, self.b_norm)

    def added_to(self, base: Tensor, change: Tensor) -> Tensor:
        """One kernel: what is narrower than float32 is widened on the way."""
        if base.dtype.itemsize > 2:
            base = base.float()
        return torch.add(base, change.float(), alpha=self.multiplier)

    def survivors(self, base: nn.Module) -> tuple[int, int]:
        """(changed entries, those of them that still differ after addition to a bf16 parameter)."""
        changed = survived = 0
        for name, change in self.changes().items():
            own = base.get_parameter(name).detach().to(change.device, torch.bfloat16)
            changed += int((change != 0).sum())
            survived += int(((own.float() + change.float()).to(torch.bfloat16) != own).sum())
        return changed, survived


class AdaptedNorm(AdaptedModule):
    """A frozen RMSNorm or LayerNorm whose weight, and bias, get their trained difference."""

    adapter: NormDelta
    weight: nn.Parameter
    bias: nn.Parameter | None
    normalized_shape: tuple[int, ...]
    eps: float | None
    subtracts_mean: bool

    @classmethod
    def adopt(cls, base: Norm, adapter: NormDelta) -> AdaptedNorm:
        """Take over `base`'s parameters (the same objects, the same keys) and hold `adapter`."""
        self = cls()
        self.normalized_shape, self.eps = base.normalized_shape, base.eps
        self.subtracts_mean = isinstance(base, nn.LayerNorm)
        self.take_over(base, adapter)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """As the base computes it, but in float32 throughout; returns x's dtype."""
        if self.adapter.multiplier == 0:  # exactly as the base
            return self.normalize(x, self.weight, self.bias)
        weight, bias = self.weight_in_use(), self.adapter.bias(self.bias)
        return self.normalize(x.float(), weight, bias).to(x.dtype)

    def weight_in_use(self) -> Tensor:
        """The weight with its difference, in float32; for a model that normalises in a kernel of its own."""
        return self.weight if self.adapter.multiplier == 0 else self.adapter.weight(self.weight)

    def normalize(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.subtracts_mean:
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps or 0.0)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


def norm_change(factors: Factors, weight: Tensor) -> Tensor:
    return difference(factors[W_NORM], weight, is_whole=False)


KIND = Kind("norm", {W_NORM: (W_NORM,), B_NORM: (B_NORM,)}, norm_change, of_matrices=False)
