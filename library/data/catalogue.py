"""The catalogue of a run: its pictures in a fixed order, what they weigh, how they are batched."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from library.data.buckets import Size, cropped_fraction
from library.data.data_types import ImageInfo
from library.data.dataset_config import DatasetConfig, DatasetGroupConfig, SubsetConfig
from library.settings.dataset_keys import default_of

LEFT_TO_CHANCE = (
    "shuffle_caption",
    "caption_dropout_rate",
    "caption_dropout_every_n_epochs",
    "caption_tag_dropout_rate",
    "token_warmup_step",
    "flip_aug",
    "color_aug",
    "random_crop",
    "face_crop_aug_range",
    "loss_multiplier",
)
"""Settings of a subset whose defaults change nothing about picture, caption and loss."""


@dataclass(frozen=True)
class Catalogue:
    """All pictures of a run.

    held_out: pictures kept for validation; none of them, nor a copy of one, is among `images`
    notes:    what the user should be told once
    """

    images: tuple[ImageInfo, ...]
    group: DatasetGroupConfig
    notes: tuple[str, ...] = ()
    held_out: tuple[ImageInfo, ...] = ()

    def validation(self) -> Catalogue:
        """The pictures kept for validation, see `plain`."""
        return self.plain(self.held_out)

    def plain(self, images: Iterable[ImageInfo]) -> Catalogue:
        """Some of its pictures, each once and without anything that is left to chance."""
        plain = {name: default_of(name) for name in LEFT_TO_CHANCE}

        def without_chance(subset: SubsetConfig) -> SubsetConfig:
            return replace(subset, **plain, caption_shares=most_frequent(subset.caption_shares))

        changed = (replace(i, subset=without_chance(i.subset), repeats=1) for i in images)
        return Catalogue(tuple(changed), self.group)

    def everything(self) -> Catalogue:
        """Pictures to train on and to validate on: what is encoded before training."""
        return Catalogue((*self.images, *self.validation().images), self.group)

    @property
    def num_samples(self) -> int:
        """Pictures x repeats: samples of one epoch."""
        return sum(image.repeats for image in self.images)

    @property
    def num_batches(self) -> int:
        """Batches of one epoch, over all ranks."""
        return sum(self.count_batches(indices) for indices in self.buckets().values())

    def buckets(self) -> dict[tuple[int, Size], list[int]]:
        """(dataset, bucket) -> indices of its pictures, in a fixed order."""
        found = defaultdict(list)
        for index, image in enumerate(self.images):
            found[image.dataset_index, image.plan.bucket].append(index)
        return dict(sorted(found.items()))

    def count_batches(self, indices: list[int]) -> int:
        """Batches of one epoch from the pictures of one bucket; a short last one counts."""
        samples = sum(self.images[i].repeats for i in indices)
        dataset = self.group.datasets[self.images[indices[0]].dataset_index]
        return math.ceil(samples / dataset.batch_size)

    def fingerprint(self) -> str:
        """A hash of what is trained on, 32 hex digits; the same wherever the folders lie."""
        digest = hashlib.sha256()
        for image in self.images:
            mask = image.mask and image.mask.name
            parts: tuple[object, ...]
            parts = (image.key, image.size, image.plan, image.caption, image.repeats, mask)
            parts += () if image.sentences is None else (image.sentences,)
            digest.update(repr(parts).encode())
        digest.update(repr([dataset.batch_size for dataset in self.group.datasets]).encode())
        return digest.hexdigest()[:32]

    def describe(self) -> list[str]:
        """Lines for the log: datasets, subsets and the table of buckets."""
        lines = []
        buckets = self.buckets()
        for number, dataset in enumerate(self.group.datasets):
            images = [image for image in self.images if image.dataset_index == number]
            lines.append(_describe_dataset(number, dataset, images))
            for subset in dataset.subsets:
                lines.append(_describe_subset(subset, [i for i in images if i.subset is subset]))
            kept = [i.path.name for i in self.held_out if i.dataset_index == number]
            if kept:
                names = ", ".join(kept[:3] + ["..."] * (len(kept) > 3))
                lines.append(f"  kept for validation: {len(kept)} pictures ({names})")
            for (owner, bucket), indices in buckets.items():
                if owner != number:
                    continue
                samples = sum(self.images[i].repeats for i in indices)
                lines.append(
                    f"  bucket {bucket[0]:>4} x {bucket[1]:<4}  pictures {len(indices):>5}  with "
                    f"repeats {samples:>6}  batches {self.count_batches(indices):>5}"
                )
        return lines


def most_frequent(shares: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """The shares with the largest alone, the first of several."""
    if shares is None:
        return None
    return tuple(float(place == shares.index(max(shares))) for place in range(len(shares)))


def _describe_dataset(number: int, dataset: DatasetConfig, images: list[ImageInfo]) -> str:
    cropped = sum(cropped_fraction(image.plan) for image in images) / max(1, len(images))
    kind = "buckets" if dataset.enable_bucket else "one size"
    kind += " without enlarging" if dataset.enable_bucket and dataset.bucket_no_upscale else ""
    width, height = dataset.resolution
    return (
        f"dataset {number}: {width} x {height}, {kind}, batch size {dataset.batch_size}, "
        f"{len(images)} pictures, on average {cropped:.1%} cropped"
    )


def _describe_subset(subset: SubsetConfig, images: list[ImageInfo]) -> str:
    samples = sum(image.repeats for image in images)
    each = f" x {subset.num_repeats}" if samples == len(images) * subset.num_repeats else ""
    masked = sum(image.mask is not None for image in images)
    told = sum(image.sentences is not None for image in images)
    extras = [
        "regularisation" if subset.is_reg else "",
        f"{masked} masks" if masked else "",
        f"{told} with sentences" if told else "",
        "masks by transparency" if subset.alpha_mask else "",
        f"loss x {subset.loss_multiplier:g}" if subset.loss_multiplier != 1 else "",
        f"timestep_offset {subset.timestep_offset:g}" if subset.timestep_offset else "",
    ]
    shown = "".join(f", {extra}" for extra in extras if extra)
    return f"  {subset.place}: {len(images)} pictures{each} = {samples}{shown}"
