"""The order of batches: a function of (seed, epoch), shared out among the ranks here.

Every batch has pictures of one dataset and one bucket. The last batch of a bucket may be short; it
is neither dropped nor filled with pictures of another size.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch.utils.data import Sampler

from library.data.data_types import SampleRequest
from library.utils import position_seed

if TYPE_CHECKING:
    from library.data.catalogue import Catalogue


class BucketBatchSampler(Sampler[list[SampleRequest]]):
    """Yields this rank's batches of the epoch that was set, from the batch that was set."""

    def __init__(
        self, catalogue: Catalogue, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        assert 0 <= rank < world_size
        self.catalogue = catalogue
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start_batch = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch (from 0) and how many of this rank's batches to skip, when resuming."""
        self.epoch = epoch
        self.start_batch = start_batch

    def __len__(self) -> int:
        """This rank's batches in a whole epoch; the same on every rank."""
        return math.ceil(self.catalogue.num_batches / self.world_size)

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        everything = self.batches(self.epoch)
        for turn in range(self.start_batch, len(self)):
            # beyond the end a short rank repeats whole batches from the start of the epoch
            yield everything[(turn * self.world_size + self.rank) % len(everything)]

    def batches(self, epoch: int) -> list[list[SampleRequest]]:
        """All ranks' batches of an epoch, in order."""
        rng = random.Random(position_seed(self.seed, epoch, "batch order"))
        batches = []
        for (dataset_index, _), indices in self.catalogue.buckets().items():
            samples = [
                (index, repeat)
                for index in indices
                for repeat in range(self.catalogue.images[index].repeats)
            ]
            rng.shuffle(samples)
            size = self.catalogue.group.datasets[dataset_index].batch_size
            batches += [samples[start : start + size] for start in range(0, len(samples), size)]
        rng.shuffle(batches)
        return [
            [SampleRequest(index, epoch, repeat, place) for index, repeat in batch]
            for place, batch in enumerate(batches)
        ]
