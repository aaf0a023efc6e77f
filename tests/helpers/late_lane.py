"""A lane as late as a card's may be: it copies only when somebody waits, and not a moment before."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from library.memory.lanes import Mark


class LateMark(NamedTuple):
    """A point of a late lane: so many of its orders are done."""

    lane: LateLane
    number: int

    def reach(self) -> None:
        self.lane.do(self.number)


class LateLane:
    """Fills what it is to copy into with NaN as soon as it may, and copies when the mark is waited for.

    A use without waiting, and of memory that was already given to a later copy, is seen as NaN. What is to be
    copied has to be there when that is ordered, and to stay until it is done.
    """

    is_beside = True

    def __init__(self) -> None:
        self.ordered: list[list[tuple[Tensor, Tensor, Tensor]]] = []
        self.done = 0
        self.followed: list[Mark] = []

    def now(self) -> Mark:
        return None

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], after: Mark) -> Mark:
        for mark in (*self.followed, after):
            self.wait(mark)
        self.followed.clear()
        orders = [(target, source, copied(source)) for target, source in pairs]
        for target, *_ in orders:
            target.copy_(spoilt(target))
        self.ordered.append(orders)
        return self.reached()

    def wait(self, mark: Mark) -> None:
        if mark is not None:
            assert isinstance(mark, LateMark)
            mark.reach()

    def follow(self, mark: Mark) -> None:
        self.followed.append(mark)

    def finish(self) -> None:
        self.do(len(self.ordered))

    def reached(self) -> LateMark:
        return LateMark(self, len(self.ordered))

    def beside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def receive(self, tensors: Iterable[Tensor]) -> None:
        pass

    def do(self, number: int) -> None:
        for orders in self.ordered[self.done : number]:
            for target, source, then in orders:
                same = torch.equal(bytes_of(copied(source)), bytes_of(then))
                assert same, "what is copied was changed before that was done"
                target.copy_(source)
            orders.clear()
        self.done = max(self.done, number)


def copied(tensor: Tensor) -> Tensor:
    """By copies alone, which tests may allow where nothing else is."""
    return torch.empty_like(tensor).copy_(tensor)


def spoilt(tensor: Tensor) -> Tensor:
    """Its like, of bits that are NaN in every floating dtype."""
    like = torch.empty(tensor.shape, dtype=tensor.dtype)
    bytes_of(like).fill_(255)
    return like


def bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)
