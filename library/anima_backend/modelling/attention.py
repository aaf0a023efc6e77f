"""One attention function, three backends with one result, chosen once per model."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn import functional as F

logger = logging.getLogger(__name__)

BACKENDS = ("torch", "xformers", "flash")
HALVES = (torch.float16, torch.bfloat16)


def choose_backend(name: str) -> str:
    """`name`, or torch with one warning when the package it needs is not installed."""
    assert name in BACKENDS, name
    try:
        if name == "xformers":
            import xformers.ops  # noqa: F401
        elif name == "flash":
            import flash_attn  # noqa: F401
    except ImportError as error:
        logger.warning("%s: torch's own attention is used, with the same result.", error)
        return "torch"
    return name


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, backend: str) -> Tensor:
    """softmax(q k^T / sqrt(hd)) v. q (B, Lq, heads, hd), k v (B, Lk, heads, hd) -> (B, Lq, heads*hd).

    mask: boolean (B, 1, 1, Lk), True where a key may be seen. The others have no CPU kernels, so
    tensors on the CPU, and masked calls, go to torch whatever the backend; so does float32 of flash.
    """
    if backend == "xformers" and q.is_cuda and mask is None:
        from xformers.ops import memory_efficient_attention

        # under autocast the norms leave q and k in float32, and xformers wants one dtype
        return memory_efficient_attention(q.to(v.dtype), k.to(v.dtype), v).flatten(2)
    if backend == "flash" and q.is_cuda and mask is None and v.dtype in HALVES:
        from flash_attn import flash_attn_func

        exact = torch.are_deterministic_algorithms_enabled()
        return flash_attn_func(q.to(v.dtype), k.to(v.dtype), v, deterministic=exact).flatten(2)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
