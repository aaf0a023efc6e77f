"""DoRA, read to be merged: a magnitude beside the factors of another kind."""

from __future__ import annotations

import torch
from torch import Tensor


def decomposed(change: Tensor, weight: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA's change from a plain one, as ComfyUI has it: (weight + change) brought to `magnitude`.

    magnitude: (out, 1), relative to the rows of the weight, or (1, in), to the columns of the sum
    """
    out, width = weight.shape
    weight, magnitude = weight.float(), magnitude.to(weight.device, torch.float32)
    eps = torch.finfo(weight.dtype).eps
    total = weight + change
    if magnitude.shape == (out, 1):
        norm = weight.norm(dim=1, keepdim=True)
    elif magnitude.shape == (1, width):
        norm = total.norm(dim=0, keepdim=True)
    else:
        found = tuple(magnitude.shape)
        raise ValueError(f"has dora_scale of shape {found}, expected {(out, 1)} or {(1, width)}")
    return total * (magnitude / (norm + eps)) - weight
