"""How a tensor lies in its memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Of a tensor; the offset counts its own elements."""

    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        return cls(tensor.dtype, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def in_memory_of(self, tensor: Tensor) -> Tensor:
        """What lies like this in the memory behind `tensor`, which is of the same dtype."""
        return tensor.as_strided(self.size, self.stride, self.offset)
