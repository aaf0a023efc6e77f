"""Weights that wait in RAM and are on the device only while their module computes.

They travel one way: the copies in RAM are the weights, those on the device are dropped. Whoever changes one
of them in RAM says so. Autograd never holds a buffer: what it would keep of one is fetched again in the
backward pass, whatever view it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from library.memory.kept import Kept, keeping, storage_key
from library.memory.lanes import Lane, Mark, lane_of
from library.memory.layout import Layout

BUFFERS = 2
"""One for the module that computes and one for the next, which travels meanwhile.

A third would save two copies a step, as a group that does not travel at all does for the same memory.
"""
ALIGNMENT = 256  # bytes, as allocators give it

Weights = Sequence[Tensor]


class Swap:
    """Groups of weights, used in their order by the forward pass, in reverse by the backward.

    Each weight's `data` is its copy in RAM, pinned for CUDA, but while its group computes.
    numbers:        of the group of each weight, by the weight's id
    before_reading: what the host has to wait for before it reads weights that change, or changes them
    """

    def __init__(
        self, groups: Sequence[Weights], device: torch.device, lane: Lane | None = None
    ) -> None:
        self.groups, self.device = groups, device
        self.lane = lane_of(device) if lane is None else lane
        self.numbers = {id(weight): n for n, group in enumerate(groups) for weight in group}
        self.before_reading: list[Callable[[], None]] = []
        for weight in (weight for group in groups for weight in group):
            weight.data = in_ram(weight.data, pinned=device.type == "cuda")
        self.current: int | None = None

    @cached_property
    def buffers(self) -> list[Buffer]:
        """Made at the first use, when the weights have the dtype that computes."""
        size = max(sum(map(room_of, group)) for group in self.groups)
        count = min(BUFFERS, len(self.groups))
        return [Buffer(size, self.device, self.lane.now()) for _ in range(count)]

    def settle(self) -> None:
        """Let the host wait until what changed on the device is in RAM."""
        for wait in self.before_reading:
            wait()

    def change(self, weight: Tensor) -> None:
        """Before a weight's copy in RAM changes: what is on the device of it is old from then on."""
        for buffer in self.buffers_of(self.numbers[id(weight)]):
            buffer.arrive(self.lane)
        torch.autograd.graph.increment_version(weight)

    def run(self, number: int, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """function(*inputs) while the weights of a group are on the device."""
        with self.present(number), keeping(self.stand_in_for):
            return function(*inputs)

    @contextmanager
    def present(self, number: int) -> Iterator[None]:
        group = self.groups[number]
        views = self.use(number).views
        homes = [weight.data for weight in group]
        try:
            for weight, view in zip(group, views, strict=True):
                weight.data = view
            yield
        finally:
            for weight, home in zip(group, homes, strict=True):
                weight.data = home

    def stand_in_for(self, kept: Kept) -> Kept:
        """A way of keeping: no buffer, nor a view of one."""
        if isinstance(kept, Tensor):
            key = storage_key(kept)
            for buffer in self.buffers:
                if buffer.key == key:
                    assert buffer.number is not None
                    return Fetched(self, buffer.number, Layout.of(kept))
        return kept

    def use(self, number: int) -> Buffer:
        """The buffer of a group, for what is computed from here on; the next one's is on its way."""
        if self.current is not None and self.current != number:
            self.buffers_of(self.current)[0].left = self.lane.now()
        before, self.current = self.current, number
        buffer = self.fetch(number)
        buffer.arrive(self.lane)
        following = self.following(before, number)
        if following is not None:
            self.fetch(following)
        return buffer

    def using(self, number: int) -> Buffer:
        """The same in a backward pass, through which no weight changes."""
        return self.buffers_of(number)[0] if number == self.current else self.use(number)

    def following(self, before: int | None, number: int) -> int | None:
        """The group after this one, as the passes go: up, and down from where they turned."""
        last = len(self.groups) - 1
        up = before is None or number > before or (before, number) == (last, 0)
        if up and number == last and not torch.is_grad_enabled():
            return 0  # no backward pass will come
        following = number + 1 if up else number - 1
        return following if 0 <= following <= last else None

    def fetch(self, number: int) -> Buffer:
        """The buffer that holds a group as it is now, or is being filled with it."""
        held = self.buffers_of(number)
        if held and held[0].is_of(self.groups[number]):
            return held[0]
        if held:
            held[0].left = self.lane.now()
        free = held or [buffer for buffer in self.buffers if buffer.number != self.current]
        buffer = max(free, key=lambda b: math.inf if b.number is None else abs(b.number - number))
        buffer.fill(number, self.groups[number], self.lane)
        return buffer

    def buffers_of(self, number: int) -> list[Buffer]:
        return [buffer for buffer in self.buffers if buffer.number == number]


class Buffer:
    """Memory on the device that holds one group at a time."""

    def __init__(self, size: int, device: torch.device, now: Mark) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.key = storage_key(self.memory)
        self.number: int | None = None
        self.views: list[Tensor] = []
        self.sources: list[tuple[Tensor, int]] = []
        self.filled: Mark = now
        self.has_arrived = True
        self.left: Mark = now  # when the computation had last used it

    def fill(self, number: int, weights: Weights, lane: Lane) -> None:
        self.number = number
        self.sources = [(weight.data, weight._version) for weight in weights]
        self.views = list(views_of(self.memory, [weight.data for weight in weights]))
        pairs = [(view, data) for view, (data, _) in zip(self.views, self.sources, strict=True)]
        self.filled, self.has_arrived = lane.copy(pairs, after=self.left), False

    def arrive(self, lane: Lane) -> None:
        """What is computed from here on finds it filled."""
        if not self.has_arrived:
            lane.wait(self.filled)
            self.has_arrived = True

    def is_of(self, weights: Weights) -> bool:
        """Whether the weights are still those that were copied: merging replaces them."""
        return all(
            place_of(weight) == place_of(data) and weight._version == version
            for weight, (data, version) in zip(weights, self.sources, strict=True)
        )


class Fetched:
    """Stands for a view of a group's buffer."""

    def __init__(self, swap: Swap, number: int, layout: Layout) -> None:
        self.swap, self.number, self.layout = swap, number, layout

    def tensor(self) -> Tensor:
        buffer = self.swap.using(self.number)
        return self.layout.in_memory_of(buffer.memory.view(self.layout.dtype))


def in_ram(tensor: Tensor, *, pinned: bool) -> Tensor:
    if tensor.is_meta or (tensor.device.type == "cpu" and not pinned):
        return tensor  # one without data is in RAM as well as anywhere
    return torch.empty_like(tensor, device="cpu", pin_memory=pinned).copy_(tensor)


def place_of(tensor: Tensor) -> tuple[int, int]:
    """Where it lies, while that memory lives."""
    return storage_key(tensor), int(tensor.storage_offset())


def room_of(tensor: Tensor) -> int:
    """Bytes, rounded up to what keeps the next one aligned."""
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


def views_of(memory: Tensor, tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Places for such tensors in the memory."""
    start = 0
    for tensor in tensors:
        yield memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        start += room_of(tensor)


def spread(chosen: int, among: int) -> list[int]:
    """So many numbers below `among`, as far apart as they can be: copies then have time between."""
    return [(2 * place + 1) * among // (2 * chosen) for place in range(chosen)]
