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
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from library.cache_files import (
    DELAY,
    FOLDER,
    THREADS,
    CacheFile,
    Source,
    TakenOver,
    Tally,
    UnfitFile,
    check_writable,
    fingerprint,
)
from library.data_types import ImageInfo, Layout, StoredTensor
from library.errors import DatasetError, Problem
from library.images import UnreadableImage, load_picture
from library.utils import is_quiet, threads

if TYPE_CHECKING:
    from library.catalogue import Catalogue
    from library.strategy_base import LatentsCachingStrategy

logger = logging.getLogger(__name__)
Place = tuple[str, bool]
EXCHANGED = 64  # items of each process at a time, about 1 MB each
Picture = tuple[Tensor, "Tensor | None"]
Tensors = Mapping[str, Tensor]
"""latents (C, H, W), and mask (H, W) where the picture has one."""


@dataclass(frozen=True)
class ForeignLatents:
    """Latents in another trainer's file."""

    strategy: LatentsCachingStrategy
    image: ImageInfo
    flipped: bool

    def read(self, *, check: bool = True) -> dict[str, Tensor]:
        """Always checked: there is no checksum that would make it unnecessary."""
        latents = self.strategy.read_foreign(self.image, self.flipped)
        if latents is None:
            raise UnfitFile(f"{self.image.path}: the file with its latents is gone.")
        return {"latents": latents}


@dataclass(frozen=True)
class LatentsJob:
    """One picture to encode, and its file per flip."""

    image: ImageInfo
    files: Mapping[bool, CacheFile]

    @property
    def is_masked(self) -> bool:
        return is_masked(self.image)

    def load(self) -> Picture:
        """Pixels (3, H, W) and mask (H, W); a picture without transparency is masked nowhere."""
        subset = self.image.subset
        pixels, mask = load_picture(
            self.image.path,
            self.image.plan,
            interpolation=subset.resize_interpolation,
            alpha_mask=subset.alpha_mask,
            mask_path=self.image.mask,
        )
        return pixels, torch.ones(pixels.shape[1:]) if self.is_masked and mask is None else mask


@dataclass(frozen=True)
class Share:
    """This process among those that encode together."""

    rank: int = 0
    world_size: int = 1

    def of(self, batches: list[list[LatentsJob]]) -> list[list[LatentsJob]]:
        return batches[self.rank :: self.world_size]


ALONE = Share()


class LatentsCache:
    """Latents and masks by picture key and flip: in memory, or read from files one by one."""

    def __init__(
        self, strategy: LatentsCachingStrategy, batches: list[list[LatentsJob]], to_disk: bool
    ) -> None:
        self.strategy = strategy
        self.batches = batches
        self.to_disk = to_disk
        self.stored: dict[Place, Tensors | Source] = {}
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
        made: dict[Place, Tensors] = {}
        _LatentsEncoder(self.strategy, {place}, made).run([batch])
        self.strategy.free()
        if isinstance(error, TakenOver):
            self.stored[place] = made[place]
        else:
            check_writable([job.image.path.parent])
            self.stored[place] = file
            file.write(made[place])
        return made[place]

    def is_unchanged(self, image: ImageInfo, flip: bool, file: CacheFile) -> bool:
        """Whether the picture is still the one that the file's fingerprint was made of."""
        try:
            return latents_fingerprint(image, flip, self.strategy.identity) == file.fingerprint
        except OSError:
            return False

    def find(self, jobs: list[LatentsJob], tally: Tally) -> Iterator[Place]:
        """Note every item that is stored validly, and yield the others."""
        places = [(job, flip) for job in jobs for flip in job.files]
        with threads(THREADS) as pool:
            looks = pool.map(lambda place: self.look(*place), places)
            bar = tqdm(looks, "checking latents", len(places), unit="file", delay=DELAY)
            for (job, flip), (state, note) in zip(places, bar):
                tally.reused += state == "valid"
                tally.foreign += state == "foreign"
                tally.outdated += state == "outdated"
                tally.unfit += [note] if note else []
                place = job.image.key, flip
                if state == "foreign":
                    self.stored[place] = ForeignLatents(self.strategy, job.image, flip)
                else:
                    self.stored[place] = job.files[flip]
                if state in ("absent", "outdated"):
                    yield place

    def look(self, job: LatentsJob, flip: bool) -> tuple[str, str]:
        """ "valid", "foreign", "outdated" or "absent", and why another trainer's file is not used."""
        strategy, note = self.strategy, ""
        state = job.files[flip].state()
        if state != "valid" and not job.is_masked:  # which mask theirs was made with is not known
            try:
                if strategy.read_foreign(job.image, flip) is not None:
                    return "foreign", ""
            except UnfitFile as error:
                note = str(error)
        return state, note


def cache_latents(
    catalogue: Catalogue,
    strategy: LatentsCachingStrategy,
    *,
    to_disk: bool,
    batch_size: int,
    skip_check: bool = False,
    share: Share = ALONE,
) -> LatentsCache:
    """Encode every picture that is not stored validly, mirrored too where flips are asked for.

    Only this process's share is encoded here. In memory all processes have all when this returns; on
    disk they have to wait for each other after it.
    Raises DatasetError naming the pictures that cannot be decoded or that give no finite latents;
    what was encoded before stays stored. A folder that cannot be written is reported first.
    """
    jobs = list(make_jobs(catalogue, strategy, skip_check))
    cache = LatentsCache(strategy, fixed_batches(jobs, batch_size), to_disk)
    tally = Tally("latents")
    if to_disk:
        missing = set(cache.find(jobs, tally))
        check_writable(
            j.image.path.parent for j in jobs for f in j.files if (j.image.key, f) in missing
        )
    else:
        missing = {(job.image.key, flip) for job in jobs for flip in job.files}
    encoder = _LatentsEncoder(strategy, missing, None if to_disk else cache.stored)
    encoder.run(share.of(cache.batches))
    if share.world_size > 1 and not to_disk:
        exchange(cache.stored, len(cache.batches[:: share.world_size]) * 2 * batch_size)
    strategy.free()
    tally.encoded = len(missing)
    tally.report()
    return cache


def exchange(stored: dict[Place, Tensors | Source], most: int) -> None:
    """Give every process what all of them have encoded, a few at a time. most: items of one process."""
    from accelerate.utils import gather_object

    own = list(stored.items())
    for start in range(0, most, EXCHANGED):
        stored.update(gather_object(own[start : start + EXCHANGED]))


def is_masked(image: ImageInfo) -> bool:
    return image.mask is not None or image.subset.alpha_mask


def layout_of(image: ImageInfo, strategy: LatentsCachingStrategy) -> Layout:
    """What a valid file of this picture holds."""
    width, height = (edge // strategy.downscale for edge in image.plan.bucket)
    latents = {"latents": StoredTensor((strategy.channels, height, width))}
    return {**latents, "mask": StoredTensor((height, width))} if is_masked(image) else latents


def make_jobs(
    catalogue: Catalogue, strategy: LatentsCachingStrategy, trust: bool = False
) -> Iterator[LatentsJob]:
    """Each picture's files. Two datasets that crop to one size differently get different files."""
    taken: dict[Path, str] = {}
    for image in catalogue.images:
        files = {}
        for flip in (False, True) if image.subset.flip_aug else (False,):
            wanted = latents_fingerprint(image, flip, strategy.identity)
            width, height = image.plan.bucket
            stem = f"{short_name(image.path)}_{width:04d}x{height:04d}{'_flip' if flip else ''}"
            path = image.path.parent / FOLDER / f"{stem}.safetensors"
            if taken.setdefault(path, wanted) != wanted:
                path = path.with_name(f"{stem}_{wanted[:8]}.safetensors")
            files[flip] = CacheFile(path, wanted, layout_of(image, strategy), trust)
        yield LatentsJob(image, files)


def short_name(picture: Path) -> str:
    """The picture's full name, so that a.png and a.jpg differ; hashed when near the system's limit."""
    name = picture.name
    if len(os.fsencode(name)) <= 200:
        return name
    return f"{fingerprint('name', name)}{picture.suffix}"


def latents_fingerprint(image: ImageInfo, flip: bool, identity: str) -> str:
    """Of the picture file and its mask (size and time), crop, kernel, flip and encoder."""
    stat = os.stat(image.path)
    plan = (image.plan.bucket, image.plan.resized, image.plan.crop)
    kernel = image.subset.resize_interpolation
    mask: object = image.subset.alpha_mask
    if image.mask is not None:
        of_mask = os.stat(image.mask)
        mask = (image.mask.name, of_mask.st_size, of_mask.st_mtime_ns)
    seen = (plan, kernel, flip, mask)
    return fingerprint("latents", stat.st_size, stat.st_mtime_ns, *seen, identity)


def fixed_batches(jobs: Iterable[LatentsJob], batch_size: int) -> list[list[LatentsJob]]:
    """Pictures of one bucket in catalogue order; no matter which of them are missing."""
    groups: dict[tuple, list[LatentsJob]] = {}
    for job in jobs:
        groups.setdefault((job.image.plan.bucket, len(job.files)), []).append(job)
    return [
        group[start : start + batch_size]
        for group in groups.values()
        for start in range(0, len(group), batch_size)
    ]


class _LatentsEncoder:
    """Runs the batches in which something is missing; into memory, or to files when it is None."""

    def __init__(
        self,
        strategy: LatentsCachingStrategy,
        missing: set[Place],
        memory: dict[Place, Tensors | Source] | None,
    ) -> None:
        self.strategy = strategy
        self.missing = missing
        self.memory = memory
        self.problems: list[Problem] = []

    def run(self, batches: list[list[LatentsJob]]) -> None:
        due = [batch for batch in batches if any(self.is_missing(job) for job in batch)]
        jobs = [job for batch in due for job in batch]
        with (
            threads(THREADS) as pool,
            tqdm(
                total=len(jobs),
                desc="caching latents",
                unit="picture",
                disable=is_quiet() or not jobs,
            ) as bar,
        ):
            decoded = decode_ahead(pool, jobs)
            for batch in due:
                self.encode(batch, [next(decoded) for _ in batch])
                bar.update(len(batch))
        if self.problems:
            raise DatasetError(self.problems)

    def is_missing(self, job: LatentsJob) -> bool:
        return any((job.image.key, flip) in self.missing for flip in job.files)

    def encode(self, batch: list[LatentsJob], futures: list[Future[Picture]]) -> None:
        """Encode one batch, plain and mirrored as needed. An unreadable picture spoils its batch."""
        pictures = []
        for future in futures:
            try:
                pictures.append(future.result())
            except UnreadableImage as error:
                self.problems += error.problems
        if len(pictures) < len(batch):
            return
        pixels, masks = zip(*pictures)
        for flip in batch[0].files:
            if any((job.image.key, flip) in self.missing for job in batch):
                stacked = torch.stack(pixels)
                latents = self.strategy.encode(stacked.flip(-1) if flip else stacked)
                for job, latent, mask in zip(batch, latents, masks):
                    self.store(job, flip, latent, mask)

    def store(self, job: LatentsJob, flip: bool, latent: Tensor, mask: Tensor | None) -> None:
        if (job.image.key, flip) not in self.missing:
            return
        if not torch.isfinite(latent).all():
            text = f"{job.image.path}: the VAE gives NaN or infinite latents for this picture. "
            self.problems.append(Problem(text + "Use --no_half_vae, or replace the picture."))
            return
        tensors = {"latents": latent.clone()}  # not a view that keeps its batch
        if mask is not None:
            cells = mask.flip(-1) if flip else mask
            tensors["mask"] = F.avg_pool2d(cells[None], self.strategy.downscale)[0]
        if self.memory is not None:
            self.memory[job.image.key, flip] = tensors
        else:
            job.files[flip].write(tensors)


def decode_ahead(pool: ThreadPoolExecutor, jobs: list[LatentsJob]) -> Iterator[Future[Picture]]:
    """Decoded pictures in order; at most three per thread wait, so that memory stays bounded."""
    waiting: deque[Future[Picture]] = deque()
    for job in jobs:
        waiting.append(pool.submit(job.load))
        if len(waiting) > 3 * THREADS:
            yield waiting.popleft()
    yield from waiting
