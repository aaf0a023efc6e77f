"""DoRA in files: a magnitude beside the factors of another kind, as it is merged.

dora_scale, as LyCORIS writes it, and PEFT's lora_magnitude_vector differ in whose norm is replaced.
"""

from __future__ import annotations

import torch
from torch import Tensor

from networks.kinds.lora import LORA_DOWN
from networks.kinds.stored import DORA_SCALE, MAGNITUDE, Factors

MAGNITUDES = (DORA_SCALE, MAGNITUDE)


def with_magnitude(change: Tensor, weight: Tensor, factors: Factors) -> Tensor:
    """The change as the magnitude among `factors` makes it, if there is one; ValueError for two."""
    found = [name for name in MAGNITUDES if name in factors]
    if not found:
        return change
    if len(found) > 1:
        raise ValueError(f"has both {' and '.join(found)}")
    if weight.dim() != 2:
        raise ValueError(f"has {found[0]}, but is not a matrix")
    if found == [DORA_SCALE]:
        return decomposed(change, weight, factors[DORA_SCALE])
    if LORA_DOWN not in factors:
        raise ValueError(f"has {MAGNITUDE} beside no LoRA")
    return decomposed_as_peft(change, weight, factors[MAGNITUDE])


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


def decomposed_as_peft(change: Tensor, weight: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA's change as PEFT has it: the rows of (weight + change) brought to `magnitude` (out,)."""
    if magnitude.shape != weight.shape[:1]:
        found, expected = tuple(magnitude.shape), tuple(weight.shape[:1])
        raise ValueError(f"has {MAGNITUDE} of shape {found}, expected {expected}")
    weight, magnitude = weight.float(), magnitude.to(weight.device, torch.float32)
    total = weight + change
    norm = total.norm(dim=1) + torch.finfo(weight.dtype).eps
    return total * (magnitude / norm)[:, None] - weight


def as_dora_scale(change: Tensor, weight: Tensor, magnitude: Tensor) -> Tensor:
    """The dora_scale (out, 1) that does what PEFT's magnitude (out,) does with this change."""
    weight, magnitude = weight.float(), magnitude.to(weight.device, torch.float32)
    return (magnitude * weight.norm(dim=1) / (weight + change).norm(dim=1))[:, None]
