"""What torch's kernels for CUDA keep of RMSNorm and attention, for a count on the meta device.

There torch would take these operators apart, as it does where a device has no kernel of its own: a
matrix of all attentions, five steps for a norm. Here each is one kernel that keeps what CUDA's keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from library.memory.ledger import Ledger

aten = torch.ops.aten
HALVES = (torch.float16, torch.bfloat16)


@contextmanager
def as_on_cuda(ledger: Ledger) -> Iterator[None]:
    """Within: RMSNorm and attention of meta tensors keep, and launch, what they would on CUDA."""

    def norm(
        x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
    ) -> Tensor:
        assert weight is None or weight.dtype == x.dtype, "CUDA fuses RMSNorm in one dtype only"
        return RMSNorm.apply(x, weight, len(shape), ledger)

    with operators({"rms_norm": norm, "scaled_dot_product_attention": attention}):
        yield


@contextmanager
def operators(replaced: Mapping[str, Callable[..., Tensor]]) -> Iterator[None]:
    """Within: these operators are done so for meta tensors, in a recomputation too."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name, function in replaced.items():
            library.impl(name, function, "AutogradMeta")
        yield


class Kept(Protocol):
    """What RMSNorm uses of an autograd context."""

    ledger: Ledger
    saved_tensors: tuple[Tensor, Tensor | None, Tensor]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class RMSNorm(torch.autograd.Function):
    """One kernel forward; backward one for x, and one for the weight where it is trained.

    Keeps x, the weight and one float32 number a row.
    """

    @staticmethod
    def forward(ctx: Kept, x: Tensor, weight: Tensor | None, dims: int, ledger: Ledger) -> Tensor:
        scale = x.new_empty((*x.shape[:-dims], *[1] * dims), dtype=torch.float32)
        out = torch.empty_like(x)
        ctx.save_for_backward(x, weight, scale)
        ctx.ledger = ledger
        ledger.launch([x] if weight is None else [x, weight], [out, scale])
        return out

    @staticmethod
    def backward(ctx: Kept, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, scale = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad[:2]
        read = [t for t in (gradient, x, weight, scale) if t is not None]
        dx = torch.empty_like(x) if of_x else None
        dweight = torch.empty_like(weight) if of_weight and weight is not None else None
        for result in (dx, dweight):
            if result is not None:
                ctx.ledger.launch(read, [result])
        return dx, dweight, None, None


def attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Flash attention; the memory-efficient one for a mask and for float32, as torch chooses."""
    if attn_mask is None and q.dtype in HALVES:
        flash = aten._scaled_dot_product_flash_attention
        return flash(q, k, v, dropout_p, is_causal, scale=scale)[0]
    bias = attn_mask
    if bias is not None:
        if bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=q.dtype).masked_fill_(~bias, float("-inf"))
        bias = bias.expand(*q.shape[:3], k.shape[2])
    return aten._scaled_dot_product_efficient_attention(
        q, k, v, bias, q.requires_grad, dropout_p, is_causal, scale=scale
    )[0]
