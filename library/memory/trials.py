"""What trials of kernels share: whether one computes what another does, and when it is done."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def apart_from(found: Tensor, expected: Tensor, dtype: torch.dtype = torch.float64) -> float:
    """|found - expected| / |expected|, in this dtype; infinite where that is no number."""
    found, expected = found.detach().to(dtype), expected.detach().to(dtype)
    distance = ((found - expected).norm() / expected.norm()).item()
    return distance if math.isfinite(distance) else math.inf


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
