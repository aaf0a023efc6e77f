"""Pictures to latents: decoded on threads, encoded in fixed batches, checked and stored."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from library.caching.cache_files import THREADS
from library.caching.latents_files import LatentsJob, Picture
from library.data.images import UnreadableImage
from library.errors import DatasetError, Problem
from library.utils import is_quiet, threads

if TYPE_CHECKING:
    from library.strategy_base import LatentsCachingStrategy

Place = tuple[str, bool]
Tensors = Mapping[str, Tensor]
"""latents (C, H, W), and mask (H, W) where the picture has one."""
Keep = Callable[[LatentsJob, bool, Tensors], None]
"""Stores what was made of a picture, mirrored or not."""


class LatentsEncoder:
    """Runs the batches in which something is missing, and gives what it makes to `keep`."""

    def __init__(
        self, strategy: LatentsCachingStrategy, missing: set[Place], keep: Keep
    ) -> None:
        self.strategy = strategy
        self.missing = missing
        self.keep = keep
        self.problems: list[Problem] = []

    def due(self, batches: Sequence[list[LatentsJob]]) -> list[list[LatentsJob]]:
        """The batches in which something is missing."""
        return [batch for batch in batches if any(self.is_missing(job) for job in batch)]

    def run(self, batches: Sequence[list[LatentsJob]]) -> None:
        """Raises DatasetError naming every picture that cannot be stored."""
        due = self.due(batches)
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
                latents = self.strategy.encode(stacked.flip(-1) if flip else stacked).cpu()
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
        self.keep(job, flip, tensors)


def decode_ahead(pool: ThreadPoolExecutor, jobs: list[LatentsJob]) -> Iterator[Future[Picture]]:
    """Decoded pictures in order; at most three per thread wait, so that memory stays bounded."""
    waiting: deque[Future[Picture]] = deque()
    for job in jobs:
        waiting.append(pool.submit(job.load))
        if len(waiting) > 3 * THREADS:
            yield waiting.popleft()
    yield from waiting
