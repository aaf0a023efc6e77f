"""The frozen part of every adapted Linear, in one place: its weight may be a quantised one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from library.memory.quantised import Frozen, Quantised, Rotated, quantised_product


def base_product(x: Tensor, weight: Frozen, bias: Tensor | None) -> Tensor:
    if isinstance(weight, Quantised):
        return quantised_product(x, weight, bias)
    return F.linear(x, weight, bias)


def outputs_of(weight: Frozen) -> int:
    return len(weight.codes if isinstance(weight, Quantised) else weight)


def add_base_gradient(out: Tensor, grad: Tensor, weight: Frozen) -> None:
    """Add base_gradient to out, dense, in the product itself."""
    if isinstance(weight, Rotated):  # which turns what it has computed
        out.add_(weight.gradient(grad))
        return
    matrix = weight.dense(grad.dtype) if isinstance(weight, Quantised) else weight
    out.view(-1, matrix.shape[1]).addmm_(grad.reshape(-1, matrix.shape[0]), matrix)


def base_gradient(grad: Tensor, weight: Frozen) -> Tensor:
    """The gradient of base_product's input, for the gradient of its output."""
    return weight.gradient(grad) if isinstance(weight, Quantised) else grad @ weight
