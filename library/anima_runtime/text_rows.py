"""Captions through Qwen: one or several of equal length, without padding or masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from library.anima_backend.modelling import text_encoder
from library.device_utils import LoadedOnUse, all_alike, to_device

if TYPE_CHECKING:
    from transformers import Qwen3Model


@torch.no_grad()
def hidden_states(encoder: Qwen3Model | LoadedOnUse, ids: Sequence[Sequence[int]]) -> Sequence[Tensor]:
    """(S, D) of each caption's S ids, on the encoder's device, for which nobody waits."""
    together = to_device(torch.tensor(ids), encoder.device)
    return text_encoder.hidden_states(encoder, together, None).unbind()


@torch.no_grad()
def is_even(encoder: Qwen3Model | LoadedOnUse, length: int, rows: int) -> bool:
    """Whether equal captions of `length` ids get the same bits everywhere in a batch of `rows`.

    One layer is tried: the others have the same shapes, and so the same kernels.
    """
    ids = torch.arange(length) % encoder.config.vocab_size
    found = text_encoder.first_layer(encoder, ids.repeat(rows, 1).to(encoder.device))
    return all_alike(found)
