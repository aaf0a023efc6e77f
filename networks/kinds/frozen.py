"""The frozen part of every adapted Linear, in one place: a quantised weight can stand here."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def base_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def base_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of base_product's input, for the gradient of its output."""
    return grad @ weight
