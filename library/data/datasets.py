"""Requests to samples, samples to batches.

A sample is a function of (seed, epoch, picture, repeat) alone: whatever makes it holds no state, and
any sample can be made again anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from library.data import augment
from library.data.buckets import CropPlan
from library.data.captions import CaptionPosition, process_caption
from library.data.data_types import Batch, ImageInfo, Sample, SampleRequest
from library.data.images import load_picture
from library.utils import position_seed

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from library.data.catalogue import Catalogue
    from library.data.stored import StoredLatents, StoredTexts


@dataclass(kw_only=True, eq=False)
class TrainDataset:
    """The catalogue's pictures, or their cached latents, with the captions of each position.

    latents:         the cache; without it samples carry pixels
    texts:           the same of text outputs; without it samples carry captions alone
    max_train_steps: length of the run, for a token_warmup_step given as a fraction
    steps_per_epoch: updates per epoch, for token warm-up; batches per epoch when 0
    prior_loss_weight: of regularisation pictures
    """

    catalogue: Catalogue = field(kw_only=False)
    seed: int
    latents: StoredLatents | None = None
    texts: StoredTexts | None = None
    max_train_steps: int = 0
    steps_per_epoch: int = 0
    prior_loss_weight: float = 1.0

    def __post_init__(self) -> None:
        self.batches_per_epoch = max(1, self.catalogue.num_batches)
        self.steps_per_epoch = self.steps_per_epoch or self.batches_per_epoch

    def __len__(self) -> int:
        return len(self.catalogue.images)

    def __getitem__(self, request: SampleRequest) -> Sample:
        return self.sample(request)

    def sample(self, request: SampleRequest, *, rebuild: bool = True) -> Sample:
        """What this request is trained on. Raises DatasetError.

        rebuild: whether what a cache has lost is encoded anew, on the device; else raises UnfitFile
        """
        image = self.catalogue.images[request.index]
        flip = self.is_flipped(request)
        caption = self.caption_of(request)
        pixels = latents = None
        if self.latents is not None:
            latents, mask = self.latents.get(image.key, flip, rebuild=rebuild)
        else:
            pixels, mask = self.picture_of(request)
        prior = self.prior_loss_weight if image.subset.is_reg else 1.0
        return Sample(
            key=image.key,
            seed=position_seed(*self.position(image, request)),
            caption=caption,
            text=None if self.texts is None else self.texts.get(caption, rebuild=rebuild),
            pixels=pixels,
            latents=latents,
            loss_weight=prior * image.subset.loss_multiplier,
            loss_mask=mask,
            network_multiplier=self.catalogue.group.datasets[
                image.dataset_index
            ].network_multiplier,
            of_prior=image.subset.is_reg,
            sigma_offset=image.subset.timestep_offset,
        )

    def picture_of(self, request: SampleRequest) -> tuple[Tensor, Tensor | None]:
        """What this request sees: pixels (3, H, W) in [-1, 1], loss mask (H, W) or None."""
        image = self.catalogue.images[request.index]

        def change(picture: Image.Image) -> Image.Image:
            return augment.change_colours(picture, self.chance(request, "colour"))

        pixels, mask = load_picture(
            image, self.plan_of(request), change if image.subset.color_aug else None
        )
        if self.is_flipped(request):
            return pixels.flip(-1), None if mask is None else mask.flip(-1)
        return pixels, mask

    def plan_of(self, request: SampleRequest) -> CropPlan:
        """Where this request's picture is cropped."""
        image = self.catalogue.images[request.index]
        subset, rng = image.subset, self.chance(request, "crop")
        times_the_face = subset.face_crop_aug_range
        if times_the_face and (face := augment.face_in_name(image.path)):
            framing = augment.Framing(times_the_face, scatter=subset.random_crop)
            return augment.face_crop(image.plan, image.size, face, framing, rng)
        return augment.random_crop(image.plan, rng) if subset.random_crop else image.plan

    def caption_of(self, request: SampleRequest) -> str:
        """The caption this request is trained with; pure, so that a run's captions are known."""
        image = self.catalogue.images[request.index]
        rng = self.chance(request, "caption")
        step = request.epoch * self.steps_per_epoch
        step += request.batch * self.steps_per_epoch // self.batches_per_epoch
        position = CaptionPosition(request.epoch, step, self.max_train_steps)
        return process_caption(image.caption, image.subset, rng, position, image.sentences)

    def is_flipped(self, request: SampleRequest) -> bool:
        """Whether this request sees the mirrored picture."""
        image = self.catalogue.images[request.index]
        return image.subset.flip_aug and self.chance(request, "flip").random() < 0.5

    def chance(self, request: SampleRequest, purpose: str) -> random.Random:
        """The random generator of one choice for this request."""
        image = self.catalogue.images[request.index]
        return random.Random(position_seed(*self.position(image, request), purpose))

    def position(self, image: ImageInfo, request: SampleRequest) -> tuple[int | str, ...]:
        """What all of a sample's random choices depend on."""
        return self.seed, request.epoch, image.key, request.repeat


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one bucket as a batch."""

    def stack(name: str) -> torch.Tensor | None:
        values = [getattr(sample, name) for sample in samples]
        return None if values[0] is None else torch.stack(values)

    return Batch(
        keys=tuple(sample.key for sample in samples),
        seeds=tuple(sample.seed for sample in samples),
        captions=tuple(sample.caption for sample in samples),
        texts=tuple(sample.text for sample in samples if sample.text is not None) or None,
        loss_weight=torch.tensor([sample.loss_weight for sample in samples]),
        pixels=stack("pixels"),
        latents=stack("latents"),
        loss_mask=stack_masks([sample.loss_mask for sample in samples]),
        network_multiplier=samples[0].network_multiplier,
        of_prior=tuple(sample.of_prior for sample in samples),
        sigma_offsets=tuple(sample.sigma_offset for sample in samples),
    )


def stack_masks(masks: Sequence[Tensor | None]) -> Tensor | None:
    """(B, H, W); ones where a sample has no mask, None where no sample has one."""
    size = next((mask.shape for mask in masks if mask is not None), None)
    if size is None:
        return None
    return torch.stack([torch.ones(size) if mask is None else mask for mask in masks])
