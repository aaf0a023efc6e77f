"""What is stored of each picture: which file has its latents, and of what they must have been made."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from library.caching.cache_files import CacheFile, Foreign, fingerprint, name_hash
from library.caching.contents import Contents
from library.data.data_types import ImageInfo, Layout, StoredTensor
from library.data.images import load_picture
from library.data.picture_folders import CACHE_FOLDER
from library.data.stored import UnfitFile

if TYPE_CHECKING:
    from library.data.catalogue import Catalogue
    from library.strategy_base import LatentsCachingStrategy

Picture = tuple[Tensor, "Tensor | None"]


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
        pixels, mask = load_picture(self.image, self.image.plan)
        return pixels, torch.ones(pixels.shape[1:]) if self.is_masked and mask is None else mask


@dataclass(frozen=True)
class ForeignLatents(Foreign):
    """Latents in another trainer's file."""

    strategy: LatentsCachingStrategy
    image: ImageInfo
    flipped: bool

    def unpack(self) -> Mapping[str, Tensor]:
        latents = self.strategy.read_foreign(self.image, self.flipped)
        if latents is None:
            raise UnfitFile(f"{self.image.path}: the file with its latents is gone.")
        return {"latents": latents}


def foreign_latents(
    job: LatentsJob, flip: bool, strategy: LatentsCachingStrategy, contents: Contents
) -> ForeignLatents | None:
    """Another trainer's latents of a picture, None when there are none. Raises UnfitFile."""
    theirs = strategy.foreign_file(job.image)
    if theirs is None or job.is_masked:  # which mask theirs was made with is not known
        return None
    content = contents.hash_of(theirs, theirs.parent)
    print_of_copy = fingerprint("copied latents", content, flip, job.image.plan.bucket)
    copy = replace(job.files[flip], fingerprint=print_of_copy)
    found = ForeignLatents(copy, strategy, job.image, flip)
    if not copy.is_valid():
        found.unpack()
    return found


def is_masked(image: ImageInfo) -> bool:
    return image.mask is not None or image.subset.alpha_mask


def layout_of(image: ImageInfo, strategy: LatentsCachingStrategy) -> Layout:
    """What a valid file of this picture holds."""
    width, height = (edge // strategy.downscale for edge in image.plan.bucket)
    latents = {"latents": StoredTensor((strategy.channels, height, width))}
    return {**latents, "mask": StoredTensor((height, width))} if is_masked(image) else latents


def make_jobs(
    catalogue: Catalogue,
    strategy: LatentsCachingStrategy,
    contents: Contents | None,
    trust: bool = False,
) -> Iterator[LatentsJob]:
    """Each picture's files. Two datasets that crop to one size differently get different files.

    contents: what the pictures hold; None for a cache in memory, whose files are never looked at
    """
    taken: dict[Path, str] = {}
    for image in catalogue.images:
        files = {}
        for flip in (False, True) if image.subset.flip_aug else (False,):
            wanted = latents_fingerprint(image, flip, strategy.identity, contents) if contents else ""
            width, height = image.plan.bucket
            stem = f"{short_name(image.path)}_{width:04d}x{height:04d}{'_flip' if flip else ''}"
            path = image.path.parent / CACHE_FOLDER / f"{stem}.safetensors"
            if taken.setdefault(path, wanted) != wanted:
                path = path.with_name(f"{stem}_{wanted[-8:]}.safetensors")
            files[flip] = CacheFile(path, wanted, layout_of(image, strategy), trust)
        yield LatentsJob(image, files)


def short_name(picture: Path) -> str:
    """The picture's full name, so that a.png and a.jpg differ; hashed when near the system's limit."""
    name = picture.name
    if len(os.fsencode(name)) <= 200:
        return name
    return f"{name_hash('name', name)}{picture.suffix}"


def latents_fingerprint(image: ImageInfo, flip: bool, identity: str, contents: Contents) -> str:
    """Of the contents of picture and mask, crop, kernel, flip and encoder."""
    home = image.path.parent
    plan = (image.plan.bucket, image.plan.resized, image.plan.crop)
    kernel = image.subset.resize_interpolation
    mask = contents.hash_of(image.mask, home) if image.mask else image.subset.alpha_mask
    seen = (plan, kernel, flip, mask)
    return fingerprint("latents", contents.hash_of(image.path, home), *seen, identity)


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
