"""What a dataset asks of the stored outputs of encoders, whoever keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from library.data.data_types import TextOutputs


class UnfitFile(Exception):
    """A stored file that cannot be used; the text says which and why."""


class StoredLatents(Protocol):
    def get(
        self, key: str, flipped: bool = False, *, rebuild: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """A picture's latents (C, H, W) and loss mask (H, W), if it has one.

        What is lost is made anew, on the device; without `rebuild` it raises UnfitFile.
        """


class StoredTexts(Protocol):
    def get(self, caption: str, *, rebuild: bool = True) -> TextOutputs:
        """A caption's encoder outputs; lost ones as for latents."""
