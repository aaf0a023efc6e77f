"""What autograd keeps for the backward pass, and what it keeps instead.

A way of keeping looks at each tensor that would be kept and may put a stand-in in its place. Ways are
chained from the inside out, where torch asks the innermost of its saved-tensor hooks alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class StandIn(Protocol):
    """What is kept instead of a tensor."""

    def tensor(self) -> Tensor:
        """The tensor, with the same bits; asked for once in each backward pass."""
        ...


Kept = Tensor | StandIn
Way = Callable[[Kept], Kept]

_ways: ContextVar[tuple[Way, ...]] = ContextVar("ways of keeping, the innermost first", default=())


@contextmanager
def keeping(way: Way) -> Iterator[None]:
    """Within: what autograd would keep goes through `way`, then through those around it."""
    ways = (way, *_ways.get())

    def keep(tensor: Tensor) -> Kept:
        kept: Kept = tensor.detach()  # a result that its own graph keeps would hold itself
        for each in ways:
            kept = each(kept)
        return kept

    token = _ways.set(ways)
    try:
        with saved_tensors_hooks(keep, restored):
            yield
    finally:
        _ways.reset(token)


def restored(kept: Kept) -> Tensor:
    return kept if isinstance(kept, Tensor) else kept.tensor()


def storage_key(tensor: Tensor) -> int:
    """Of the memory behind a tensor, the same for its views; unique only while the memory lives."""
    return tensor.untyped_storage()._cdata
