"""A LoRA's second product with the GELU after it, in Triton's language. Import it only where Triton is."""

import torch
import triton
import triton.language as tl
from torch import Tensor

LEAST = 16  # of each side of a product
TOKENS, COLUMNS = 64, 128  # of one program


@triton.jit
def low_gelu_kernel(
    out, result, hidden, up, rows,
    LOW: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
    R_BLOCK: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out (rows, N) grows by hidden @ up.T, where LOW says so; result is the GELU of it as it is rounded."""
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < N)[None, :]
    at = row.to(tl.int64)[:, None] * N + column[None, :]
    value = tl.load(out + at, inside, other=0.0)
    if LOW:
        inner = tl.arange(0, R_BLOCK)
        low = tl.load(
            hidden + row.to(tl.int64)[:, None] * R + inner[None, :],
            (row < rows)[:, None] & (inner < R)[None, :], other=0.0,
        )  # fmt: skip
        matrix = tl.load(
            up + column[None, :] * R + inner[:, None],
            (column < N)[None, :] & (inner < R)[:, None], other=0.0,
        )  # fmt: skip
        value = (value.to(tl.float32) + tl.dot(low, matrix)).to(out.dtype.element_ty)
        tl.store(out + at, value, inside)
    wide = value.to(tl.float32)
    wide = 0.5 * wide * (1 + tl.erf(wide * 0.7071067811865476))
    tl.store(result + at, wide.to(result.dtype.element_ty), inside)


def low_gelu(out: Tensor, result: Tensor, hidden: Tensor | None, up: Tensor | None) -> None:
    rows, columns = out.shape
    rank = LEAST if up is None else up.shape[1]
    grid = triton.cdiv(rows, TOKENS), triton.cdiv(columns, COLUMNS)
    with torch.cuda.device_of(out):
        low_gelu_kernel[grid](
            out, result, hidden if hidden is not None else out, up if up is not None else out, rows,
            LOW=up is not None, R=rank, N=columns,
            R_BLOCK=max(LEAST, triton.next_power_of_2(rank)), TOKENS=TOKENS, COLUMNS=COLUMNS,
        )  # fmt: skip
