"""Norms of heads with their rotations on a CPU: the tokens go through in pieces that stay in its cache.

The plain form, in float32, writes ten tensors as large as its input and reads each again. Here every step is
done for one piece before the next one's, in the same few tensors. What is computed is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from library.anima_backend.modelling.params import EPS

PIECE = 2**17  # elements for each thread; a core's cache holds two or three times as many in float32


class NormTurn(torch.autograd.Function):
    """norm_turn(x, weight, cos, sin). Keeps what comes in."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight, cos, sin)
        return norm_turn(x, weight, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cos, sin = ctx.saved_tensors
        asked = ctx.needs_input_grad[1]
        return *norm_turn_back(grad, x, weight, cos, sin, of_weight=asked), None, None


@torch.no_grad()
def norm_turn(x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """x (B, L, heads, hd), of any strides, divided by each head's root mean square, weighted and turned.

    cos, sin: (L, hd/2), or None: not turned
    In the dtype of x; computed in float32, or in float64 where x is.
    """
    out = x.new_empty(x.shape)
    for piece, (value, other) in pieces(x, 2):
        value.copy_(x[:, piece])
        value.mul_(over_root(value, other)).mul_(weight)
        if cos is not None and sin is not None:
            value = turn(value, cos[piece], sin[piece], 1, other)
        out[:, piece] = value
    return out


def norm_turn_back(
    grad: Tensor, x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None,
    *, of_weight: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The gradient of x and, if asked for, that of the weight."""
    of_x, width = x.new_empty(x.shape), x.shape[-1]
    sums = x.new_zeros(width, dtype=computed_in(x)) if of_weight else None
    for piece, (value, change, other) in pieces(x, 3):
        if cos is None or sin is None:
            change.copy_(grad[:, piece])
        else:
            turn(value.copy_(grad[:, piece]), cos[piece], sin[piece], -1, change)
        scale = over_root(value.copy_(x[:, piece]), other)
        if sums is not None:
            sums += torch.mul(value, scale, out=other).mul_(change).sum((0, 1, 2))
        change.mul_(weight)
        along = torch.mul(value, change, out=other).sum(-1, keepdim=True)
        along.mul_(scale).mul_(scale).mul_(-1 / width)
        of_x[:, piece] = change.addcmul_(value, along).mul_(scale)
    return of_x, None if sums is None else sums.to(weight.dtype)


def pieces(x: Tensor, count: int) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Which tokens, of all samples; and so many tensors to compute them in, the same for all pieces."""
    batch, length, *head = x.shape
    each = PIECE * torch.get_num_threads()
    rows = max(1, min(length, each // max(1, batch * head[0] * head[1])))
    room = x.new_empty(count, batch, rows, *head, dtype=computed_in(x))
    for start in range(0, length, rows):
        yield slice(start, start + rows), room[:, :, : length - start].unbind()


def computed_in(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def over_root(x: Tensor, other: Tensor) -> Tensor:
    """1 / each head's root mean square, (..., 1); `other` is written over."""
    squares = torch.mul(x, x, out=other).sum(-1, keepdim=True)
    return squares.mul_(1 / x.shape[-1]).add_(EPS).rsqrt_()


def turn(x: Tensor, cos: Tensor, sin: Tensor, way: int, out: Tensor) -> Tensor:
    """out: x (..., n, heads, hd) turned by cos, sin (n, hd/2), or with way -1 turned back."""
    cos, sin = torch.cat([cos, cos], dim=-1)[:, None], sin[:, None]
    torch.mul(x, cos, out=out)
    (a, b), (of_a, of_b) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    of_a.addcmul_(b, sin, value=-way)
    of_b.addcmul_(a, sin, value=way)
    return out
