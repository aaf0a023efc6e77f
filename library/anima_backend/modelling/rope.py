"""Rotary positions: one axis for the LLM adapter, three axes (time, height, width) for the DiT.

A rotation turns element j of a head together with element j + head_dim/2. Tables are float32.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

THETA = 10000.0
SHAPES = 8
"""Of pictures, whose tables are kept: each 2 MiB at 1024 px."""
DIT_RATIOS = {"t": 1.0, "h": 4.0, "w": 4.0}
"""Extrapolation of each axis: theta becomes theta * ratio ** (d / (d - 2)), d being the axis's share."""


def frequencies(dim: int, ratio: float = 1.0, device: torch.device | None = None) -> Tensor:
    """(dim/2,) angular frequencies, float32."""
    theta = THETA * ratio ** (dim / (dim - 2)) if dim > 2 else THETA
    steps = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    return theta**-steps


def text_rope(length: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin (length, head_dim/2) for positions 0..length-1."""
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = torch.outer(positions, frequencies(head_dim, device=device))
    return angles.cos(), angles.sin()


def image_rope(
    height: int, width: int, head_dim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin (height*width, head_dim/2) for one frame; tokens run row by row.

    height, width: in patches. The angles of a token are those of its [time | row | column].
    """
    side = head_dim // 6 * 2
    shares = {"t": head_dim - 2 * side, "h": side, "w": side}
    axes = {name: frequencies(dim, DIT_RATIOS[name], device) for name, dim in shares.items()}
    rows = torch.arange(height, dtype=torch.float32, device=device)[:, None] * axes["h"]
    columns = torch.arange(width, dtype=torch.float32, device=device)[:, None] * axes["w"]
    still = torch.zeros(height, width, axes["t"].numel(), device=device)
    angles = torch.cat(
        [
            still,
            rows[:, None].expand(height, width, -1),
            columns[None].expand(height, width, -1),
        ],
        dim=-1,
    ).flatten(0, 1)
    return angles.cos(), angles.sin()


@lru_cache(SHAPES)
@torch.no_grad()
def kept_image_rope(
    height: int, width: int, head_dim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The same, made once for each of the shapes that were asked for last."""
    return image_rope(height, width, head_dim, device)


def rotate(x: Tensor, rope: tuple[Tensor, ...]) -> Tensor:
    """x (B, L, heads, hd) turned by cos, sin (L, hd/2); computed in float32, returned in x's dtype."""
    if torch.compiler.is_compiling():
        cos, sin = (table[None, :, None] for table in rope)
        a, b = x.float().chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
    return Rotation.apply(x, *rope)


class Rotation(torch.autograd.Function):
    """Keeps the tables alone: its gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return turned(grad, cos, sin, -1), None, None


def turned(x: Tensor, cos: Tensor, sin: Tensor, way: int) -> Tensor:
    """x turned, or with way -1 turned back: a product in float32, and one sum for each half of a head.

    The sums are rounded as they are written, so that nothing else is in float32.
    """
    cos, sin = cos[:, None], sin[:, None]
    a, b = x.chunk(2, dim=-1)
    by_cos = x.unflatten(-1, (2, -1)) * cos[:, :, None]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    halves = out.chunk(2, dim=-1)
    for half, product, other, sign in zip(halves, by_cos.unbind(-2), (b, a), (-way, way)):
        torch.addcmul(product, other, sin, value=sign, out=half)
    return out
