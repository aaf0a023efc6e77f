"""How sigma steers the blocks: shift, scale and gate of each sub-layer, made for all blocks at once.

Each sub-layer has two small matrices of its own. While they are frozen and nobody adapts them they lie in
two tensors, of which the parameters are views, and three products make what all blocks need. Weights that
wait in RAM are on the device only while they compute, in a backward pass as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from library.anima_backend.modelling.params import DiTParams
from library.memory.kept import Kept, keeping, storage_key
from library.memory.layout import Layout
from library.memory.swapping import place_of


class Modulation(nn.ModuleList):
    """SiLU, Linear, Linear, plus the shared values: shift, scale and, in blocks, gate; (B, 1, D) each."""

    def __init__(self, params: DiTParams, chunks: int) -> None:
        super().__init__([
            nn.SiLU(),
            nn.Linear(params.model_dim, params.adaln_dim, bias=False),
            nn.Linear(params.adaln_dim, chunks * params.model_dim, bias=False),
        ])  # fmt: skip
        self.chunks = chunks

    def forward(self, embedded: Tensor, shared: Tensor) -> tuple[Tensor, ...]:
        """From embedded (B, 1, D) and shared (B, 1, 3D); the scale is one that multiplies: 1 is in it."""
        values = embedded
        for part in self:
            values = part(values)
        shift, scale, *gate = (values + shared[..., : values.shape[-1]]).chunk(self.chunks, dim=-1)
        return shift, 1 + scale, *gate


class Stack(NamedTuple):
    """The matrices of n modulations; down (n, R, D), up (n, 3D, R)."""

    down: Tensor
    up: Tensor

    @classmethod
    def of(cls, weights: Sequence[nn.Parameter], *, pinned: bool) -> Stack:
        """Copies of the weights, down and up in turn, whose data then are views of it.

        pinned: in RAM, from where the copies to a card are fast
        """
        count, first = len(weights) // 2, weights[:2]
        place = torch.device("cpu") if pinned else weights[0].device
        stack = cls(*(
            torch.empty(count, *each.shape, dtype=each.dtype, device=place, pin_memory=pinned)
            for each in first
        ))  # fmt: skip
        for number, weight in enumerate(weights):
            view = stack[number % 2][number // 2]
            weight.data = view.copy_(weight.data)
        return stack

    def holds(self, weights: Sequence[Tensor]) -> bool:
        """Whether the weights still are its views: merging and moving replace them."""
        keys, sizes = [storage_key(each) for each in self], [each.stride(0) for each in self]
        return all(
            place_of(weight) == (keys[number % 2], number // 2 * sizes[number % 2])
            for number, weight in enumerate(weights)
        )


class Modulations:
    """The modulations of all blocks, in the order in which they are used.

    away: the device that computes, where the weights wait in RAM; else None
    """

    def __init__(self, modulations: Sequence[Modulation]) -> None:
        self.each = list(modulations)
        self.stack: Stack | None = None
        self.away: torch.device | None = None

    def __call__(self, embedded: Tensor, shared: Tensor) -> Tensor | None:
        """(n, 3, B, 1, D): shift, scale with its 1, gate; None where each has to make its own.

        embedded (B, 1, D), shared (B, 1, 3D)
        """
        stack = self.stacked()
        if stack is None:
            return None
        with self.present(stack) as (down, up):
            hidden = F.linear(F.silu(embedded)[:, 0], down.flatten(0, 1))  # (B, n*R)
            hidden = hidden.unflatten(-1, (len(down), -1)).transpose(0, 1)
            values = torch.bmm(hidden, up.transpose(1, 2)) + shared[:, 0]  # (n, B, 3D)
        values = values.unflatten(-1, (3, 1, -1)).transpose(1, 2)
        values[:, 1] += 1
        return values.contiguous()

    def wait_in_ram(self, device: torch.device) -> list[Tensor]:
        """Let the weights be on `device` only while they compute; returns those that wait."""
        self.away = device
        return self.settle()

    def settle(self) -> list[Tensor]:
        """Put the weights where they are in every forward; returns what waits in RAM."""
        stack = self.stacked()
        return [] if stack is None or self.away is None else list(stack)

    def linears(self) -> list[nn.Module]:
        return [part for each in self.each for part in tuple(each)[1:]]

    def stacked(self) -> Stack | None:
        """The weights in one piece, which they become where they can; None where they cannot."""
        linears = self.linears()
        weights = [linear.get_parameter("weight") for linear in linears]
        if not all(type(linear) is nn.Linear for linear in linears) or not are_alike(weights):
            self.stack = None
            self.come_back(weights)
        elif self.stack is None or not self.stack.holds(weights):
            pinned = self.away is not None and self.away.type == "cuda"
            self.stack = Stack.of(weights, pinned=pinned)
        return self.stack

    def come_back(self, weights: Sequence[nn.Parameter]) -> None:
        """Let weights that are used one by one stay on the device."""
        if self.away is not None:
            for weight in weights:
                weight.data = weight.data.to(self.away)
            self.away = None

    @contextmanager
    def present(self, stack: Stack) -> Iterator[Stack]:
        """Within: the stack where it computes. Autograd keeps none that came from RAM: it comes again."""
        if self.away is None:
            yield stack
            return
        there = Stack(*(fetched(home, self.away) for home in stack))
        homes = {storage_key(each): home for each, home in zip(there, stack)}

        def way(kept: Kept) -> Kept:
            if not isinstance(kept, Tensor) or storage_key(kept) not in homes:
                return kept
            return Waiting(homes[storage_key(kept)], kept.device, Layout.of(kept))

        with keeping(way):
            yield there


class Waiting(NamedTuple):
    """Stands for a view of what is fetched from RAM."""

    home: Tensor
    device: torch.device
    layout: Layout

    def tensor(self) -> Tensor:
        return self.layout.in_memory_of(fetched(self.home, self.device))


def fetched(home: Tensor, device: torch.device) -> Tensor:
    return torch.empty_like(home, device=device).copy_(home, non_blocking=True)


def are_alike(weights: Sequence[Tensor]) -> bool:
    """Whether they are frozen and of one dtype in one place."""
    first = weights[0]
    return not any(
        w.requires_grad or w.dtype != first.dtype or w.device != first.device for w in weights
    )
