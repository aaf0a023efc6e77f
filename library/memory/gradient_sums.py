"""Gradients of a tensor that several products use, added up in the products themselves.

Autograd adds the gradients of all uses one by one, each in a kernel that reads two and writes one. Here
each use adds its own to what is there already, as a matrix product can while it writes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakIdKeyDictionary


class GradientSum:
    """Of one tensor, in one backward pass at a time."""

    def __init__(self) -> None:
        self.task = -1
        self.total: Tensor | None = None

    def so_far(self) -> Tensor | None:
        """What other uses have left in this backward pass, to be added to in place."""
        return self.total if self.task == torch._C._current_graph_task_id() else None

    def leave(self, total: Tensor) -> None:
        self.task, self.total = torch._C._current_graph_task_id(), total

    def take(self) -> Tensor | None:
        total, self.total = self.so_far(), None
        return total


def shared(x: Tensor) -> Tensor:
    """x, for uses that ask `sum_for` of it; others may be among them, whose gradients are added as usual."""
    if torch.compiler.is_compiling() or not (x.requires_grad and torch.is_grad_enabled()):
        return x
    if sum_for(x) is not None:
        return x
    total = GradientSum()
    alias: Tensor = Shared.apply(x, total)
    _sums[alias] = total
    return alias


def sum_for(x: Tensor) -> GradientSum | None:
    """Where the gradient of x is to be left, instead of returning it; None: nowhere."""
    total: GradientSum | None = _sums.get(x)
    return total


class Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, total: GradientSum) -> Tensor:
        ctx.total = total
        ctx.set_materialize_grads(False)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        total = ctx.total.take()
        if grad is None or total is None:
            return grad if total is None else total, None
        return total.add_(grad), None


_sums = WeakIdKeyDictionary()
"""The sum of each tensor that `shared` gave."""
