"""Frozen Linears of which 8 or 4 bits a weight are stored, with a float32 scale for each row or block.

The weight is made again at each use, in the dtype of what it is applied to, or what it is applied to is
rounded to 8 bits too; autograd keeps the stored form alone. Norms, biases and whatever is no Linear stay
as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from library.memory.rotation import SMALLEST_SCALE, integer_product, rotated

FORMS = {"fp8": torch.float8_e4m3fn, "int8": torch.int8, "int8_rotated": torch.int8}
"""The stored forms by name; every value of each is exact in bfloat16 and float16."""
BLOCK = 64
"""Values that share a scale where 4 bits are stored."""
FEWEST_ROWS = 32
"""Of an integer product: cuBLAS needs more than 16."""


class Quantised(NamedTuple):
    """A weight (out, in) as it is stored: codes (out, in), scale (out, 1) float32; so the other kinds but
    where they say it."""

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

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The Linear's output."""
        return F.linear(x, self.dense(x.dtype), bias)

    def gradient(self, grad: Tensor) -> Tensor:
        """Of the Linear's input, for that of its output."""
        return grad @ self.dense_again(grad.dtype)

    def dense_again(self, dtype: torch.dtype) -> Tensor:
        """The bits of `dense`, for the backward pass.

        By other steps: a compiler takes what is computed alike in both passes for one, and keeps it.
        """
        return self.codes.t().to(dtype).mul_(self.scale.t()).t()


class Rotated(Quantised):
    """Of a weight turned over its inputs and over its outputs. Products are computed in int8.

    Forward and backward are alike: the rows are turned and rounded, and what comes out is turned back.
    """

    __slots__ = ()

    @classmethod
    def of(cls, weight: Tensor, form: str) -> Rotated:
        turned = rotated(rotated(weight.detach().float()).t()).t()
        return cls(*Quantised.of(turned, form))

    def dense(self, dtype: torch.dtype) -> Tensor:
        return rotated(rotated(super().dense(torch.float32)).t()).t().to(dtype)

    def dense_again(self, dtype: torch.dtype) -> Tensor:
        return self.dense(dtype)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) < FEWEST_ROWS:
            return super().product(x, bias)
        sums = integer_product(rotated(rows), self.codes.t()).mul_(self.scale.t())
        out = rotated(sums.to(x.dtype)).view(*x.shape[:-1], -1)
        return out if bias is None else out.add_(bias)

    def gradient(self, grad: Tensor) -> Tensor:
        rows = grad.reshape(-1, grad.shape[-1])
        if len(rows) < FEWEST_ROWS:
            return super().gradient(grad)
        sums = integer_product(rotated(rows) * self.scale.t(), self.codes)
        return rotated(sums.to(grad.dtype)).view(*grad.shape[:-1], -1)


class FourBits(Quantised):
    """NF4 of bitsandbytes: codes (out, in / 2) uint8, two values each; scale (ceil(out * in / 64),) float32.

    A block of 64 values has its largest as scale, a value the nearest of 16 that a normal distribution
    has as quantiles (Dettmers et al. 2023, QLoRA, 3). To store the scales in 8 bits in turn would save 0.37
    of 4.5 bits a weight, for two more kernels at each use. bitsandbytes is imported by who asks for this.
    """

    __slots__ = ()

    @classmethod
    def of(cls, weight: Tensor, form: str) -> FourBits:
        wide = weight.detach().float().contiguous()
        make = torch.ops.bitsandbytes.quantize_4bit.default
        codes, scale = make(wide, BLOCK, form, torch.uint8)
        return cls(codes.view(len(weight), -1), scale)

    def dense(self, dtype: torch.dtype) -> Tensor:
        return self.read(self.codes, dtype)

    def dense_again(self, dtype: torch.dtype) -> Tensor:
        return self.read(self.codes.view(-1, 1), dtype)

    def read(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """codes: in any shape"""
        # in one row: its kernel for CPUs takes each row to begin a block
        count = 2 * codes.numel()
        make = torch.ops.bitsandbytes.dequantize_4bit.default
        row: Tensor = make(codes, self.scale, BLOCK, "nf4", (1, count), dtype)
        return row.view(len(self.codes), -1)


KINDS = {"fp8": Quantised, "int8": Quantised, "int8_rotated": Rotated, "nf4": FourBits}
"""How the weights of each form are held."""

Frozen = Tensor | Quantised


def kind_of(form: str) -> type[Quantised]:
    return KINDS[form]


class QuantisedProduct(torch.autograd.Function):
    """The output of a Linear with a stored weight, of which the weight as it was used is not kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, kind: type[Quantised]
    ) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.kind = kind
        return kind(codes, scale).product(x, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        weight = ctx.kind(*ctx.saved_tensors)
        return weight.gradient(grad), None, None, None, None


def quantised_product(x: Tensor, weight: Quantised, bias: Tensor | None = None) -> Tensor:
    return QuantisedProduct.apply(x, *weight, bias, type(weight))


class QuantisedLinear(nn.Linear):
    """A frozen Linear with `weight` in a stored form and `weight_scale`; the keys a file has too."""

    weight_scale: nn.Parameter
    kind: type[Quantised]

    @classmethod
    def of(cls, base: nn.Linear, form: str, device: torch.device) -> QuantisedLinear:
        """Computed on `device`, stored where `base` is, whose bias it takes over."""
        stored, home = kind_of(form).of(base.weight.to(device), form), base.weight.device
        return cls.holding(base, type(stored)(stored.codes.to(home), stored.scale.to(home)))

    @classmethod
    def empty(cls, base: nn.Linear, form: str) -> QuantisedLinear:
        """As `of` makes it of a Linear without memory, for a form of 8 bits."""
        codes = torch.empty_like(base.weight, dtype=FORMS[form])
        scale = torch.empty_like(base.weight[:, :1], dtype=torch.float32)
        return cls.holding(base, kind_of(form)(codes, scale))

    @classmethod
    def holding(cls, base: nn.Linear, stored: Quantised) -> QuantisedLinear:
        self = cls(base.in_features, base.out_features, bias=False, device="meta")
        self.weight = nn.Parameter(stored.codes, requires_grad=False)
        self.weight_scale = nn.Parameter(stored.scale, requires_grad=False)
        self.bias, self.kind = base.bias, type(stored)
        return self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        return quantised_product(x, self.kind(self.weight, self.weight_scale), self.bias)


def frozen_weight(linear: nn.Linear) -> Frozen:
    """The weight of a Linear, or of what took its place, as products take it."""
    scale = getattr(linear, "weight_scale", None)
    if scale is None:
        return linear.weight
    base = getattr(linear, "original", linear)
    assert isinstance(base, QuantisedLinear), "nothing else has scales"
    return base.kind(linear.weight, scale)


def quantise_linears(
    model: nn.Module, linears: Mapping[str, nn.Linear], form: str, device: torch.device
) -> list[Tensor]:
    """Store these Linears' weights in a form, unless they are already; returns them as they are stored."""
    for name, linear in linears.items():
        if not isinstance(linear, QuantisedLinear):
            model.set_submodule(name, QuantisedLinear.of(linear, form, device))
    return [model.get_parameter(f"{name}.weight") for name in linears]
