"""Blocks called through torch's compiler.

All blocks are one function to it, so that blocks that are built alike share one graph. What waits in RAM, or is
computed again, lies around the graph: it is the graph's inputs, and what it keeps for its backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class CompiledBlocks:
    """Calls a block with its inputs (tensors with batch and tokens first; tables with tokens first).

    any_size: one graph serves all batches and pictures; else each size of them gets its own
    options:  of torch.compile
    """

    def __init__(self, *, any_size: bool, **options: Any) -> None:
        self.any_size = any_size
        self.function: Callable[..., Tensor] = torch.compile(call, **options)

    def __call__(self, block: nn.Module, *inputs: Any) -> Tensor:
        if self.any_size:
            leave_sizes_open(inputs)
        return self.function(block, *inputs)


def call(block: nn.Module, *inputs: Any) -> Tensor:
    output: Tensor = block(*inputs)
    return output


def leave_sizes_open(inputs: Iterable[Any]) -> None:
    """Tell the compiler which sizes are another's next time: of batches, tokens, texts."""
    for each in inputs:
        if isinstance(each, tuple):
            leave_sizes_open(each)
        elif isinstance(each, Tensor):
            for axis in range(each.dim() - 1):
                torch._dynamo.maybe_mark_dynamic(each, axis)
