"""One attention function, several kernels with one result, chosen once per model."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

logger = logging.getLogger(__name__)

HALVES = (torch.float16, torch.bfloat16)


def choose_backend(name: str) -> str:
    """`name`, or torch with one warning when the package it needs is not installed."""
    assert name in FUNCTIONS, name
    try:
        if name in PACKAGED:
            PACKAGED[name]()
    except ImportError as error:
        logger.warning("%s: torch's own attention is used, with the same result.", error)
        return "torch"
    return name


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, backend: str) -> Tensor:
    """softmax(q k^T / sqrt(hd)) v. q (B, Lq, heads, hd), k v (B, Lk, heads, hd) -> (B, Lq, heads*hd).

    mask: boolean (B, 1, 1, Lk), True where a key may be seen. The others have no CPU kernels, so
    tensors on the CPU, and masked calls, go to torch whatever the backend; so does float32 of flash.
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


def _of_xformers() -> Callable[..., Tensor]:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention


def _of_flash() -> Callable[..., Tensor]:
    from flash_attn import flash_attn_func

    return flash_attn_func


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "torch": torch_attention,
    "xformers": xformers_attention,
    "flash": flash_attention,
}
PACKAGED = {"xformers": _of_xformers, "flash": _of_flash}
"""Those of a package of their own, which may be missing."""
