"""Kernels of mixing in Triton's language. Import it only where Triton is.

Sums are float32 and rounded as they are stored. Each program leaves its own part of a sum over tokens, which the
caller adds up: the same bits in every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LEAST = 16  # of each side of a product
ROWS = 4  # tokens of one program


@triton.jit
def mix_kernel(
    matrix, x, out, rows, by_row, by_column, strength,
    ADD: tl.constexpr, L: tl.constexpr, M: tl.constexpr, W: tl.constexpr,
    L_BLOCK: tl.constexpr, M_BLOCK: tl.constexpr, W_BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS tokens and W_BLOCK places of each of their groups. by_row, by_column: the matrix' strides"""
    row, column = tl.arange(0, L_BLOCK)[:, None], tl.arange(0, M_BLOCK)
    inside = (row < L) & (column[None, :] < M)
    mixer = tl.load(matrix + row * by_row + column[None, :] * by_column, inside, other=0.0)
    place = tl.program_id(1) * W_BLOCK + tl.arange(0, W_BLOCK)[None, :]
    for number in range(ROWS):
        token = (tl.program_id(0) * ROWS + number).to(tl.int64)
        here = (place < W) & (token < rows)
        at = token * (M * W) + column[:, None] * W + place
        groups = tl.load(x + at, here & (column[:, None] < M), other=0.0)
        mixed = tl.dot(mixer, groups)
        to = out + token * (L * W) + row * W + place
        if ADD:
            mixed = mixed * strength + tl.load(to, here & (row < L), other=0.0).to(tl.float32)
        tl.store(to, mixed.to(out.dtype.element_ty), here & (row < L))


@triton.jit
def sums_kernel(
    x, grad, sums, rows,
    L: tl.constexpr, M: tl.constexpr, W: tl.constexpr,
    L_BLOCK: tl.constexpr, M_BLOCK: tl.constexpr, W_BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The sum over ROWS tokens of grad x^T."""
    row, column = tl.arange(0, L_BLOCK)[:, None], tl.arange(0, M_BLOCK)[:, None]
    total = tl.zeros((L_BLOCK, M_BLOCK), tl.float32)
    for number in range(ROWS):
        token = (tl.program_id(0) * ROWS + number).to(tl.int64)
        for start in range(0, W, W_BLOCK):
            place = start + tl.arange(0, W_BLOCK)[None, :]
            here = (place < W) & (token < rows)
            groups = tl.load(x + token * (M * W) + column * W + place, here & (column < M), other=0.0)
            of = tl.load(grad + token * (L * W) + row * W + place, here & (row < L), other=0.0)
            total += tl.dot(of, tl.trans(groups))
    to = tl.program_id(0).to(tl.int64) * (L * M) + row * M + tl.arange(0, M_BLOCK)[None, :]
    tl.store(sums + to, total, (row < L) & (tl.arange(0, M_BLOCK)[None, :] < M))


def blocks_of(l: int, m: int, w: int) -> dict[str, int]:
    blocks = {"L": l, "M": m, "W": min(w, 256)}
    sizes = {f"{k}_BLOCK": max(LEAST, triton.next_power_of_2(n)) for k, n in blocks.items()}
    return {"L": l, "M": m, "W": w, **sizes}


def mix(matrix: Tensor, x: Tensor, out: Tensor, strength: float, *, add: bool) -> None:
    sizes = blocks_of(matrix.shape[0], matrix.shape[1], x.shape[2])
    grid = triton.cdiv(x.shape[0], ROWS), triton.cdiv(x.shape[2], sizes["W_BLOCK"])
    with torch.cuda.device_of(x):
        mix_kernel[grid](
            matrix, x, out, x.shape[0], *matrix.stride(), strength, ADD=add, ROWS=ROWS, **sizes
        )


def sums(x: Tensor, grad: Tensor, sums: Tensor, rows: int) -> None:
    sizes = blocks_of(grad.shape[1], x.shape[1], x.shape[2])
    with torch.cuda.device_of(x):
        sums_kernel[(len(sums),)](x, grad, sums, x.shape[0], ROWS=rows, **sizes)
