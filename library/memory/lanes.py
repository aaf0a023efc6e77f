"""Copies beside the computation: on a stream of their own where the device has streams."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

Mark = object
"""A point of a lane or of the computation that the other can wait for."""


class Lane(Protocol):
    """Copies in their order; the computation and they wait for each other only where they are told."""

    def now(self) -> Mark:
        """The point up to which the computation was ordered."""
        ...

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], after: Mark) -> Mark:
        """Copy into each (target, source) once the computation is at `after`; the point when done."""
        ...

    def wait(self, mark: Mark) -> None:
        """Let what is computed from here on begin once the lane is at `mark`."""
        ...


class AtOnce:
    """The lane of a device that computes in the order in which it is told."""

    def now(self) -> Mark:
        return None

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], after: Mark) -> Mark:
        for target, source in pairs:
            target.copy_(source)
        return None

    def wait(self, mark: Mark) -> None:
        pass


class CudaLane:
    """A stream. Copies overlap the computation where the memory on the CPU is pinned."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def now(self) -> Mark:
        return torch.cuda.current_stream(self.device).record_event()

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], after: Mark) -> Mark:
        assert isinstance(after, torch.cuda.Event)
        self.stream.wait_event(after)
        with torch.cuda.stream(self.stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
                if target.is_cuda:  # freed before it is used, it is not given away half filled
                    target.record_stream(self.stream)
        return self.stream.record_event()

    def wait(self, mark: Mark) -> None:
        assert isinstance(mark, torch.cuda.Event)
        torch.cuda.current_stream(self.device).wait_event(mark)


def lane_of(device: torch.device) -> Lane:
    return CudaLane(device) if device.type == "cuda" else AtOnce()
