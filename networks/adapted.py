"""Adapted layers: subclasses that take a base module's place and carry its adapter as a child.

They hold the base's own Parameter objects under the base's own names, so checkpoint keys, `.to`,
DDP, checkpointing and compile see the model they know. `release()` gives the original module back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.adapters import Adapter, LinearAdapter, NormDelta

NORM_TYPES = (nn.RMSNorm, nn.LayerNorm)


def is_adaptable_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def is_adaptable_norm(module: nn.Module) -> bool:
    """A norm with a one-dimensional weight; norms without one have nothing to train."""
    weight = getattr(module, "weight", None)
    return isinstance(module, NORM_TYPES) and weight is not None and weight.dim() == 1


class AdaptedLinear(nn.Linear):
    """A frozen Linear plus its adapter."""

    adapter: LinearAdapter

    @classmethod
    def adopt(cls, base: nn.Linear, adapter: LinearAdapter) -> AdaptedLinear:
        """Take over `base`'s parameters (the same objects, the same keys) and add `adapter`."""
        assert not isinstance(base, AdaptedLinear), "this Linear already has an adapter"
        self = cls(base.in_features, base.out_features, base.bias is not None, device="meta")
        return _take_over(self, base, adapter)

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_product(x)
        if self.adapter.multiplier == 0:  # the user's choice, the same on every rank
            return out
        return out + self.adapter(x)

    def base_product(self, x: Tensor) -> Tensor:
        """The frozen part, in one place, so that a quantised weight can stand here."""
        return F.linear(x, self.weight, self.bias)

    def release(self) -> nn.Linear:
        """The original module, with the parameters as they are now."""
        return _give_back(self)


class AdaptedNorm(nn.Module):
    """A frozen RMSNorm or LayerNorm whose weight, and bias, get a trained float32 difference."""

    adapter: NormDelta

    @classmethod
    def adopt(cls, base: nn.Module, adapter: NormDelta) -> AdaptedNorm:
        """Take over `base`'s parameters (the same objects, the same keys) and add `adapter`."""
        assert is_adaptable_norm(base), f"{type(base).__name__} is no norm that can be adapted"
        self = cls()
        self.normalized_shape, self.eps = base.normalized_shape, base.eps
        self.subtracts_mean = isinstance(base, nn.LayerNorm)
        return _take_over(self, base, adapter)

    def forward(self, x: Tensor) -> Tensor:
        """As the base computes it, but in float32 throughout; returns x's dtype."""
        if self.adapter.multiplier == 0:
            return self.release()(x)
        weight, bias = self.adapter.weight(self.weight), self.adapter.bias(self.bias)
        if self.subtracts_mean:
            out = F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)
        else:
            out = F.rms_norm(x.float(), self.normalized_shape, weight, self.eps)
        return out.to(x.dtype)

    def release(self) -> nn.Module:
        """The original module, with the parameters as they are now."""
        return _give_back(self)


def merged_parameters(
    base: nn.Module, adapter: Adapter, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """What each parameter that the adapter changes becomes at its strength; float32."""
    merged = {}
    for name, change in adapter.changes().items():
        parameter = getattr(base, name).detach()
        where = parameter.device if device is None else device
        change = change.detach().to(where, torch.float32)
        merged[name] = parameter.to(where, torch.float32) + adapter.multiplier * change
    return merged


def _take_over(self: nn.Module, base: nn.Module, adapter: nn.Module) -> nn.Module:
    self.weight = base.weight
    self.register_parameter("bias", getattr(base, "bias", None))
    self.adapter = adapter
    # Past nn.Module's registry: a registered original would put every base parameter in twice.
    self.__dict__["original"] = base
    return self.train(base.training)


def _give_back(self: nn.Module) -> nn.Module:
    base = self.__dict__["original"]
    base.weight = self.weight
    if self.bias is not None:
        base.bias = self.bias
    return base.train(self.training)
