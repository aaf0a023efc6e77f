"""What a model family has to provide so that captions and pictures reach its model.

Four small interfaces. Captions are encoded one at a time unless more are asked for, and pictures give the
mean of the encoder, so that an output does not depend on its neighbours and training with a cache equals
training without one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from library.data.data_types import ImageInfo, Layout, TextOutputs


class TokenizeStrategy(ABC):
    """Text to token ids."""

    @abstractmethod
    def tokenize(self, caption: str) -> Any:
        """The tokens of one caption, in the family's own type."""

    @abstractmethod
    def tokenize_prompt(self, text: str) -> Any:
        """The tokens of a prompt to draw: parentheses weigh words, and nothing is cut.

        Raises ConfigError for a weight that is not finite.
        """


class TextEncodingStrategy(ABC):
    """Token ids to what the denoiser is conditioned on."""

    @abstractmethod
    def encode_tokens(self, tokens: Any) -> TextOutputs:
        """The encoder's outputs for one caption: unpadded, without a batch axis or gradients."""

    @abstractmethod
    def encode_prompt(self, tokens: Any) -> TextOutputs:
        """The outputs for a prompt's tokens, on the CPU; an empty prompt is encoded as any other.

        They are for FamilyHooks.prompt_context and may hold what a caption's do not.
        """

    @abstractmethod
    def collate(self, outputs: Sequence[TextOutputs]) -> Any:
        """The conditioning of a batch, padded as the model wants it; it has `.to(device)`."""


class LatentsCachingStrategy(ABC):
    """Pixels to latents, and latents that were drawn to pixels.

    identity:  the encoder's file and every option that changes its output; a cache made under
               another identity is not used
    downscale: pixels per latent cell, in each direction
    channels:  C of the latents
    """

    identity: str
    downscale: int
    channels: int

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, downscale*H, downscale*W) in [-1, 1] -> (B, C, H, W), float32 on the encoder's device."""

    @abstractmethod
    def decode(self, latents: Tensor, rows: int | None = None) -> Tensor:
        """(B, C, H, W) -> (B, 3, downscale*H, downscale*W), float32, not clamped to its [-1, 1].

        rows: of latents that are decoded at a time, to save memory; the same picture to rounding
        """

    def latents_shape(self, width: int, height: int, batch: int = 1) -> tuple[int, int, int, int]:
        """(B, C, H, W) of pictures of a size in pixels, which `downscale` divides."""
        return batch, self.channels, height // self.downscale, width // self.downscale

    def free(self) -> None:
        """Give the encoder's memory back; the next `encode` loads it again."""

    def foreign_file(self, image: ImageInfo) -> Path | None:
        """Where another trainer has stored a picture's latents, if there is such a file."""
        return None

    def read_foreign(self, image: ImageInfo, flipped: bool) -> Tensor | None:
        """(C, H, W) as another trainer stored it beside the picture; None when there is no file.

        Raises UnfitFile when there is one that does not fit.
        """
        return None


class TextEncoderOutputsCachingStrategy(ABC):
    """Captions to text encoder outputs, for the cache.

    identity: encoder file, tokenizers, lengths and every option that changes the outputs
    layout:   what a caption's outputs look like; stored ones that do not are not used
    """

    identity: str
    layout: Layout

    @abstractmethod
    def encode(self, caption: str) -> TextOutputs:
        """What tokenizing and encoding give for one caption, on the CPU."""

    def size_of(self, text: str) -> Hashable:
        """Captions for which this is equal are encoded together, where that is asked for."""
        return text

    def encode_together(self, captions: Sequence[str]) -> Sequence[TextOutputs]:
        """What `encode` gives, to rounding, of captions of one size."""
        return [self.encode(caption) for caption in captions]

    def is_even(self, text: str, rows: int) -> bool:
        """Whether among so many captions of this one's size the place of one changes no bit of its outputs."""
        return True

    def rest(self) -> None:
        """Keep the encoder in the host's memory only; the next `encode` brings it back."""

    def free(self) -> None:
        """Give the encoder's memory back; the next `encode` loads it again."""

    def foreign_file(self, picture: Path) -> Path | None:
        """Where another trainer has stored a picture's text outputs, if there is such a file."""
        return None

    def read_foreign(self, picture: Path, caption: str) -> TextOutputs | None:
        """A caption's outputs as another trainer stored them beside a picture; None without a file.

        Raises UnfitFile when there is one that does not fit.
        """
        return None
