"""Kernels in Triton's language: a norm with its rotation; a gate, the residual sum and a modulated norm; zeros
that are counted in attention.

Everything is computed in float32 and rounded as it is stored. What a backward pass needs of a forward pass
it makes again of the kernel's inputs. Gradients of what all tokens share are left as float32 sums of each
program, which the caller adds up: the same bits in every run. Import it only where Triton is.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from library.anima_backend.modelling.params import EPS

ZERO_ROWS = 32  # of a head, in one program


@triton.jit
def norm_turn_one(
    x, weight, out, from_, at, c, s, eps, head, place,
    TURNED: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One token of x: each head (a | b) divided by its root mean square, weighted and turned."""
    here, inside = place < HALF, (head < HEADS) & (place < HALF)
    a = tl.load(x + from_, inside, other=0.0).to(tl.float32)
    b = tl.load(x + from_ + HALF, inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(a * a + b * b, 1) / (2 * HALF) + eps)[:, None]
    a = a * scale * tl.load(weight + place, here, other=0.0).to(tl.float32)
    b = b * scale * tl.load(weight + HALF + place, here, other=0.0).to(tl.float32)
    if TURNED:
        a, b = a * c - b * s, b * c + a * s
    tl.store(out + at, a.to(out.dtype.element_ty), inside)
    tl.store(out + at + HALF, b.to(out.dtype.element_ty), inside)


@triton.jit
def norm_turn_kernel(
    x, weight, out, other, other_weight, other_out, cos, sin, length, by_sample, by_token,
    other_by_sample, other_by_token, eps, TURNED: tl.constexpr, TWO: tl.constexpr,
    HEADS: tl.constexpr, HALF: tl.constexpr, HEAD_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
):  # fmt: skip
    """One token of x and, if there are two, of other. by_...: their strides"""
    token = tl.program_id(0)
    head, place = tl.arange(0, HEAD_BLOCK)[:, None], tl.arange(0, HALF_BLOCK)[None, :]
    inside = head * (2 * HALF) + place
    at = token.to(tl.int64) * (HEADS * 2 * HALF) + inside
    sample, row = (token // length).to(tl.int64), token % length
    c = tl.zeros((1, HALF_BLOCK), tl.float32)
    s = tl.zeros((1, HALF_BLOCK), tl.float32)
    if TURNED:
        angle = row * HALF + place
        c = tl.load(cos + angle, place < HALF, other=0.0)
        s = tl.load(sin + angle, place < HALF, other=0.0)
    from_ = sample * by_sample + row * by_token + inside
    norm_turn_one(x, weight, out, from_, at, c, s, eps, head, place, TURNED, HEADS, HALF)
    if TWO:
        from_ = sample * other_by_sample + row * other_by_token + inside
        norm_turn_one(
            other, other_weight, other_out, from_, at, c, s, eps, head, place, TURNED, HEADS, HALF
        )


@triton.jit
def norm_turn_back_one(
    grad, x, weight_a, weight_b, of_x, from_, at, to, c, s, eps, inside,
    TURNED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One token: the gradient of x; returned, what each head adds to that of the weight (a | b).

    from_, at, to: where the token is in grad, x and of_x
    """
    grad_a = tl.load(grad + from_, inside, other=0.0).to(tl.float32)
    grad_b = tl.load(grad + from_ + HALF, inside, other=0.0).to(tl.float32)
    if TURNED:
        grad_a, grad_b = grad_a * c + grad_b * s, grad_b * c - grad_a * s
    a = tl.load(x + at, inside, other=0.0).to(tl.float32)
    b = tl.load(x + at + HALF, inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(a * a + b * b, 1) / (2 * HALF) + eps)[:, None]
    a, b = a * scale, b * scale
    of_weight_a, of_weight_b = grad_a * a, grad_b * b
    mean = (tl.sum(of_weight_a * weight_a + of_weight_b * weight_b, 1) / (2 * HALF))[:, None]
    grad_a, grad_b = grad_a * weight_a, grad_b * weight_b
    of_a, of_b = scale * (grad_a - a * mean), scale * (grad_b - b * mean)
    tl.store(of_x + to, of_a.to(of_x.dtype.element_ty), inside)
    tl.store(of_x + to + HALF, of_b.to(of_x.dtype.element_ty), inside)
    return of_weight_a, of_weight_b


@triton.jit
def norm_turn_back_kernel(
    grad, x, weight, of_x, other_grad, other, other_weight, of_other, cos, sin, sums, tokens, length,
    by_sample, by_token, by_head, other_by_sample, other_by_token, other_by_head,
    x_by_sample, x_by_token, other_x_by_sample, other_x_by_token, of_x_by_token, eps,
    TURNED: tl.constexpr, TWO: tl.constexpr, OF_WEIGHT: tl.constexpr, ROWS: tl.constexpr,
    HEADS: tl.constexpr, HALF: tl.constexpr, HEAD_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS tokens: gradients turned back, of the inputs, and summed those of the weights.

    by_...: the strides of the gradients; x_by_...: of x and other; of_x_by_token: of both their gradients
    """
    head, place = tl.arange(0, HEAD_BLOCK)[:, None], tl.arange(0, HALF_BLOCK)[None, :]
    here, heads = place < HALF, (head < HEADS) & (place < HALF)
    weight_a = tl.load(weight + place, here, other=0.0).to(tl.float32)
    weight_b = tl.load(weight + HALF + place, here, other=0.0).to(tl.float32)
    other_a = tl.load(other_weight + place, here, other=0.0).to(tl.float32)
    other_b = tl.load(other_weight + HALF + place, here, other=0.0).to(tl.float32)
    sum_a = tl.zeros((HEAD_BLOCK, HALF_BLOCK), tl.float32)
    sum_b = tl.zeros((HEAD_BLOCK, HALF_BLOCK), tl.float32)
    other_sum_a = tl.zeros((HEAD_BLOCK, HALF_BLOCK), tl.float32)
    other_sum_b = tl.zeros((HEAD_BLOCK, HALF_BLOCK), tl.float32)
    c = tl.zeros((1, HALF_BLOCK), tl.float32)
    s = tl.zeros((1, HALF_BLOCK), tl.float32)
    for row in range(ROWS):
        token = tl.program_id(0) * ROWS + row
        inside = heads & (token < tokens)
        sample, row_of_sample = (token // length).to(tl.int64), token % length
        if TURNED:
            c = tl.load(cos + row_of_sample * HALF + place, here, other=0.0)
            s = tl.load(sin + row_of_sample * HALF + place, here, other=0.0)
        in_token = head * (2 * HALF) + place
        to = token.to(tl.int64) * of_x_by_token + in_token
        at = sample * x_by_sample + row_of_sample * x_by_token + in_token
        from_ = sample * by_sample + row_of_sample * by_token + head * by_head + place
        a, b = norm_turn_back_one(
            grad, x, weight_a, weight_b, of_x, from_, at, to, c, s, eps, inside, TURNED, HALF
        )
        sum_a += a
        sum_b += b
        if TWO:
            from_ = sample * other_by_sample + row_of_sample * other_by_token
            from_ += head * other_by_head + place
            at = sample * other_x_by_sample + row_of_sample * other_x_by_token + in_token
            a, b = norm_turn_back_one(
                other_grad, other, other_a, other_b, of_other, from_, at, to, c, s, eps, inside,
                TURNED, HALF,
            )  # fmt: skip
            other_sum_a += a
            other_sum_b += b
    if OF_WEIGHT:
        at = tl.program_id(0) * (2 * HALF) + tl.arange(0, HALF_BLOCK)
        inside = tl.arange(0, HALF_BLOCK) < HALF
        tl.store(sums + at, tl.sum(sum_a, 0), inside)
        tl.store(sums + at + HALF, tl.sum(sum_b, 0), inside)
        if TWO:
            at += tl.num_programs(0) * (2 * HALF)
            tl.store(sums + at, tl.sum(other_sum_a, 0), inside)
            tl.store(sums + at + HALF, tl.sum(other_sum_b, 0), inside)


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
            rounded = total.to(of_x.dtype.element_ty)
            tl.store(of_x + at, rounded, inside)
            total = rounded.to(tl.float32)  # as where the gate has a kernel of its own
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


@triton.jit
def count_zeros_kernel(
    out, whole, sums, log_zeros, rows, length, heads, by_sample, by_head, by_row, by_column,
    sum_by_sample, sum_by_head, sum_by_row, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS rows of one head: the logarithm of the sum with the zeros, and the part of the others of it.

    rows: of sums; length: of out, which has no more
    """
    sample = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = sample * sum_by_sample + head * sum_by_head + row.to(tl.int64) * sum_by_row
    real = tl.load(sums + at, row < rows, other=0.0).to(tl.float32)
    zeros = tl.load(log_zeros).to(tl.float32)
    most, least = tl.maximum(real, zeros), tl.minimum(real, zeros)
    total = most + tl.log(1 + tl.exp(least - most))
    tl.store(whole + at, total, row < rows)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < length)[:, None] & (column < WIDTH)
    at = sample * by_sample + head * by_head + (row.to(tl.int64) * by_row)[:, None]
    at += column * by_column
    value = tl.load(out + at, inside, other=0.0).to(tl.float32) * tl.exp(real - total)[:, None]
    tl.store(out + at, value.to(out.dtype.element_ty), inside)


def norm_turn(
    xs: Sequence[Tensor], weights: Sequence[Tensor], cos: Tensor | None, sin: Tensor | None,
    outs: Sequence[Tensor],
) -> None:  # fmt: skip
    """Fill outs (B, L, heads, hd), dense; xs, one or two, are so for each token."""
    batch, length, heads, width = xs[0].shape
    with on_its_card(xs[0]):
        norm_turn_kernel[(batch * length,)](
            xs[0], weights[0], outs[0], xs[-1], weights[-1], outs[-1], given(cos, xs[0]),
            given(sin, xs[0]), length, *xs[0].stride()[:2], *xs[-1].stride()[:2], EPS,
            TURNED=cos is not None, TWO=len(xs) > 1, **blocks_of(heads, width), num_warps=4,
        )  # fmt: skip


def norm_turn_back(
    grads: Sequence[Tensor], xs: Sequence[Tensor], weights: Sequence[Tensor], cos: Tensor | None,
    sin: Tensor | None, of_xs: Sequence[Tensor], sums: Tensor | None, rows: int,
) -> None:  # fmt: skip
    """Fill of_xs and, if given, sums (xs, programs of so many rows, hd).

    grads: dense in their last axis; xs: dense for each token; of_xs: as far apart as each other
    """
    batch, length, heads, width = xs[0].shape
    with on_its_card(xs[0]):
        norm_turn_back_kernel[(triton.cdiv(batch * length, rows),)](
            grads[0], xs[0], weights[0], of_xs[0], grads[-1], xs[-1], weights[-1], of_xs[-1],
            given(cos, xs[0]), given(sin, xs[0]), given(sums, xs[0]), batch * length, length,
            *grads[0].stride()[:3], *grads[-1].stride()[:3], *xs[0].stride()[:2],
            *xs[-1].stride()[:2], of_xs[0].stride(1), EPS, TURNED=cos is not None,
            TWO=len(xs) > 1, OF_WEIGHT=sums is not None, ROWS=rows, **blocks_of(heads, width),
            num_warps=4,
        )  # fmt: skip


def steer(
    x: Tensor, gate: Tensor | None, y: Tensor | None, shift: Tensor | None, scale: Tensor | None,
    stream: Tensor | None, normed: Tensor | None,
) -> None:  # fmt: skip
    """Fill stream, of gate and y, and normed, of shift and scale. x, y (B, L, D), the shared (B, 1, D)."""
    batch, length, width = x.shape
    with on_its_card(x):
        steer_kernel[(batch * length,)](
            x, given(gate, x), given(y, x), given(shift, x), given(scale, x), given(stream, x),
            given(normed, x), length, EPS, GATED=gate is not None, NORMED=normed is not None,
            WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=warps_of(width),
        )  # fmt: skip


def steer_back(
    of_stream: Tensor | None, of_normed: Tensor | None, stream: Tensor | None, scale: Tensor | None,
    gate: Tensor | None, y: Tensor | None, of_x: Tensor | None, of_y: Tensor | None,
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
            given(sums, like), length, EPS, SUMMED=of_stream is not None,
            NORMED=of_normed is not None, GATED=gate is not None,
            STEERED=sums is not None and len(sums) > 1, OF_GATE=y is not None, ROWS=rows,
            WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=warps_of(width),
        )  # fmt: skip


def count_zeros(out: Tensor, whole: Tensor, sums: Tensor, log_zeros: Tensor) -> None:
    """Fill whole and change out (B, heads, L, hd); whole, sums (B, heads, L or more) of the same strides."""
    batch, heads, length, width = out.shape
    assert whole.stride() == sums.stride(), (whole.stride(), sums.stride())
    with on_its_card(out):
        count_zeros_kernel[(triton.cdiv(sums.shape[2], ZERO_ROWS), batch * heads)](
            out, whole, sums, log_zeros, sums.shape[2], length, heads, *out.stride(),
            *sums.stride(), ROWS=ZERO_ROWS, WIDTH=width, BLOCK=triton.next_power_of_2(width),
            num_warps=4,
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
