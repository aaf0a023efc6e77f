"""What lies between the matrix products of a block, in one kernel each way: Triton's.

Norms of heads with their rotation; a gate, the residual sum and the modulated norm after it; zeros that are
counted in attention. The plain forms, several of torch's kernels each, are the same mathematics: they are what
a CPU and a compiler get.
Each kernel is an operator below autograd, so that a count on the meta device sees it as one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from library.memory.operators import operator
from library.memory.recomputation import counts, uncounted

try:
    from library.anima_backend.modelling import triton_kernels
except ImportError:  # no Triton: it is not there for every system
    HAS_TRITON = False
else:
    HAS_TRITON = True

PROGRAMS, NARROW = 128, 512
"""At least so many share sums over the tokens, where there are so many tokens; those of a head's width."""
MOST_ROWS = 16  # that one of them adds up, one after the other


def rows_of(length: int, programs: int = PROGRAMS) -> int:
    """How many of so many tokens one program adds up: by the size alone, so that sums are the same bits."""
    rows = 1
    while rows < MOST_ROWS and 2 * rows * programs <= length:
        rows *= 2
    return rows


@operator("norm_turn(Tensor[] xs, Tensor[] weights, Tensor? cos, Tensor? sin) -> Tensor[]")
def norm_turn(
    xs: list[Tensor], weights: list[Tensor], cos: Tensor | None, sin: Tensor | None
) -> list[Tensor]:
    """xs (B, L, heads, hd), one or two, divided by each head's root mean square, weighted and turned.

    The heads of a token lie dense; tokens may lie apart, as columns of a larger tensor do.
    """
    outs = [torch.empty_like(x) for x in xs]
    if not xs[0].is_meta:
        triton_kernels.norm_turn(xs, weights, cos, sin, outs)
    return outs


@operator(
    "norm_turn_back(Tensor[] grads, Tensor[] xs, Tensor[] weights, Tensor? cos, Tensor? sin,"
    " bool of_weights) -> Tensor[]"
)
def norm_turn_back(
    grads: list[Tensor], xs: list[Tensor], weights: list[Tensor], cos: Tensor | None,
    sin: Tensor | None, of_weights: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of xs and, if asked for, float32 sums (xs, programs, hd) for those of the weights.

    Those of xs that are columns lie beside each other as such.
    """
    (batch, length, *head), tokens = xs[0].shape, xs[0].shape[0] * xs[0].shape[1]
    if xs[0].is_contiguous():
        of_xs = [torch.empty_like(x) for x in xs]
    else:
        of_xs = list(xs[0].new_empty(batch, length, len(xs), *head).unbind(2))
    rows, sums = 1, None
    if of_weights:
        rows = rows_of(tokens, NARROW)
        sums = xs[0].new_empty(len(xs), -(-tokens // rows), xs[0].shape[-1], dtype=torch.float32)
    if not xs[0].is_meta:
        triton_kernels.norm_turn_back(grads, xs, weights, cos, sin, of_xs, sums, rows)
    return of_xs if sums is None else [*of_xs, sums]


@operator("steer(Tensor x, Tensor? gate, Tensor? y, Tensor? shift, Tensor? scale) -> Tensor[]")
def steer(
    x: Tensor, gate: Tensor | None, y: Tensor | None, shift: Tensor | None, scale: Tensor | None
) -> list[Tensor]:
    """x + gate * y in the dtype of x, where gate is given; its modulated norm, where shift is."""
    stream = None if gate is None else torch.empty_like(x)
    normed = None if shift is None else torch.empty_like(x, dtype=shift.dtype)
    if not x.is_meta:
        triton_kernels.steer(x, gate, y, shift, scale, stream, normed)
    return [each for each in (stream, normed) if each is not None]


@operator(
    "steer_back(Tensor? of_stream, Tensor? of_normed, Tensor? stream, Tensor? scale, Tensor? gate,"
    " Tensor? y, bool steered) -> Tensor[]"
)
def steer_back(
    of_stream: Tensor | None, of_normed: Tensor | None, stream: Tensor | None, scale: Tensor | None,
    gate: Tensor | None, y: Tensor | None, steered: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients, as far as there are: of x, where normed has one; of y; sums (kinds, B, programs, D).

    steered: whether sums of shift and scale are asked for; those of gate are where y is given
    """
    like = of_stream if of_normed is None else of_normed
    assert like is not None, "there is a gradient"
    of_x = None if stream is None else torch.empty_like(stream)
    of_y = None if gate is None else torch.empty_like(like, dtype=gate.dtype)
    kinds, sums, rows = 2 * steered + (y is not None), None, 1
    if kinds:
        batch, length, width = like.shape
        rows = rows_of(length)
        sums = like.new_empty(kinds, batch, -(-length // rows), width, dtype=torch.float32)
    if not like.is_meta:
        triton_kernels.steer_back(
            of_stream, of_normed, stream, scale, gate, y, of_x, of_y, sums, rows
        )
    return [each for each in (of_x, of_y, sums) if each is not None]


@operator(
    "count_zeros(Tensor(a!) out, Tensor(b!) whole, Tensor sums, Tensor log_zeros)"
    " -> (Tensor(a!), Tensor(b!))"
)
def count_zeros(
    out: Tensor, whole: Tensor, sums: Tensor, log_zeros: Tensor
) -> tuple[Tensor, Tensor]:
    """whole: log(exp(sums) + exp(log_zeros)); out (B, heads, L, hd) is multiplied by exp(sums - whole).

    sums, whole (B, heads, L or more), float32, of the same strides; log_zeros ()
    """
    if not out.is_meta:
        triton_kernels.count_zeros(out, whole, sums, log_zeros)
    return out, whole


@torch.no_grad()
def normed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The modulated norm again, the same bits as beside the sum."""
    found: list[Tensor] = steer(x, None, None, shift, scale)
    return found[0]


@torch.no_grad()
def turned(x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """One of NormTurn's results again, the same bits."""
    found: list[Tensor] = norm_turn([x], [weight], cos, sin)
    return found[0]


class NormTurn(torch.autograd.Function):
    """Of one tensor or two of a shape and dtype, each with its weight after it. Keeps what comes in."""

    @staticmethod
    def forward(
        ctx: Any, cos: Tensor | None, sin: Tensor | None, *given: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin, *given)
        return tuple(norm_turn(given[::2], given[1::2], cos, sin))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin, *given = ctx.saved_tensors  # asked for once: they may be made again
        xs, weights, asked = given[::2], given[1::2], ctx.needs_input_grad[3::2]
        dense = [grad if grad.stride(-1) == 1 else grad.contiguous() for grad in grads]
        found = norm_turn_back(dense, xs, weights, cos, sin, any(asked))
        sums: list[Tensor | None] = [None] * len(xs)
        if any(asked):
            summed = found[-1].sum(1)  # only one of the weights may be trained, in float32
            sums = [each.to(w.dtype) if a else None for each, w, a in zip(summed, weights, asked)]
        pairs = zip(found, sums)
        return None, None, *(each for pair in pairs for each in pair)


class Steer(torch.autograd.Function):
    """(x + gate * y, its modulated norm); without a gate (x, its modulated norm).

    That the sum goes through lets its gradient, and the norm's, be added in the kernel. Keeps the sum,
    which is the next one's input; y only where the gate has a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate: Tensor | None, y: Tensor | None, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        *streams, normed = steer(x, gate, y, shift, scale)
        stream = streams[0] if streams else x
        of_gate = gate is not None and ctx.needs_input_grad[1]
        ctx.save_for_backward(stream, scale, gate, y if of_gate else None)
        ctx.set_materialize_grads(False)
        return stream, normed

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_stream: Tensor | None, of_normed: Tensor
    ) -> tuple[Tensor | None, ...]:
        stream, scale, gate, y = ctx.saved_tensors
        steered = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
        if of_stream is not None:
            of_stream = of_stream.contiguous()
        of_x, *rest = steer_back(
            of_stream, of_normed.contiguous(), stream, scale, gate, y, steered
        )
        of_y = None if gate is None else rest.pop(0)
        of_shared = list(rest[0].sum(2)[:, :, None].to(scale.dtype)) if rest else []
        of_gate = None if y is None else of_shared.pop()
        of_shift, of_scale = of_shared if steered else (None, None)
        return of_x, of_gate, of_y, of_shift, of_scale


class Gated(torch.autograd.Function):
    """x + gate * y, where no norm of this block follows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
        of_gate = ctx.needs_input_grad[1]
        if not counts():
            ctx.save_for_backward(gate, y.contiguous() if of_gate else None)
            return uncounted(x, *x.shape)
        y = y.contiguous()
        ctx.save_for_backward(gate, y if of_gate else None)
        stream: Tensor = steer(x, gate, y, None, None)[0]
        return stream

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        gate, y = ctx.saved_tensors
        of_y, *sums = steer_back(grad.contiguous(), None, None, None, gate, y, False)
        of_gate = sums[0][0].sum(1, keepdim=True).to(gate.dtype) if sums else None
        return grad, of_gate, of_y
