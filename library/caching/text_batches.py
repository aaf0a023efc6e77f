"""Which texts go through a network together: texts of one size, in batches of as many rows as the run fixes.

What comes of a text depends, by rounding, on how many rows its batch has. That number is fixed for each size by
the texts that the run needs first; a batch with fewer texts is filled up by repeating them, and a shape in
which a row's place would change its bits is not used. So a text's outputs do not depend on what else is missing,
and a run that goes on makes what it made before.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cached_property
from itertools import cycle, islice
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from library.data.data_types import TextOutputs

logger = logging.getLogger(__name__)


class TakesTexts(Protocol):
    """A network that takes several texts of one size at once, without padding."""

    def size_of(self, text: str) -> Hashable:
        """What is equal for texts that can be together."""

    def is_even(self, text: str, rows: int) -> bool:
        """Whether a batch of so many texts of this one's size gives equal rows the same bits in all places."""


class ChangesTexts(TakesTexts, Protocol):
    """One that reads texts' outputs, and not the texts."""

    def make(self, outputs: Sequence[TextOutputs]) -> Sequence[TextOutputs]:
        """What comes of the outputs of several texts of one size."""


class TextBatches:
    """Puts texts together.

    most:  texts at once; 1: each is alone, and nothing is asked of the network
    first: the texts that the run needs first, the same whenever it is gone on with
    """

    def __init__(
        self,
        network: TakesTexts,
        most: int = 1,
        first: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self.network = network
        self.most = most
        self.first = first
        self.fixed: dict[Hashable, int] = {}  # rows of the batches of a size

    @cached_property
    def counts(self) -> Counter[Hashable]:
        """How many of the first texts have a size."""
        return Counter(map(self.network.size_of, self.first()))

    def planned(self, size: Hashable) -> int:
        """Rows of the batches of a size: few are filled up where the first texts are put together."""
        return even_share(self.counts[size], self.most) if self.most > 1 else 1

    def rows_of(self, text: str) -> int:
        """Of the batches that a text is really in: 1 where a place in them would matter."""
        if self.most == 1:
            return 1
        size = self.network.size_of(text)
        if size not in self.fixed:
            rows = self.planned(size)
            self.fixed[size] = rows if rows > 1 and self.network.is_even(text, rows) else 1
        return self.fixed[size]

    def arrange(self, texts: Sequence[str]) -> list[list[str]]:
        """All texts in batches, in the order in which their sizes are met; the same in every process."""
        if self.most == 1:
            return [[text] for text in texts]
        groups: dict[Hashable, list[str]] = {}
        for text in texts:
            groups.setdefault(self.network.size_of(text), []).append(text)
        return [part for size, group in groups.items() for part in cut(group, self.planned(size))]

    def run(
        self, texts: Sequence[str], work: Callable[[Sequence[str]], Sequence[TextOutputs]]
    ) -> dict[str, TextOutputs]:
        """What `work` makes of each of the texts of a batch of `arrange`, the batch filled up.

        Where the device's memory is too short, batches have half as many rows from here on; raises
        torch.OutOfMemoryError where it is too short for one.
        """
        rows = self.rows_of(texts[0])
        if len(texts) <= rows:
            try:
                return dict(zip(texts, work(list(islice(cycle(texts), rows)))))
            except torch.OutOfMemoryError:
                if rows == 1:
                    raise
            self.halve(rows)  # outside: the error holds what filled the memory
        made: dict[str, TextOutputs] = {}
        for part in cut(texts, self.rows_of(texts[0])):
            made |= self.run(part, work)
        return made

    def halve(self, rows: int) -> None:
        self.most = (rows + 1) // 2
        self.fixed.clear()
        logger.warning(
            "The device's memory is too short for %d captions at once: from here on up to %d are. Set "
            "--text_encoder_batch_size %d, so that a run that goes on from a state does the same from its start.",
            rows, self.most, self.most,
        )  # fmt: skip


def cut(texts: Sequence[str], rows: int) -> list[list[str]]:
    return [list(texts[start : start + rows]) for start in range(0, len(texts), rows)]


def even_share(count: int, most: int) -> int:
    """Of `count` things in as few parts of up to `most` as there can be: the size of the largest; 1 of none."""
    parts = -(-count // most)
    return -(-count // parts) if parts else 1
