"""The GELU after a Linear, for one that makes both in fewer kernels than they need apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from library.memory.recomputation import cheap


@runtime_checkable
class Activates(Protocol):
    """A Linear that computes more than its frozen product, and may end with the GELU of it."""

    def activated(self, x: Tensor) -> Tensor | None:
        """The GELU of what it makes of x; None: it has no way of its own for it."""
        ...


def activated(linear: nn.Linear, x: Tensor, gelu: Callable[[Tensor], Tensor]) -> Tensor:
    """gelu(linear(x)). Computed again for the backward pass where that saves memory, as all that is cheap is."""
    found = None
    if isinstance(linear, Activates) and not torch.compiler.is_compiling():
        found = linear.activated(x)
    return cheap(gelu, linear(x)) if found is None else found
