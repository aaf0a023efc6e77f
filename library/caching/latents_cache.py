"""Latents and loss masks of all pictures, made once before training; in memory or on disk.

One file per item under `_cache/` beside the pictures. A file is used when its fingerprint matches and
is rebuilt otherwise: at the start of a run, or, when its content turns out to be damaged, at the
moment it is read. Files of other trainers, which have no fingerprint, are used after a check.

A cached value does not depend on what was missing: pictures are encoded in batches fixed by the
catalogue. When a part of a batch is missing, the whole batch is encoded again and only the missing
items are written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor
from tqdm import tqdm

from library.caching.cache_files import (
    DELAY,
    THREADS,
    CacheFile,
    CacheStatus,
    Foreign,
    StoredItem,
    TakenOver,
    Tally,
    UnfitFile,
    check_writable,
    copy_foreign,
)
from library.caching.contents import Contents
from library.caching.latents_encoder import LatentsEncoder, Place, Tensors
from library.caching.latents_files import (
    LatentsJob,
    fixed_batches,
    foreign_latents,
    latents_fingerprint,
    make_jobs,
)
from library.data.data_types import ImageInfo
from library.errors import DatasetError
from library.utils import threads

if TYPE_CHECKING:
    from library.data.catalogue import Catalogue
    from library.strategy_base import LatentsCachingStrategy

logger = logging.getLogger(__name__)
T = TypeVar("T")
EXCHANGED = 64  # items of each process at a time, about 1 MB each


@dataclass(frozen=True)
class Share:
    """This process among those that fill a cache together.

    wait: until all of them have come as far
    """

    rank: int = 0
    world_size: int = 1
    wait: Callable[[], None] = lambda: None

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Its part of what all of them list alike."""
        return items[self.rank :: self.world_size]


ONLY_PROCESS = Share()


class LatentsCache:
    """Latents and masks by picture key and flip: in memory, or read from files one by one."""

    def __init__(
        self,
        strategy: LatentsCachingStrategy,
        batches: list[list[LatentsJob]],
        contents: Contents | None,
    ) -> None:
        self.strategy = strategy
        self.batches = batches
        self.contents = contents  # None: in memory
        self.stored: dict[Place, Tensors | StoredItem] = {}
        self.intact: set[Place] = set()  # read before and found whole

    def get(
        self, key: str, flipped: bool = False, *, rebuild: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Latents (C, H, W) and loss mask (H, W), None for a picture without one.

        What is damaged or lost is made anew, as it was; without `rebuild` it raises UnfitFile. Raises
        DatasetError.
        """
        place = key, flipped
        found = self.stored[place]
        if not isinstance(found, Mapping):
            try:
                found = found.read(check=place not in self.intact)
            except UnfitFile as error:
                if not rebuild:
                    raise
                found = self.rebuild(place, error)
            self.intact.add(place)
        return found["latents"], found.get("mask")

    def rebuild(self, place: Place, error: UnfitFile) -> Tensors:
        """Encode one item again, in its batch. Kept in memory when its file now serves another run."""
        job, batch = next(
            (job, batch) for batch in self.batches for job in batch if job.image.key == place[0]
        )
        flip = place[1]
        file = job.files[flip]
        if not self.is_unchanged(job.image, flip, file):
            message = (
                f"{error} {job.image.path} has changed since the run began, so it cannot be made "
            )
            raise DatasetError(message + "anew for this run. Start again.") from error
        logger.warning("%s It is made anew.", error)
        made: list[Tensors] = []
        LatentsEncoder(self.strategy, {place}, lambda *item: made.append(item[-1])).run([batch])
        self.strategy.free()
        if isinstance(error, TakenOver):
            self.stored[place] = made[0]
        else:
            self.stored[place] = file
            file.write(made[0])
        return made[0]

    def keep(self, job: LatentsJob, flip: bool, tensors: Tensors) -> None:
        """Store what was encoded: in its file, or in memory."""
        if self.contents:
            job.files[flip].write(tensors)
        else:
            self.stored[job.image.key, flip] = tensors

    def is_unchanged(self, image: ImageInfo, flip: bool, file: CacheFile) -> bool:
        """Whether the picture is still the one that the file's fingerprint was made of."""
        assert self.contents is not None
        try:
            now = latents_fingerprint(image, flip, self.strategy.identity, self.contents)
        except OSError:
            return False
        return now == file.fingerprint

    def missing(self, jobs: list[LatentsJob], tally: Tally) -> set[Place]:
        """The items to encode: all in memory; on disk those without a valid file, in folders to write."""
        if not self.contents:
            return {(job.image.key, flip) for job in jobs for flip in job.files}
        missing = set(self.find(jobs, tally))
        check_writable(
            j.image.path.parent for j in jobs for f in j.files if (j.image.key, f) in missing
        )
        return missing

    def find(self, jobs: list[LatentsJob], tally: Tally) -> Iterator[Place]:
        """Note every item that is stored validly, and yield the others."""
        places = [(job, flip) for job in jobs for flip in job.files]
        with threads(THREADS) as pool:
            looks = pool.map(lambda place: self.look(*place), places)
            bar = tqdm(looks, "checking latents", len(places), unit="file", delay=DELAY)
            for (job, flip), (status, item, note) in zip(places, bar):
                tally.found[status] += 1
                tally.unfit += [note] if note else []
                self.stored[job.image.key, flip] = item
                if not status.is_usable:
                    yield job.image.key, flip

    def look(self, job: LatentsJob, flip: bool) -> tuple[CacheStatus, StoredItem, str]:
        """How and where an item is stored, and why another trainer's file is not used."""
        assert self.contents is not None  # only files are looked at
        status, note = job.files[flip].status(), ""
        if status is not CacheStatus.VALID:
            try:
                if found := foreign_latents(job, flip, self.strategy, self.contents):
                    return CacheStatus.FOREIGN, found, ""
            except UnfitFile as error:
                note = str(error)
        return status, job.files[flip], note


@dataclass(frozen=True)
class Storing:
    """How latents are made and kept. skip_check: files are used without a look at their fingerprints."""

    to_disk: bool
    batch_size: int
    skip_check: bool = False


def cache_latents(
    catalogue: Catalogue,
    strategy: LatentsCachingStrategy,
    how: Storing,
    share: Share = ONLY_PROCESS,
    contents: Contents | None = None,
) -> LatentsCache:
    """Encode every picture that is not stored validly, mirrored too where flips are asked for.

    Only this process's share is encoded here; when this returns all processes have all.
    Raises DatasetError naming the pictures that cannot be decoded or that give no finite latents;
    what was encoded before stays stored. A folder that cannot be written is reported first.
    """
    contents = (contents or Contents()) if how.to_disk else None
    if contents:
        contents.read_all(image.path for image in catalogue.images)
    jobs = list(make_jobs(catalogue, strategy, contents, how.skip_check))
    cache = LatentsCache(strategy, fixed_batches(jobs, how.batch_size), contents)
    tally = Tally("latents")
    missing = cache.missing(jobs, tally)
    if contents and share.rank == 0:
        contents.remember()
    share.wait()  # before anything is stored: all shall find the same to be missing
    encoder = LatentsEncoder(strategy, missing, cache.keep)
    encoder.run(share.of(encoder.due(cache.batches)))
    copy_foreign(share.of([each for each in cache.stored.values() if isinstance(each, Foreign)]))
    share.wait()
    if share.world_size > 1 and not contents:
        exchange(cache.stored, len(cache.batches[:: share.world_size]) * 2 * how.batch_size)
    strategy.free()
    tally.encoded = len(missing)
    tally.log()
    return cache


def exchange(stored: dict[Place, Tensors | StoredItem], most: int) -> None:
    """Give every process what all of them have encoded, a few at a time. most: items of one process."""
    from accelerate.utils import gather_object

    own = list(stored.items())
    for start in range(0, most, EXCHANGED):
        stored.update(gather_object(own[start : start + EXCHANGED]))
