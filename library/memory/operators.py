"""Kernels of our own as operators of torch, below autograd: a count on the meta device sees each as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

LIBRARY = torch.library.Library("one_kernel", "FRAGMENT")


def operator(schema: str) -> Callable[[Callable[..., Any]], OpOverload]:
    """The decorated function as an operator; on the meta device it makes its results and no more."""

    def declared(function: Callable[..., Any]) -> OpOverload:
        name = LIBRARY.define(schema)
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        overload: OpOverload = getattr(torch.ops.one_kernel, name).default
        return overload

    return declared
