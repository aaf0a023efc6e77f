"""Pictures that are looked at again and again and never learned from, always in the same order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from library.data.bucket_sampler import BucketBatchSampler
from library.data.data_types import Batch, SampleRequest
from library.data.datasets import TrainDataset, collate

if TYPE_CHECKING:
    from pathlib import Path

    from library.caching.latents_cache import LatentsCache
    from library.data.catalogue import Catalogue


class FixedPictures:
    """Batches of a catalogue as the seed has them in the first epoch; nothing is drawn."""

    def __init__(self, catalogue: Catalogue, seed: int) -> None:
        self.catalogue, self.seed = catalogue, seed
        self.dataset = TrainDataset(catalogue, seed=seed)

    def captions(self) -> dict[str, Path]:
        """Every caption it uses, and a folder of a picture it belongs to."""
        return {
            self.dataset.caption_of(SampleRequest(index, 0, 0)): image.path.parent
            for index, image in enumerate(self.catalogue.images)
        }

    def use_latents(self, latents: LatentsCache | None) -> None:
        """The run's cache, which has held-out pictures too; None when nothing is cached."""
        self.dataset.latents = latents

    @cached_property
    def order(self) -> list[list[SampleRequest]]:
        """The batches of all processes."""
        return BucketBatchSampler(self.catalogue, seed=self.seed).batches(0)

    def share(self, rank: int, world_size: int, most: int | None = None) -> Iterator[Batch]:
        """This rank's batches of the first `most`, all if None."""
        for requests in self.order[:most][rank::world_size]:
            yield collate([self.dataset[request] for request in requests])


def is_due(number: int, every: int | None) -> bool:
    """Whether a step or epoch, from 1, is one of every so many; never where `every` is None or 0."""
    return bool(every and number % every == 0)
