"""A Linear with a LoRA and the GELU after it: the LoRA's second product ends with the GELU, in one kernel.

Apart they write the Linear's output, read and write it for the LoRA, and read it for the GELU: here it is read
once more and written once more. Triton's; the plain form is what other Linears and devices get.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from library.errors import in_one_line
from library.memory.operators import operator
from library.memory.recomputation import remade
from networks.kinds.copies import Copies
from networks.kinds.fused import HALVES, NARROW, wide_product
from networks.kinds.joined import Low, masked_in_place, product_into

try:
    from networks.kinds import activated_kernels
except ImportError:  # no Triton: it is not there for every system
    HAS_TRITON = False
else:
    HAS_TRITON = True

logger = logging.getLogger(__name__)
aten = torch.ops.aten

HIGHEST = 128  # rank: a program holds that many columns of both factors
FURTHEST = {torch.float16: 2e-2, torch.bfloat16: 0.1}  # of numbers about 4, rounded twice


@operator("low_gelu(Tensor(a!) out, Tensor(b!) result, Tensor hidden, Tensor up) -> ()")
def low_gelu(out: Tensor, result: Tensor, hidden: Tensor, up: Tensor) -> None:
    """out (T, n), contiguous, grows by hidden (T, R) @ up.T (R, n); result becomes the GELU of that."""
    if not out.is_meta:
        activated_kernels.low_gelu(out, result, hidden, up.contiguous())


@operator("gelu(Tensor x) -> Tensor")
def gelu(x: Tensor) -> Tensor:
    """The result of low_gelu again, of its out; the same bits."""
    result = torch.empty_like(x)
    if not x.is_meta:
        flat = x.view(-1, x.shape[-1])
        activated_kernels.low_gelu(flat, result.view_as(flat), None, None)
    return result


@cache
def works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel does on a device what a product and a GELU do; the meta device stands for CUDA."""
    if device.type == "meta":
        return True
    if not HAS_TRITON:
        return False
    drawn = torch.Generator("cpu").manual_seed(0)
    shapes = (70, 150), (70, 24), (150, 24)
    out, hidden, up = (
        torch.randn(s, generator=drawn, device="cpu").to(device, dtype) for s in shapes
    )
    exact = torch.addmm(out.double(), hidden.double(), 0.2 * up.double().t())
    result = torch.empty_like(out)
    try:
        low_gelu(out, result, hidden, 0.2 * up)
    except Exception as error:  # noqa: BLE001  of Triton, its compiler, the driver
        reason = in_one_line(error)
        logger.warning("GELU is computed by torch, the kernel for it does not work: %s", reason)
        return False
    pairs = (out, exact), (result, F.gelu(exact))
    is_right = all(torch.allclose(a.double(), b, atol=FURTHEST[dtype]) for a, b in pairs)
    if not is_right:
        logger.warning("GELU is computed by torch, the kernel for it computes wrongly")
    return is_right


def is_for(x: Tensor, weight: object, rank: int) -> bool:
    """Whether the kernel takes the output of such a frozen weight, and the device has it."""
    if not isinstance(weight, Tensor) or weight.requires_grad:
        return False
    takes = x.dtype in HALVES and weight.dtype == x.dtype and rank <= HIGHEST and x.numel() > 0
    return takes and works(x.device, x.dtype)


def activated(x: Tensor, weight: Tensor, low: Low, copies: Copies) -> Tensor:
    """GELU(x @ weight.T + what `low` adds), (..., n)."""
    used = copies.of(low.down, x.dtype), copies.of(low.up, x.dtype)
    product, computed = AddedLow.apply(x, weight, low, used, low.down, low.up)
    result: Tensor = Gelu.apply(product, computed)
    remade(result, gelu, product)
    return result


class AddedLow(torch.autograd.Function):
    """x @ weight.T + strength * up @ (mask * (down @ x)); and its GELU, for `Gelu` to return.

    used: down (R, in) and up (n, R) in x's dtype; after them as they are trained
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, low: Low, used: tuple[Tensor, Tensor], down: Tensor,
        up: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        product = F.linear(x, weight)
        hidden = first_product(x, used[0], low.mask, low.strength)
        result = torch.empty_like(product)
        low_gelu(product.view(-1, len(weight)), result.view(-1, len(weight)), hidden, used[1])
        is_narrow = hidden.shape[1] * NARROW <= x.shape[-1]
        ctx.strength, ctx.dtype = low.strength, down.dtype
        ctx.save_for_backward(x, weight, *used, low.mask, hidden if is_narrow else None)
        ctx.mark_non_differentiable(result)
        ctx.set_materialize_grads(False)
        return product, result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        x, weight, down, up, mask, hidden = ctx.saved_tensors
        if hidden is None:
            hidden = first_product(x, down, mask, ctx.strength)
        rows = grad.view(-1, len(weight))
        change = torch.empty_like(hidden)
        product_into(change, rows, up, ctx.strength)
        if mask is not None:
            masked_in_place(change, mask, x)
        of_up = wide_product(rows.t(), hidden, ctx.dtype)
        of_down = wide_product(change.t(), x.reshape(-1, x.shape[-1]), ctx.dtype)
        shape = x.shape
        del x, hidden  # made again for this: their memory is the gradient's
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (rows @ weight).addmm_(change, down).view(shape)
        return of_x, None, None, None, of_down, of_up


class Gelu(torch.autograd.Function):
    """The GELU of x, which is computed. Its gradient takes the memory of its result's, which is nobody else's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, result: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return result.view_as(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        grad = grad.contiguous()
        found: Tensor = aten.gelu_backward.grad_input(grad, x, grad_input=grad)
        return found, None


def first_product(x: Tensor, down: Tensor, mask: Tensor | None, strength: float) -> Tensor:
    """strength * mask * (down @ x), (T, R)."""
    rows = x.reshape(-1, x.shape[-1])
    hidden = rows.new_empty(len(rows), len(down))
    product_into(hidden, rows, down.t(), strength)
    if mask is not None:
        masked_in_place(hidden, mask, x)
    return hidden
