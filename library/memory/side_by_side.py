"""What several matrices make of one input, in one product: their rows lie one after another in memory.

Parameters stay what they were, with their names and shapes; their data become views of one tensor. Whoever
moves or replaces one of them parts it from the others, and from then on each is multiplied alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from library.memory.gradient_sums import GradientSum, sum_for
from library.memory.kept import storage_key
from library.memory.quantised import Frozen, Quantised, frozen_weight
from library.memory.swapping import ALIGNMENT


@runtime_checkable
class SharesInput(Protocol):
    """A module with Linears that see one input."""

    def of_one_input(self) -> tuple[nn.Linear, ...]: ...


@runtime_checkable
class JoinsProducts(Protocol):
    """A Linear that computes more than its frozen product, and can do so together with others."""

    def joined_products(self, x: Tensor, linears: Sequence[nn.Linear]) -> tuple[Tensor, ...] | None:
        """What each of these Linears, of which it is one, makes of x; None: each has to say it alone."""
        ...


def products(
    x: Tensor, linears: Sequence[nn.Linear], *, together: bool = True
) -> tuple[Tensor, ...]:
    """What each Linear makes of x, (..., outputs): columns of one tensor where one product can be made of them.

    together: whether that is wanted
    """
    found = None
    if together and not torch.compiler.is_compiling():
        joining = joining_of(linears)
        if joining is None:
            found = frozen_products(x, linears)
        else:
            found = joining.joined_products(x, linears)
    return tuple(each(x) for each in linears) if found is None else found


def joining_of(linears: Sequence[nn.Linear]) -> JoinsProducts | None:
    """The first that computes more than its frozen product."""
    return next((each for each in linears if isinstance(each, JoinsProducts)), None)


def frozen_products(x: Tensor, linears: Sequence[nn.Linear]) -> tuple[Tensor, ...] | None:
    """The same of frozen matrices alone, without what else their Linears compute."""
    weight = matrix_of(x, linears)
    if weight is None:
        return None
    sizes = [each.out_features for each in linears]
    found: tuple[Tensor, ...] = FrozenProducts.apply(x, stored_parts(weight), sizes, sum_for(x))
    return found


def matrix_of(x: Tensor, linears: Sequence[nn.Linear]) -> Frozen | None:
    """The frozen matrices as one that can be applied to x, (all outputs, in); None where they are not one."""
    if any(each.weight.requires_grad or each.bias is not None for each in linears):
        return None
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return None
    weights = [frozen_weight(each) for each in linears]
    codes = [each.codes for each in weights if type(each) is Quantised]
    scales = [each.scale for each in weights if type(each) is Quantised]
    if len(codes) == len(weights):
        whole, scale = joined(codes), joined(scales)
        return None if whole is None or scale is None else Quantised(whole, scale)
    plain = [each for each in weights if isinstance(each, Tensor) and each.dtype == x.dtype]
    return joined(plain) if len(plain) == len(weights) else None


def stored_parts(weight: Frozen) -> tuple[Tensor, ...]:
    """What is kept of a matrix: itself, or its codes and scales."""
    return tuple(weight) if isinstance(weight, Quantised) else (weight,)


def as_it_computes(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The matrix of `stored_parts`."""
    return parts[0] if len(parts) == 1 else Quantised(*parts).dense(dtype)


def lay_all(model: nn.Module, away: Collection[int]) -> None:
    """Let matrices that see one input lie side by side, in all of a model.

    away: ids of weights that wait in RAM. They lie so where they compute, and their scales never wait
    """
    for module in model.modules():
        if isinstance(module, SharesInput):
            linears = module.of_one_input()
            if not any(id(each.weight) in away for each in linears):
                lay(linears)
            lay_scales(linears)


def lay(linears: Sequence[nn.Linear]) -> None:
    """Let the matrices of Linears lie side by side, unless they train.

    Those alone that would lie so in the buffers of Swap too: products are the same bits then.
    Memory: that of all of them once more, for the moment.
    """
    weights = [each.get_parameter("weight") for each in linears]
    can_join = all(type(frozen_weight(each)) in (nn.Parameter, Quantised) for each in linears)
    if can_join and not any(w.requires_grad or w.nbytes % ALIGNMENT for w in weights):
        lay_parameters(weights)


def lay_scales(linears: Sequence[nn.Linear]) -> None:
    """The same of the scales of weights in 8 bits, which have one for each row."""
    weights = [frozen_weight(each) for each in linears]
    if all(type(each) is Quantised for each in weights):
        lay_parameters([each.get_parameter("weight_scale") for each in linears])


def lay_parameters(parameters: Sequence[nn.Parameter]) -> None:
    first = parameters[0]
    alike = {(each.dtype, each.device, each.shape[1:]) for each in parameters}
    if len(alike) == 1 and joined(parameters) is None:
        for place, parameter in zip(places_for(parameters, first.dtype), parameters):
            parameter.data = place.copy_(parameter.data)


def places_for(matrices: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Memory for such matrices, all with as many columns, side by side."""
    rows = [len(each) for each in matrices]
    whole = torch.empty(sum(rows), matrices[0].shape[1], dtype=dtype, device=matrices[0].device)
    return whole.split(rows)


def joined(matrices: Sequence[Tensor]) -> Tensor | None:
    """Matrices (n, columns) as one, (sum of n, columns), where they lie one after another."""
    first = matrices[0].detach()
    key, start, columns = storage_key(first), first.storage_offset(), first.shape[1]
    for each in matrices:
        if each.dtype != first.dtype or each.shape[1] != columns or not each.is_contiguous():
            return None
        if storage_key(each) != key or each.storage_offset() != start:
            return None
        start += each.numel()
    return first.as_strided((sum(map(len, matrices)), columns), (columns, 1))


def beside(left: Tensor, right: Tensor) -> Tensor | None:
    """Columns (T, m) and (T, n) as one, (T, m + n), where they lie beside each other."""
    width, by_row = left.shape[1] + right.shape[1], left.stride(0)
    if left.stride() != right.stride() or left.stride(1) != 1 or by_row < width:
        return None
    if left.dtype != right.dtype or storage_key(left) != storage_key(right):
        return None
    if right.storage_offset() != left.storage_offset() + left.shape[1]:
        return None
    return left.as_strided((len(left), width), (by_row, 1))


def input_gradient(grads: Sequence[Tensor], weight: Tensor, total: GradientSum | None) -> Tensor:
    """The gradient of what a joined matrix is applied to; added to what other uses of it have left.

    grads: of its parts' outputs, (..., n) each; those that lie beside each other are one product
    """
    so_far = None if total is None else total.so_far()
    found = None if so_far is None else so_far.view(-1, weight.shape[1])
    start = 0
    for grad in gathered(grads):
        rows = weight[start : start + grad.shape[1]]
        found = grad @ rows if found is None else found.addmm_(grad, rows)
        start += len(rows)
    assert found is not None, "there are parts"
    return found.view(*grads[0].shape[:-1], -1)


def gathered(grads: Sequence[Tensor]) -> list[Tensor]:
    """(..., n) each -> (T, n), in their order, where they can without a copy with the one before."""
    found: list[Tensor] = []
    for grad in grads:
        flat = grad.reshape(-1, grad.shape[-1])
        both = beside(found[-1], flat) if found else None
        if both is None:
            found.append(flat)
        else:
            found[-1] = both
    return found


class FrozenProducts(torch.autograd.Function):
    """x @ weight.T in columns of these sizes. parts: what is stored of the weight"""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, parts: tuple[Tensor, ...], sizes: list[int], total: GradientSum | None
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*parts)
        ctx.total = total
        return F.linear(x, as_it_computes(parts, x.dtype)).split(sizes, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        weight = as_it_computes(ctx.saved_tensors, grads[0].dtype)
        return left_or_given(input_gradient(grads, weight, ctx.total), ctx.total), None, None, None


def left_or_given(gradient: Tensor, total: GradientSum | None) -> Tensor | None:
    """What a Function returns of a gradient: nothing where it is left in a sum."""
    if total is None:
        return gradient
    total.leave(gradient)
    return None
