"""Kernels in Triton's language: a norm with its rotation; a gate, the residual sum and a modulated norm.

Everything is computed in float32 and rounded as it is stored. What a backward pass needs of a forward pass
it makes again of the kernel's inputs. Gradients of what all tokens share are left as float32 sums of each
program, which the caller adds up: the same bits in every run. Import it only where Triton is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def norm_turn_kernel(
    x, weight, cos, sin, out, length, eps,
    TURNED: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
):  # fmt: skip
    """One token: each head (a | b) divided by its root mean square, weighted and turned."""
    token = tl.program_id(0)
    head, place = tl.arange(0, HEAD_BLOCK)[:, None], tl.arange(0, HALF_BLOCK)[None, :]
    here, inside = place < HALF, (head < HEADS) & (place < HALF)
    at = token.to(tl.int64) * (HEADS * 2 * HALF) + head * (2 * HALF) + place
    a = tl.load(x + at, inside, other=0.0).to(tl.float32)
    b = tl.load(x + at + HALF, inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(a * a + b * b, 1) / (2 * HALF) + eps)[:, None]
    a = a * scale * tl.load(weight + place, here, other=0.0).to(tl.float32)
    b = b * scale * tl.load(weight + HALF + place, here, other=0.0).to(tl.float32)
    if TURNED:
        angle = (token % length) * HALF + place
        c = tl.load(cos + angle, here, other=0.0)
        s = tl.load(sin + angle, here, other=0.0)
        a, b = a * c - b * s, b * c + a * s
    tl.store(out + at, a.to(out.dtype.element_ty), inside)
    tl.store(out + at + HALF, b.to(out.dtype.element_ty), inside)


@triton.jit
def norm_turn_back_kernel(
    grad, x, weight, cos, sin, of_x, sums, tokens, length, by_sample, by_token, by_head, eps,
    TURNED: tl.constexpr, OF_WEIGHT: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr,
    HALF: tl.constexpr, HEAD_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS tokens: gradients turned back, of the input, and summed those of the weight.

    by_sample, by_token, by_head: the strides of grad
    """
    head, place = tl.arange(0, HEAD_BLOCK)[:, None], tl.arange(0, HALF_BLOCK)[None, :]
    here, heads = place < HALF, (head < HEADS) & (place < HALF)
    weight_a = tl.load(weight + place, here, other=0.0).to(tl.float32)
    weight_b = tl.load(weight + HALF + place, here, other=0.0).to(tl.float32)
    sum_a = tl.zeros((HEAD_BLOCK, HALF_BLOCK), tl.float32)
    sum_b = tl.zeros((HEAD_BLOCK, HALF_BLOCK), tl.float32)
    for row in range(ROWS):
        token = tl.program_id(0) * ROWS + row
        inside = heads & (token < tokens)
        sample = (token // length).to(tl.int64)
        at = sample * by_sample + (token % length) * by_token + head * by_head + place
        grad_a = tl.load(grad + at, inside, other=0.0).to(tl.float32)
        grad_b = tl.load(grad + at + HALF, inside, other=0.0).to(tl.float32)
        if TURNED:
            angle = (token % length) * HALF + place
            c = tl.load(cos + angle, here, other=0.0)
            s = tl.load(sin + angle, here, other=0.0)
            grad_a, grad_b = grad_a * c + grad_b * s, grad_b * c - grad_a * s
        at = token.to(tl.int64) * (HEADS * 2 * HALF) + head * (2 * HALF) + place
        a = tl.load(x + at, inside, other=0.0).to(tl.float32)
        b = tl.load(x + at + HALF, inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(a * a + b * b, 1) / (2 * HALF) + eps)[:, None]
        a, b = a * scale, b * scale
        if OF_WEIGHT:
            sum_a += grad_a * a
            sum_b += grad_b * b
        grad_a, grad_b = grad_a * weight_a, grad_b * weight_b
        mean = (tl.sum(grad_a * a + grad_b * b, 1) / (2 * HALF))[:, None]
        grad_a, grad_b = scale * (grad_a - a * mean), scale * (grad_b - b * mean)
        tl.store(of_x + at, grad_a.to(of_x.dtype.element_ty), inside)
        tl.store(of_x + at + HALF, grad_b.to(of_x.dtype.element_ty), inside)
    if OF_WEIGHT:
        at = tl.program_id(0) * (2 * HALF) + tl.arange(0, HALF_BLOCK)
        inside = tl.arange(0, HALF_BLOCK) < HALF
        tl.store(sums + at, tl.sum(sum_a, 0), inside)
        tl.store(sums + at + HALF, tl.sum(sum_b, 0), inside)


@triton.jit
def steer_kernel(
    x, gate, y, shift, scale, stream, normed, length, eps,
    GATED: tl.constexpr, NORMED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token: stream = x + gate * y, rounded; normed = LayerNorm(stream) * scale + shift."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    at, shared = row.to(tl.int64) * WIDTH + column, (row // length) * WIDTH + column
    value = tl.load(x + at, inside, other=0.0).to(tl.float32)
    if GATED:
        weight = tl.load(gate + shared, inside, other=0.0).to(tl.float32)
        value += weight * tl.load(y + at, inside, other=0.0).to(tl.float32)
        rounded = value.to(stream.dtype.element_ty)
        tl.store(stream + at, rounded, inside)
        value = rounded.to(tl.float32)
    if NORMED:
        value = tl.where(inside, value - tl.sum(value, 0) / WIDTH, 0.0)
        value = value * tl.rsqrt(tl.sum(value * value, 0) / WIDTH + eps)
        value = value * tl.load(scale + shared, inside, other=0.0).to(tl.float32)
        value += tl.load(shift + shared, inside, other=0.0).to(tl.float32)
        tl.store(normed + at, value.to(normed.dtype.element_ty), inside)


@triton.jit
def steer_back_kernel(
    of_stream, of_normed, stream, scale, gate, y, of_x, of_y, sums, length, eps,
    SUMMED: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr, STEERED: tl.constexpr,
    OF_GATE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS tokens of one sample: the gradient of the stream, through the norm and beside it, and of y.

    sums: of this program, those that are asked for: of shift and scale (STEERED), of gate (OF_GATE)
    """
    column = tl.arange(0, BLOCK)
    columns = column < WIDTH
    sample = tl.program_id(1)
    shared = sample * WIDTH + column
    weight = tl.zeros((BLOCK,), tl.float32)
    factor = tl.zeros((BLOCK,), tl.float32)
    if NORMED:
        weight = tl.load(scale + shared, columns, other=0.0).to(tl.float32)
    if GATED:
        factor = tl.load(gate + shared, columns, other=0.0).to(tl.float32)
    sum_shift = tl.zeros((BLOCK,), tl.float32)
    sum_scale = tl.zeros((BLOCK,), tl.float32)
    sum_gate = tl.zeros((BLOCK,), tl.float32)
    for number in range(ROWS):
        row = tl.program_id(0) * ROWS + number
        inside = columns & (row < length)
        at = (sample.to(tl.int64) * length + row) * WIDTH + column
        total = tl.zeros((BLOCK,), tl.float32)
        if SUMMED:
            total += tl.load(of_stream + at, inside, other=0.0).to(tl.float32)
        if NORMED:
            value = tl.load(stream + at, inside, other=0.0).to(tl.float32)
            value = tl.where(columns, value - tl.sum(value, 0) / WIDTH, 0.0)
            over = tl.rsqrt(tl.sum(value * value, 0) / WIDTH + eps)
            value = value * over
            grad = tl.load(of_normed + at, inside, other=0.0).to(tl.float32)
            if STEERED:
                sum_shift += grad
                sum_scale += grad * value
            grad = grad * weight
            along = tl.sum(grad * value, 0) / WIDTH
            total += over * (grad - tl.sum(grad, 0) / WIDTH - value * along)
            tl.store(of_x + at, total.to(of_x.dtype.element_ty), inside)
        if GATED:
            tl.store(of_y + at, (total * factor).to(of_y.dtype.element_ty), inside)
            if OF_GATE:
                sum_gate += total * tl.load(y + at, inside, other=0.0).to(tl.float32)
    line = tl.num_programs(1) * tl.num_programs(0) * WIDTH
    at = (sample * tl.num_programs(0) + tl.program_id(0)) * WIDTH + column
    if STEERED:
        tl.store(sums + at, sum_shift, columns)
        tl.store(sums + line + at, sum_scale, columns)
    if OF_GATE:
        tl.store(sums + 2 * STEERED * line + at, sum_gate, columns)


def norm_turn(
    x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float, out: Tensor
) -> None:
    """Fill out; x, out (B, L, heads, hd) contiguous."""
    batch, length, heads, width = x.shape
    turned = cos is not None
    with on_its_card(x):
        norm_turn_kernel[(batch * length,)](
            x, weight, cos if turned else weight, sin if turned else weight, out, length, eps,
            TURNED=turned, **blocks_of(heads, width), num_warps=4,
        )  # fmt: skip


def norm_turn_back(
    grad: Tensor, x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float,
    of_x: Tensor, sums: Tensor | None, rows: int,
) -> None:  # fmt: skip
    """Fill of_x and, if given, sums (programs of so many rows, hd). grad: its last axis is dense."""
    batch, length, heads, width = x.shape
    turned, summed = cos is not None, sums is not None
    with on_its_card(x):
        norm_turn_back_kernel[(triton.cdiv(batch * length, rows),)](
            grad, x, weight, cos if turned else weight, sin if turned else weight, of_x,
            sums if summed else weight, batch * length, length, *grad.stride()[:3], eps,
            TURNED=turned, OF_WEIGHT=summed, ROWS=rows, **blocks_of(heads, width), num_warps=4,
        )  # fmt: skip


def steer(
    x: Tensor, gate: Tensor | None, y: Tensor | None, shift: Tensor | None, scale: Tensor | None,
    eps: float, stream: Tensor | None, normed: Tensor | None,
) -> None:  # fmt: skip
    """Fill stream, of gate and y, and normed, of shift and scale. x, y (B, L, D), the shared (B, 1, D)."""
    batch, length, width = x.shape
    with on_its_card(x):
        steer_kernel[(batch * length,)](
            x, given(gate, x), given(y, x), given(shift, x), given(scale, x), given(stream, x),
            given(normed, x), length, eps, GATED=gate is not None, NORMED=normed is not None,
            WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=warps_of(width),
        )  # fmt: skip


def steer_back(
    of_stream: Tensor | None, of_normed: Tensor | None, stream: Tensor | None, scale: Tensor | None,
    gate: Tensor | None, y: Tensor | None, eps: float, of_x: Tensor | None, of_y: Tensor | None,
    sums: Tensor | None, rows: int,
) -> None:  # fmt: skip
    """Fill of_x, of normed and of stream; of_y, of gate; sums (kinds, B, programs of so many rows, D).

    The kinds: shift and scale, if there are more than one; gate, if y is given.
    """
    like = of_stream if of_normed is None else of_normed
    assert like is not None, "there is a gradient"
    batch, length, width = like.shape
    with on_its_card(like):
        steer_back_kernel[(triton.cdiv(length, rows), batch)](
            given(of_stream, like), given(of_normed, like), given(stream, like), given(scale, like),
            given(gate, like), given(y, like), given(of_x, like), given(of_y, like),
            given(sums, like), length, eps, SUMMED=of_stream is not None,
            NORMED=of_normed is not None, GATED=gate is not None,
            STEERED=sums is not None and len(sums) > 1, OF_GATE=y is not None, ROWS=rows,
            WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=warps_of(width),
        )  # fmt: skip


def given(tensor: Tensor | None, other: Tensor) -> Tensor:
    """The tensor, or one that stands in its place and is not looked at."""
    return other if tensor is None else tensor


def warps_of(width: int) -> int:
    return 4 if width <= 1024 else 8


def blocks_of(heads: int, width: int) -> dict[str, int]:
    half = width // 2
    return {
        "HEADS": heads,
        "HALF": half,
        "HEAD_BLOCK": triton.next_power_of_2(heads),
        "HALF_BLOCK": triton.next_power_of_2(half),
    }


def on_its_card(x: Tensor) -> torch.cuda.device_of:
    """Within: kernels are launched on the card of x."""
    return torch.cuda.device_of(x)
