"""A lane as late as a card's may be: it copies only when somebody waits, and not a moment before."""

from collections.abc import Iterable

import torch
from torch import Tensor

from library.memory.lanes import Mark


class LateLane:
    """Fills what it is to copy into with NaN, and copies when the mark is waited for.

    A use without waiting, and of memory that was already given to a later copy, is seen as NaN.
    """

    def __init__(self) -> None:
        self.ordered: list[list[tuple[Tensor, Tensor]]] = []
        self.done = 0

    def now(self) -> Mark:
        return None

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], after: Mark) -> Mark:
        pairs = list(pairs)
        for target, _ in pairs:
            target.view(torch.uint8).fill_(255)  # NaN in every floating dtype
        self.ordered.append(pairs)
        return len(self.ordered)

    def wait(self, mark: Mark) -> None:
        assert isinstance(mark, int)
        for pairs in self.ordered[self.done : mark]:
            for target, source in pairs:
                target.copy_(source)
            pairs.clear()
        self.done = max(self.done, mark)
