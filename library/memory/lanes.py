"""Copies beside the computation: on a stream of their own where the device has streams."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

Mark = object
"""A point of a lane or of the computation that the other can wait for."""


class Lane(Protocol):
    """Copies in their order; the computation and they wait for each other only where they are told.

    is_beside: copies go on while something is computed
    """

    is_beside: bool

    def now(self) -> Mark:
        """The point up to which the computation was ordered."""
        ...

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], after: Mark) -> Mark:
        """Copy into each (target, source) once the computation is at `after`; the point when done."""
        ...

    def wait(self, mark: Mark) -> None:
        """Let what is computed from here on begin once the lane is at `mark`."""
        ...

    def follow(self, mark: Mark) -> None:
        """Let the lane's next copies begin once another lane is at `mark`."""
        ...

    def finish(self) -> None:
        """Let the host wait until all is done that the lane was asked so far."""
        ...

    def beside(self) -> AbstractContextManager[None]:
        """Within, on this thread: what is asked of the device is done by the lane, at once."""
        ...

    def reached(self) -> Mark:
        """The point at which all is done that the lane was asked so far."""
        ...

    def receive(self, tensors: Iterable[Tensor]) -> None:
        """Keep the memory of tensors made `beside` until what is computed with them is done."""
        ...


class AtOnce:
    """The lane of a device that computes in the order in which it is told."""

    is_beside = False

    def now(self) -> Mark:
        return None

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], after: Mark) -> Mark:
        for target, source in pairs:
            target.copy_(source)
        return None

    def wait(self, mark: Mark) -> None:
        pass

    def follow(self, mark: Mark) -> None:
        pass

    def finish(self) -> None:
        pass

    def beside(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def reached(self) -> Mark:
        return None

    def receive(self, tensors: Iterable[Tensor]) -> None:
        pass


class CudaLane:
    """A stream. Copies overlap the computation where the memory on the CPU is pinned."""

    is_beside = True

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

    def follow(self, mark: Mark) -> None:
        assert isinstance(mark, torch.cuda.Event)
        self.stream.wait_event(mark)

    def finish(self) -> None:
        self.stream.synchronize()

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        # A new thread's own card is the first: to come back to that from a stream of another would begin
        # to use it. To come back within the other does not.
        with torch.cuda.device(self.stream.device), torch.cuda.stream(self.stream):
            yield

    def reached(self) -> Mark:
        return self.stream.record_event()

    def receive(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            tensor.record_stream(torch.cuda.current_stream(self.device))


def lane_of(device: torch.device) -> Lane:
    return CudaLane(device) if device.type == "cuda" else AtOnce()
