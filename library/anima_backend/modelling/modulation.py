"""How sigma steers the blocks: shift, scale and gate of each sub-layer, made for all blocks at once.

Each sub-layer has two small matrices of its own. While they are frozen and nobody adapts them they lie in
two tensors, of which the parameters are views, and three products make what all blocks need. Weights that
wait in RAM, or are stored in 8 bits, are whole on the device only while they compute, in a backward pass as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from library.anima_backend.modelling.params import DiTParams
from library.memory.kept import Kept, keeping, storage_key
from library.memory.layout import Layout
from library.memory.quantised import Frozen, Quantised, QuantisedLinear
from library.memory.swapping import place_of

logger = logging.getLogger(__name__)


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
    """The matrices of n modulations, down (n, R, D) and up (n, 3D, R); stored in 8 bits, scales beside them."""

    down: Frozen
    up: Frozen

    @classmethod
    def of(cls, linears: Sequence[nn.Module], *, pinned: bool) -> Stack:
        """Copies of their weights, down and up in turn, whose data then are views of it.

        pinned: in RAM, from where the copies to a card are fast
        """
        return cls(*(piled(linears[side::2], pinned=pinned) for side in range(2)))

    def homes(self) -> list[Tensor]:
        """Of down and of up what is stored, but for scales."""
        return [each.codes if isinstance(each, Quantised) else each for each in self]

    def holds(self, linears: Sequence[nn.Module]) -> bool:
        """Whether the weights still are its views: merging and moving replace them."""
        return all(
            place_of(parameter) == (storage_key(pile), number * pile.stride(0))
            for side, stored in enumerate(self)
            for name, pile in named(stored).items()
            for number, parameter in enumerate(parameters_of(linears[side::2], name))
        )


def named(stored: Frozen) -> dict[str, Tensor]:
    """By the names of a Linear's parameters."""
    if isinstance(stored, Quantised):
        return {"weight": stored.codes, "weight_scale": stored.scale}
    return {"weight": stored}


def parameters_of(linears: Sequence[nn.Module], name: str) -> list[nn.Parameter]:
    return [linear.get_parameter(name) for linear in linears]


def piled(linears: Sequence[nn.Module], *, pinned: bool) -> Frozen:
    """The weights of Linears that are built alike, in one piece of which they become views."""
    weight = pile_of(parameters_of(linears, "weight"), pinned=pinned)
    if not isinstance(linears[0], QuantisedLinear):
        return weight
    return Quantised(weight, pile_of(parameters_of(linears, "weight_scale"), pinned=False))


def pile_of(parameters: Sequence[nn.Parameter], *, pinned: bool) -> Tensor:
    first = parameters[0]
    place = torch.device("cpu") if pinned else first.device
    pile = torch.empty(
        len(parameters), *first.shape, dtype=first.dtype, device=place, pin_memory=pinned
    )
    for view, parameter in zip(pile, parameters):
        parameter.data = view.copy_(parameter.data)
    return pile


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
        with self.present(stack.down, embedded.dtype) as down:
            hidden = F.linear(F.silu(embedded)[:, 0], down.flatten(0, 1))  # (B, n*R)
            hidden = hidden.unflatten(-1, (len(down), -1)).transpose(0, 1)
        del down
        with self.present(stack.up, embedded.dtype) as up:
            values = torch.bmm(hidden, up.transpose(1, 2)) + shared[:, 0]  # (n, B, 3D)
        values = values.unflatten(-1, (3, 1, -1)).transpose(1, 2)
        values[:, 1] += 1
        return values.contiguous()

    def wait_in_ram(self, device: torch.device) -> list[Tensor]:
        """Let the weights be on `device` only while they compute; returns those that wait."""
        self.away, self.stack = device, None  # one that was there lies where they were used
        return self.settle()

    def settle(self) -> list[Tensor]:
        """Put the weights where they are in every forward; returns what waits in RAM."""
        stack = self.stacked()
        return [] if stack is None or self.away is None else stack.homes()

    def linears(self) -> list[nn.Module]:
        return [part for each in self.each for part in tuple(each)[1:]]

    def stacked(self) -> Stack | None:
        """The weights in one piece, which they become where they can; None where they cannot."""
        linears = self.linears()
        weights = parameters_of(linears, "weight")
        if not (are_plain(linears) and are_alike(weights)):
            self.stack = None
            self.come_back(weights)
        elif self.stack is None or not self.stack.holds(linears):
            pinned = self.away is not None and self.away.type == "cuda"
            self.stack = Stack.of(linears, pinned=pinned)
        return self.stack

    def come_back(self, weights: Sequence[nn.Parameter]) -> None:
        """Let weights that are used one by one stay on the device, which is said."""
        if self.away is not None:
            size = sum(weight.nbytes for weight in weights) / 2**20
            logger.info("modulation is adapted or trains: its %.0f MiB stay on the device", size)
            for weight in weights:
                weight.data = weight.data.to(self.away)
            self.away = None

    @contextmanager
    def present(self, stored: Frozen, dtype: torch.dtype) -> Iterator[Tensor]:
        """Within: matrices as they compute. Autograd keeps none that was made for it: it is made again."""
        if self.away is None and isinstance(stored, Tensor):
            yield stored
            return
        again = partial(made, stored, self.away, dtype)
        there = again()
        key = storage_key(there)

        def way(kept: Kept) -> Kept:
            if not isinstance(kept, Tensor) or storage_key(kept) != key:
                return kept
            return Waiting(again, Layout.of(kept))

        with keeping(way):
            yield there


class Waiting(NamedTuple):
    """Stands for a view of what is made again."""

    again: Callable[[], Tensor]
    layout: Layout

    def tensor(self) -> Tensor:
        return self.layout.in_memory_of(self.again())


def made(stored: Frozen, away: torch.device | None, dtype: torch.dtype) -> Tensor:
    """The matrices of one side as they compute. away: where they go from RAM"""
    if not isinstance(stored, Quantised):
        return stored if away is None else fetched(stored, away)
    codes = stored.codes if away is None else fetched(stored.codes, away)
    return Quantised(codes, stored.scale).dense(dtype)


def fetched(home: Tensor, device: torch.device) -> Tensor:
    return torch.empty_like(home, device=device).copy_(home, non_blocking=True)


def are_plain(linears: Sequence[nn.Module]) -> bool:
    """Whether they are all Linears as they were built, or all stored in 8 bits and computed in floats."""
    stored = [linear for linear in linears if isinstance(linear, QuantisedLinear)]
    if stored:
        return len(stored) == len(linears) and all(each.kind is Quantised for each in stored)
    return all(type(linear) is nn.Linear for linear in linears)


def are_alike(weights: Sequence[Tensor]) -> bool:
    """Whether they are frozen and of one dtype in one place."""
    first = weights[0]
    return not any(
        w.requires_grad or w.dtype != first.dtype or w.device != first.device for w in weights
    )
