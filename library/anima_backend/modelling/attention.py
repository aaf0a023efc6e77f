"""One attention function, several kernels with one result, chosen once per model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HALVES = (torch.float16, torch.bfloat16)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, backend: str) -> Tensor:
    """softmax(q k^T / sqrt(hd)) v. q (B, Lq, heads, hd), k v (B, Lk, heads, hd) -> (B, Lq, heads*hd).

    mask: boolean (B, 1, 1, Lk), True where a key may be seen. The others have no CPU kernels, so
    tensors on the CPU, and masked calls, go to torch whatever the backend; so does float32 of flash.
    Torch's own kernels are chosen among by `preferring`, around many calls.
    """
    has_kernel = q.is_cuda and mask is None
    return (FUNCTIONS[backend] if has_kernel else torch_attention)(q, k, v, mask)


def torch_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def xformers_attention(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    # under autocast the norms leave q and k in float32, and xformers wants one dtype
    return _of_xformers()(q.to(v.dtype), k.to(v.dtype), v).flatten(2)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if v.dtype not in HALVES:
        return torch_attention(q, k, v, mask)
    exact = torch.are_deterministic_algorithms_enabled()
    return _of_flash()(q.to(v.dtype), k.to(v.dtype), v, deterministic=exact).flatten(2)


def flash3_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if v.dtype not in HALVES:
        return torch_attention(q, k, v, mask)
    exact = torch.are_deterministic_algorithms_enabled()
    found = _of_flash3()(q.to(v.dtype), k.to(v.dtype), v, deterministic=exact)
    output: Tensor = found if isinstance(found, Tensor) else found[0]  # early ones: the sums as well
    return output.flatten(2)


def _of_xformers() -> Callable[..., Tensor]:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention


def _of_flash() -> Callable[..., Tensor]:
    from flash_attn import flash_attn_func

    return flash_attn_func


def _of_flash3() -> Callable[..., Any]:
    from flash_attn_interface import flash_attn_func

    return flash_attn_func


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "torch": torch_attention,
    "cudnn": torch_attention,
    "efficient": torch_attention,
    "xformers": xformers_attention,
    "flash": flash_attention,
    "flash3": flash3_attention,
}
PACKAGED = {"xformers": _of_xformers, "flash": _of_flash, "flash3": _of_flash3}
"""Those of a package of their own, which may be missing."""
FOR_HALVES = ("cudnn", "flash", "flash3")
ORDERS = {
    "cudnn": [
        SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ],
    "efficient": [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
}  # fmt: skip
"""Torch's kernels in the order in which they are tried: not every one takes every call."""


def preferring(kernel: str, *, alone: bool = False) -> AbstractContextManager[object]:
    """Within: torch tries its kernels in the order of `kernel`, where that is one of torch's own.

    alone: it is the only one, and a call that it does not take is a RuntimeError
    """
    order = ORDERS.get(kernel)
    if order is None:
        return nullcontext()
    return sdpa_kernel(order[:1] if alone else order, set_priority=True)
