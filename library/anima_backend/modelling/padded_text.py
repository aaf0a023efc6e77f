"""Attention to a text whose rows of zeros are not there: they are counted where they would have acted.

A row of zeros has a key and a value of zeros, whatever is adapted, since its projections have no bias. n such
keys add n to the sum of a softmax and nothing to what it weighs, so a kernel computes the real rows alone,
and its result and the logarithm of its sums are corrected. Its backward pass reads nothing but these two.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from library.anima_backend.modelling import one_kernel
from library.anima_backend.modelling.attention import HALVES

aten = torch.ops.aten
STEP = 64  # of the number of rows: kernels take as many keys at a time, and texts have few sizes


def row_count(rows: int, least: int) -> int:
    """A multiple of STEP that has room for so many rows, or `least` where that is fewer."""
    return min(math.ceil(rows / STEP) * STEP, least)


def shortened(rows: Tensor, least: int) -> Tensor:
    """A text (B, T, X) with zeros up to a multiple of STEP rows, or up to `least` where that is fewer."""
    count = row_count(rows.shape[1], least)
    return F.pad(rows, (0, 0, 0, max(0, count - rows.shape[1])))


def log_left_out(rows: Tensor, least: int, *, or_none: bool = True) -> Tensor | None:
    """log(n) of the n rows that a text has less than `least`.

    Where it has as many: None, or log(0) if `or_none` is not set, with which the result is the same.
    """
    count = least - rows.shape[1]
    if count <= 0 and or_none:
        return None
    return torch.full((), math.log(count) if count > 0 else -math.inf, device=rows.device)


def attention_beside_zeros(
    q: Tensor, k: Tensor, v: Tensor, log_zeros: Tensor, *, fused: bool = False
) -> Tensor:
    """Attention with n keys and values of zeros beside k and v; (B, Lq, heads*hd).

    q (B, Lq, heads, hd), k v (B, Lk, heads, hd); log_zeros: (), log(n), float32
    fused: the zeros are counted by one kernel, not for a compiler
    """
    fused = fused and not torch.compiler.is_compiling()
    return BesideZeros.apply(q.to(v.dtype), k.to(v.dtype), v, log_zeros, fused)


def count_zeros(out: Tensor, sums: Tensor, log_zeros: Tensor, *, fused: bool) -> Tensor:
    """The logarithm of the sums with n more in them; out becomes as small in place.

    out (B, heads, Lq, hd), sums (B, heads, Lq or more), log_zeros (): log(n)
    """
    if fused:
        _, found = one_kernel.count_zeros(out, torch.empty_like(sums), sums, log_zeros)
        return found
    whole = torch.logaddexp(sums, log_zeros)
    share = (sums - whole).exp_()  # of the softmax that real keys have
    out.mul_(share[:, :, : out.shape[2], None])
    return whole


class BesideZeros(torch.autograd.Function):
    """Keeps q, k, v, the result and the logarithm of the sums."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_zeros: Tensor, fused: bool
    ) -> Tensor:
        out, sums, *state = kernel_of(q).forward(*(t.transpose(1, 2) for t in (q, k, v)))
        whole = count_zeros(out, sums, log_zeros, fused=fused)
        result = out.transpose(1, 2).flatten(2)
        ctx.save_for_backward(q, k, v, result, whole, *state)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, result, whole, *state = ctx.saved_tensors
        sides = [t.transpose(1, 2) for t in (q, k, v)]
        grad, result = (t.unflatten(-1, q.shape[2:]).transpose(1, 2) for t in (grad, result))
        found = kernel_of(q).backward(grad, *sides, result, whole, *state)
        return *(t.transpose(1, 2) for t in found[:3]), None, None


class OnCPU:
    """All take q (B, heads, Lq, hd), k and v (B, heads, Lk, hd), and return the result of q's shape and
    log-sums (B, heads, Lq or more), float32; then, of these five, gradients of the three.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        return found

    @staticmethod
    def backward(grad: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, *kept, 0.0, False)


class Flash:
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        out, sums, _, _, _, _, seed, offset, _ = aten._scaled_dot_product_flash_attention(q, k, v)
        return out, sums, seed, offset

    @staticmethod
    def backward(grad: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        q, k, v, out, sums, *state = kept
        lengths = None, None, q.shape[2], k.shape[2]
        return aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, sums, *lengths, 0.0, False, *state
        )


class Efficient:
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
        return found

    @staticmethod
    def backward(grad: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        q, k, v, out, sums, *state = kept
        wanted = [True, True, True, False]
        return aten._scaled_dot_product_efficient_attention_backward(
            grad, q, k, v, None, out, sums, *state, 0.0, wanted
        )


def kernel_of(q: Tensor) -> type[OnCPU | Flash | Efficient]:
    """Flash where it is built and the card has it, of torch's; on the meta device as on such a card."""
    if q.device.type == "cpu":
        return OnCPU
    takes = q.dtype in HALVES and q.shape[-1] % 8 == 0
    return Flash if takes and (q.is_meta or card_has_flash(q.device)) else Efficient


def card_has_flash(device: torch.device) -> bool:
    is_built = torch.backends.cuda.is_flash_attention_available()
    return is_built and torch.cuda.get_device_capability(device) >= (8, 0)
