"""Requests to samples, samples to batches.

A sample is a function of (seed, epoch, picture, repeat) alone: loader workers hold no state, and
any sample can be made again anywhere. Everything here can be pickled, as Windows workers need.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset

from library.captions import CaptionPosition, process_caption
from library.data_types import Batch, ImageInfo, Sample, SampleRequest
from library.images import load_pixels
from library.utils import position_seed

if TYPE_CHECKING:
    from library.caches import LatentsCache
    from library.dataset_scan import Catalogue
    from library.text_caches import TextCache


class TrainDataset(Dataset[Sample]):
    """The catalogue's pictures, or their cached latents, with the captions of each position.

    latents, texts:  caches; without them samples carry pixels and only the caption
    max_train_steps: length of the run, for a token_warmup_step given as a fraction
    steps_per_epoch: updates per epoch, for token warm-up; batches per epoch when 0
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        seed: int,
        latents: LatentsCache | None = None,
        texts: TextCache | None = None,
        max_train_steps: int = 0,
        steps_per_epoch: int = 0,
    ) -> None:
        self.catalogue = catalogue
        self.seed = seed
        self.latents = latents
        self.texts = texts
        self.max_train_steps = max_train_steps
        self.batches_per_epoch = max(1, catalogue.num_batches)
        self.steps_per_epoch = steps_per_epoch or self.batches_per_epoch

    def __len__(self) -> int:
        return len(self.catalogue.images)

    def __getitem__(self, request: SampleRequest) -> Sample:
        image = self.catalogue.images[request.index]
        caption = self.caption_of(request)
        flip = self.is_flipped(request)
        pixels = latents = None
        if self.latents is not None:
            latents = self.latents.get(image.key, flip)
        else:
            kernel = image.subset.resize_interpolation
            pixels = load_pixels(image.path, image.plan, interpolation=kernel, flip=flip)
        return Sample(
            key=image.key,
            seed=position_seed(*self.position(image, request)),
            caption=caption,
            pixels=pixels,
            latents=latents,
            text=None if self.texts is None else self.texts.get(caption),
        )

    def caption_of(self, request: SampleRequest) -> str:
        """The caption this request is trained with; pure, so that a run's captions are known."""
        image = self.catalogue.images[request.index]
        rng = random.Random(position_seed(*self.position(image, request), "caption"))
        step = request.epoch * self.steps_per_epoch
        step += request.batch * self.steps_per_epoch // self.batches_per_epoch
        position = CaptionPosition(request.epoch, step, self.max_train_steps)
        return process_caption(image.caption, image.subset, rng, position)

    def is_flipped(self, request: SampleRequest) -> bool:
        """Whether this request sees the mirrored picture."""
        image = self.catalogue.images[request.index]
        seed = position_seed(*self.position(image, request), "flip")
        return image.subset.flip_aug and random.Random(seed).random() < 0.5

    def position(self, image: ImageInfo, request: SampleRequest) -> tuple[int | str, ...]:
        """What all of a sample's random choices depend on."""
        return self.seed, request.epoch, image.key, request.repeat


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one bucket as a batch."""

    def stack(name: str) -> torch.Tensor | None:
        values = [getattr(sample, name) for sample in samples]
        return None if values[0] is None else torch.stack(values)

    texts = tuple(sample.text for sample in samples)
    return Batch(
        keys=tuple(sample.key for sample in samples),
        seeds=tuple(sample.seed for sample in samples),
        captions=tuple(sample.caption for sample in samples),
        loss_weight=torch.tensor([sample.loss_weight for sample in samples]),
        pixels=stack("pixels"),
        latents=stack("latents"),
        text=None if texts[0] is None else texts,
        loss_mask=stack("loss_mask"),
    )
