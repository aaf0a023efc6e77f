"""Tensors parked in RAM between forward and backward pass, moved beside the computation."""

from __future__ import annotations

from collections.abc import Callable
from weakref import ref

import torch
from torch import Tensor

from library.memory.kept import Kept
from library.memory.lanes import Lane


def nothing() -> None:
    """Like a weak reference to what is gone."""


class RamStore:
    """Parks tensors that the backward pass asks for in reverse order.

    Each leaves the device when the next is put; the one before is fetched when one is asked for.
    """

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.newest: Callable[[], Parked | None] = nothing

    def put(self, kept: Kept) -> Kept:
        """A way of keeping: in RAM."""
        assert isinstance(kept, Tensor)
        before = self.newest()
        if before is not None:
            before.leave()
        parked = Parked(self.lane, kept, before)
        self.newest = ref(parked)
        return parked


class Parked:
    """Stands for one tensor in RAM, and for its copy on the device while there is one."""

    def __init__(self, lane: Lane, tensor: Tensor, before: Parked | None) -> None:
        self.lane, self.device = lane, tensor.device
        self.before: Callable[[], Parked | None] = nothing if before is None else ref(before)
        pinned = tensor.is_cuda  # else the copies would not overlap
        self.in_ram = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
        self.done = lane.copy([(self.in_ram, tensor)], after=lane.now())
        self.here: Tensor | None = tensor

    def leave(self) -> None:
        self.lane.wait(self.done)  # before the memory is given to what is computed next
        self.here = None

    def fetch(self) -> Tensor:
        if self.here is None:
            self.here = torch.empty_like(self.in_ram, device=self.device)
            self.done = self.lane.copy([(self.here, self.in_ram)], after=self.lane.now())
        return self.here

    def tensor(self) -> Tensor:
        tensor = self.fetch()
        self.leave()
        before = self.before()
        if before is not None:
            before.fetch()
        return tensor
