"""The precision of a file: chosen by the user, and given up where it would lose what was trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Rounding moves a tensor by 1/512 of its norm at most in bfloat16, by 1/4096 in float16. What is
# moved by more held values that the format has no numbers for.
MOST_ROUNDED = 1 / 128
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def in_precision(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors in `dtype`, or all in float32, said why, when that would lose one of them.

    Values beyond the range of `dtype` become infinite, and those below it zero: a factor with many
    of them is lost.
    """
    narrow = {key: tensor.to(dtype).contiguous() for key, tensor in tensors.items()}
    lost = [key for key, tensor in tensors.items() if loses(tensor, narrow[key])]
    if not lost:
        return narrow
    largest, first = max(float(tensors[key].abs().max()) for key in lost), lost[0]
    limits = torch.finfo(dtype)
    logger.warning(
        "save_precision %s holds numbers from %.2g to %.3g. %d tensors do not fit (%s; the largest "
        "number is %.3g), so the file is written in float32: nothing that was trained is lost.",
        NAMES.get(dtype, dtype), limits.smallest_normal, limits.max, len(lost), first, largest,
    )  # fmt: skip
    return {key: tensor.float().contiguous() for key, tensor in tensors.items()}


def loses(tensor: Tensor, narrow: Tensor) -> bool:
    """Whether a finite tensor is more than rounded by the cast to `narrow`."""
    wide = tensor.double()  # squares of large float32 numbers are infinite in float32
    moved = (wide - narrow.double()).norm()
    return bool(wide.isfinite().all() and not moved <= MOST_ROUNDED * wide.norm())
