"""What the stages of a run hand to each other.

ImageInfo -> SampleRequest -> Sample -> Batch -> StepResult. Letters: B batch, C channels, H W latent
height and width. Latents are 4-D everywhere outside the models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from library.data.buckets import CropPlan

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from library.data.dataset_config import SubsetConfig

TextOutputs: TypeAlias = "Mapping[str, Tensor]"
"""What a text encoder makes of one caption, unpadded: named tensors without a batch axis."""


@dataclass(frozen=True)
class StoredTensor:
    """What a cached tensor has to be.

    shape: lengths; a letter is any length from 1 on, the same wherever it stands in one file
    below: what its whole numbers, from 0 on, stay below; None for floats
    """

    shape: tuple[int | str, ...]
    below: int | None = None


Layout: TypeAlias = Mapping[str, StoredTensor]
"""The tensors of a cache file by name."""


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """One picture of the catalogue.

    key:     unique in the run and the same on any machine: "<dataset>.<subset>/<path in the folder>"
    size:    (width, height) as displayed, that is after EXIF orientation
    caption: as read from the caption file, unprocessed; None when there is no caption file
    sentences: the same of its file of sentences; None as well where its subset does not ask for them
    plan:    how it is resized and cropped to its bucket
    mask:    file of its loss mask; None when there is none, or it is the picture's own opacity
    repeats: samples of it in one epoch
    """

    key: str
    path: Path
    size: tuple[int, int]
    caption: str | None
    dataset_index: int
    subset: SubsetConfig
    plan: CropPlan
    mask: Path | None = None
    repeats: int = 1
    sentences: str | None = None

    @property
    def has_text(self) -> bool:
        """Whether one of its files has a text that is not empty."""
        return bool((self.caption or "").strip() or (self.sentences or "").strip())


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Which picture, and which of its repeats in which epoch, both from 0.

    batch: place of its batch in the epoch, over all ranks; token warm-up reads the time from it
    """

    index: int
    epoch: int
    repeat: int
    batch: int = 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training example; exactly one of pixels and latents is set.

    pixels:  (3, 8H, 8W) in [-1, 1], float32        latents: (C, H, W), normalized
    caption: after shuffle, dropout and so on
    text:    its encoder outputs; None where they are not cached
    seed:    from (seed, epoch, key, repeat); sigma and noise are drawn from it
    loss_mask: (H', W') >= 0 at latent or pixel size; None: every element counts
    network_multiplier: strength of the adapters for its dataset
    of_prior: a regularisation picture
    sigma_offset: of its subset; moves the draw of sigma
    """

    key: str
    seed: int
    caption: str
    text: TextOutputs | None = None
    pixels: Tensor | None = None
    latents: Tensor | None = None
    loss_weight: float = 1.0
    loss_mask: Tensor | None = None
    network_multiplier: float = 1.0
    of_prior: bool = False
    sigma_offset: float = 0.0


@dataclass(frozen=True)
class Drawn:
    """What is drawn for the samples of a batch, on the CPU unless it was moved.

    sigma: (B,), in [0, 1]; noise: (B, C, H, W), with its offset
    extra: (B, C, H, W), added to the noise in the model's input alone; None where nothing is
    """

    sigma: Tensor
    noise: Tensor
    extra: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one bucket. pixels (B, 3, 8H, 8W) or latents (B, C, H, W); loss_weight (B,).

    texts: the captions' encoder outputs, None where they are not cached
    drawn, conditioning: made ahead of the step, None where they are made in it; conditioning is a
           dataclass of tensors with `.to(device)`
    sent:  the point of a lane at which its tensors are on the device; None where they were not sent
    """

    keys: tuple[str, ...]
    seeds: tuple[int, ...]
    captions: tuple[str, ...]
    loss_weight: Tensor
    texts: tuple[TextOutputs, ...] | None = None
    pixels: Tensor | None = None
    latents: Tensor | None = None
    loss_mask: Tensor | None = None
    network_multiplier: float = 1.0
    of_prior: tuple[bool, ...] = ()
    sigma_offsets: tuple[float, ...] = ()
    drawn: Drawn | None = None
    conditioning: Any = None
    sent: object = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = self._with_each(lambda tensor: tensor.to(device, non_blocking=True))
        if self.conditioning is None:
            return moved
        return replace(moved, conditioning=self.conditioning.to(device))

    def pin_memory(self) -> Batch:
        """What a loader calls so that `to` need not wait for a GPU."""
        return self._with_each(lambda tensor: tensor.pin_memory())

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        def changed(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        drawn = self.drawn
        return replace(
            self,
            loss_weight=change(self.loss_weight),
            pixels=changed(self.pixels),
            latents=changed(self.latents),
            loss_mask=changed(self.loss_mask),
            drawn=None
            if drawn is None
            else Drawn(change(drawn.sigma), change(drawn.noise), changed(drawn.extra)),
        )

    @property
    def size(self) -> tuple[int, ...]:
        """The shape of what its pictures are, latents or pixels."""
        pictures = self.pixels if self.latents is None else self.latents
        assert pictures is not None, "a batch has one of the two"
        return tuple(pictures.shape)

    def tensors(self) -> list[Tensor]:
        """All that a step reads, those of its conditioning too."""
        own = [self.loss_weight, self.pixels, self.latents, self.loss_mask]
        parts = [part for part in (self.drawn, self.conditioning) if part is not None]
        found = own + [value for part in parts for value in values_of(part)]
        return [tensor for tensor in found if tensor is not None]


def values_of(part: Any) -> list[Any]:
    """The values of a dataclass, in order."""
    return [getattr(part, field.name) for field in fields(part)]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one micro-step found. loss: scalar with gradient; per_sample, sigma: (B,), detached."""

    loss: Tensor
    per_sample: Tensor
    sigma: Tensor
    keys: tuple[str, ...]


@dataclass
class RunPosition:
    """Where the run stands, between two updates.

    step: optimizer updates done; epoch: current, from 0; batch_in_epoch: micro-batches of this rank
    done in it; samples_seen: of this rank.
    """

    step: int = 0
    epoch: int = 0
    batch_in_epoch: int = 0
    samples_seen: int = 0

    def begin_epoch(self, epoch: int) -> None:
        """Move to the start of an epoch; in the current one nothing changes."""
        if epoch != self.epoch:
            self.epoch, self.batch_in_epoch = epoch, 0
