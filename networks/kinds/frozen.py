"""The frozen part of every adapted Linear, in one place: its weight may be a quantised one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from library.memory.quantised import Frozen, Quantised, QuantisedProduct


def base_product(x: Tensor, weight: Frozen, bias: Tensor | None) -> Tensor:
    if isinstance(weight, Quantised):
        return QuantisedProduct.apply(x, weight.codes, weight.scale, bias)
    return F.linear(x, weight, bias)


def base_gradient(grad: Tensor, weight: Frozen) -> Tensor:
    """The gradient of base_product's input, for the gradient of its output."""
    return grad @ (weight.dense(grad.dtype) if isinstance(weight, Quantised) else weight)
