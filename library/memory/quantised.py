"""Frozen Linears of which 8 bits a weight are stored, with one float32 scale for each row.

The weight is made again at each use, in the dtype of what it is applied to; autograd keeps the stored
form alone. Norms, biases and whatever is no Linear stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FORMS = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
"""The stored forms by name; every value of each is exact in bfloat16 and float16."""
SMALLEST_SCALE = torch.finfo(torch.float32).tiny


class Quantised(NamedTuple):
    """A weight (out, in) as it is stored: codes (out, in), scale (out, 1) float32."""

    codes: Tensor
    scale: Tensor

    @classmethod
    def of(cls, weight: Tensor, form: str) -> Quantised:
        """The nearest values of a form, each row's largest at the form's end. Memory: float32 once."""
        dtype = FORMS[form]
        wide = weight.detach().float()
        largest = torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max
        # a row of zeros, or of next to nothing, has no scale of its own
        scale = (wide.abs().amax(1, keepdim=True) / largest).clamp_(min=SMALLEST_SCALE)
        codes = wide / scale
        return cls((codes if dtype.is_floating_point else codes.round_()).to(dtype), scale)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight that the codes stand for, rounded once."""
        return self.codes.to(dtype).mul_(self.scale)


Frozen = Tensor | Quantised


class QuantisedProduct(torch.autograd.Function):
    """F.linear of an input and a stored weight, of which the weight as it was used is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(codes, scale)
        return F.linear(x, Quantised(codes, scale).dense(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        weight = Quantised(*ctx.saved_tensors)
        return grad @ weight.dense(grad.dtype), None, None, None


class QuantisedLinear(nn.Linear):
    """A frozen Linear with `weight` in a stored form and `weight_scale`; the keys a file has too."""

    weight_scale: nn.Parameter

    @classmethod
    def of(cls, base: nn.Linear, form: str, device: torch.device) -> QuantisedLinear:
        """Computed on `device`, stored where `base` is, whose bias it takes over."""
        stored, home = Quantised.of(base.weight.to(device), form), base.weight.device
        return cls.holding(base, Quantised(stored.codes.to(home), stored.scale.to(home)))

    @classmethod
    def empty(cls, base: nn.Linear, form: str) -> QuantisedLinear:
        """As `of` makes it of a Linear without memory."""
        codes = torch.empty_like(base.weight, dtype=FORMS[form])
        scale = torch.empty_like(base.weight[:, :1], dtype=torch.float32)
        return cls.holding(base, Quantised(codes, scale))

    @classmethod
    def holding(cls, base: nn.Linear, stored: Quantised) -> QuantisedLinear:
        self = cls(base.in_features, base.out_features, bias=False, device="meta")
        self.weight = nn.Parameter(stored.codes, requires_grad=False)
        self.weight_scale = nn.Parameter(stored.scale, requires_grad=False)
        self.bias = base.bias
        return self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        return QuantisedProduct.apply(x, self.weight, self.weight_scale, self.bias)


def frozen_weight(linear: nn.Linear) -> Frozen:
    """The weight of a Linear, or of what took its place, as products take it."""
    scale = getattr(linear, "weight_scale", None)
    return linear.weight if scale is None else Quantised(linear.weight, scale)


def quantise_linears(
    model: nn.Module, linears: Mapping[str, nn.Linear], form: str, device: torch.device
) -> list[Tensor]:
    """Store these Linears' weights in a form, unless they are already; returns them as they are stored."""
    for name, linear in linears.items():
        if not isinstance(linear, QuantisedLinear):
            model.set_submodule(name, QuantisedLinear.of(linear, form, device))
    return [model.get_parameter(f"{name}.weight") for name in linears]
