"""A small matrix across the groups of each token, in one kernel: Triton's.

As batched products a matrix of 8 x 8 is a product for each token, which keeps a card's units for products from
their work; here the groups are read once, as they lie. The plain forms are Across' own.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from library.errors import in_one_line
from library.memory.operators import operator

try:
    from networks.kinds import mixing_kernels
except ImportError:  # no Triton: it is not there for every system
    HAS_TRITON = False
else:
    HAS_TRITON = True

logger = logging.getLogger(__name__)

PROGRAMS = 1024  # that share the tokens of a sum, where there are so many
HALVES = (torch.float16, torch.bfloat16)
FURTHEST = {torch.float16: 2e-2, torch.bfloat16: 0.1}  # of numbers about 4, rounded once


@operator("mix(Tensor matrix, Tensor x) -> Tensor")
def mix(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix (l, m), x (T, m, w) -> (T, l, w)."""
    out = x.new_empty(x.shape[0], matrix.shape[0], x.shape[2])
    if not x.is_meta:
        mixing_kernels.mix(matrix, x.contiguous(), out, 1.0, add=False)
    return out


@operator("mix_add(Tensor(a!) out, Tensor matrix, Tensor x, float strength) -> Tensor(a!)")
def mix_add(out: Tensor, matrix: Tensor, x: Tensor, strength: float) -> Tensor:
    """out (T, l, w), contiguous, grows by strength * mix(matrix, x)."""
    if not x.is_meta:
        mixing_kernels.mix(matrix, x.contiguous(), out, strength, add=True)
    return out


@operator("mix_sums(Tensor x, Tensor grad) -> Tensor")
def mix_sums(x: Tensor, grad: Tensor) -> Tensor:
    """x (T, m, w), grad (T, l, w) -> float32 sums (programs, l, m) of grad x^T over tokens and width."""
    rows = -(-x.shape[0] // PROGRAMS)
    programs = -(-x.shape[0] // rows)
    sums = x.new_empty(programs, grad.shape[1], x.shape[1], dtype=torch.float32)
    if not x.is_meta:
        mixing_kernels.sums(x.contiguous(), grad.contiguous(), sums, rows)
    return sums


@cache
def works(device: torch.device, dtype: torch.dtype = torch.float16) -> bool:
    """Whether the kernels do on a device what a product does; the meta device stands for CUDA.

    dtype: a half. Triton makes no kernel in bfloat16 for cards before Ampere
    """
    if device.type == "meta":
        return True
    if not HAS_TRITON:
        return False
    drawn = torch.Generator("cpu").manual_seed(0)
    shapes = (8, 4), (5, 4, 24), (5, 8, 24)
    matrix, x, grad = (
        torch.randn(s, generator=drawn, device="cpu").to(device, dtype) for s in shapes
    )
    added = grad.clone()
    try:
        mix_add(added, matrix, x, 0.5)
        found = [mix(matrix, x), added, mix_sums(x, grad).sum(0)]
    except Exception as error:  # noqa: BLE001  of Triton, its compiler, the driver
        reason = in_one_line(error)
        logger.warning("groups are mixed by torch, the kernel for it does not work: %s", reason)
        return False
    m, x, grad = matrix.double(), x.double(), grad.double()
    expected = [m @ x, grad + 0.5 * (m @ x), (grad @ x.transpose(1, 2)).sum(0)]
    is_right = all(torch.allclose(a.double(), b, atol=FURTHEST[dtype]) for a, b in zip(found, expected))
    if not is_right:
        logger.warning("groups are mixed by torch, the kernel for it computes wrongly")
    return is_right


def is_for(matrix: Tensor, x: Tensor) -> bool:
    """Whether the kernels take these: halves of which there are some, and a matrix that a program holds."""
    takes = x.dtype in HALVES and matrix.dtype == x.dtype and max(matrix.shape) <= 64
    return takes and works(x.device, x.dtype)
