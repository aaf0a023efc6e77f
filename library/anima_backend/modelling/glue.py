"""What lies between the matrix products of a block: norms, rotations, modulation, gates, residual sums.

Each has a plain form of torch's kernels and, where `fused` is said, one kernel each way; norms with rotations
go through a CPU's cache in pieces. A compiler gets the plain form, of which it makes its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from library.anima_backend.modelling import in_pieces, one_kernel
from library.anima_backend.modelling.params import EPS
from library.anima_backend.modelling.rope import rotate
from library.memory.recomputation import cheap, counts, remade, uncounted

aten = torch.ops.aten
Table = tuple[Tensor, ...]
"""cos and sin (L, hd/2), float32"""
Ropes = tuple[Table | None, Table | None]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without weights, then x * scale + shift; in the dtype of shift.

    Of one sample they are the norm's own weight and bias: one kernel, rounded once.
    """
    width, in_one = x.shape[-1:], x.dtype == shift.dtype and not torch.compiler.is_compiling()
    if in_one and len(shift) == 1:
        return F.layer_norm(x, width, scale.flatten(), shift.flatten(), EPS).to(shift.dtype)
    return torch.addcmul(shift, F.layer_norm(x, width, eps=EPS).to(shift.dtype), scale)


class Gated(torch.autograd.Function):
    """x + gate * y; x, y (B, L, D), gate (B, 1, D). Autograd's own scales each gate by 1 once more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(gate, y if gate.requires_grad else None)
        return torch.addcmul(x, gate, y) if counts() else uncounted(x, *x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        gate, y = ctx.saved_tensors
        of_gate = None if y is None else (grad * y).sum(1, keepdim=True)
        return grad, of_gate, grad * gate


class Gelu(torch.autograd.Function):
    """Exact GELU. Its gradient takes the memory of its result's, which comes of a product and is nobody else's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if grad.dtype != x.dtype or grad.stride() != x.stride():
            return aten.gelu_backward(grad, x)
        return aten.gelu_backward.grad_input(grad, x, grad_input=grad)


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x) if torch.compiler.is_compiling() else Gelu.apply(x)


def gated(x: Tensor, gate: Tensor, y: Tensor, *, fused: bool = False) -> Tensor:
    """x + gate * y in the dtype of x, the residual stream's."""
    if fused and takes_one_kernel(x, gate, y):
        return one_kernel.Gated.apply(x, gate.contiguous(), y)
    gate, y = gate.to(x), y.to(x)
    if torch.compiler.is_compiling():
        return torch.addcmul(x, gate, y)
    return Gated.apply(x, gate, y)


class Open(NamedTuple):
    """x + gate * y, a residual sum that is left to the kernel of the norm after it."""

    x: Tensor
    gate: Tensor
    y: Tensor


def entered(
    x: Tensor | Open, shift: Tensor, scale: Tensor, *, fused: bool = False
) -> tuple[Tensor, Tensor]:
    """x itself and its modulated norm: what a sub-layer adds to, and what it sees."""
    if isinstance(x, Open):
        return passed(x, shift, scale, fused=fused)
    if not (fused and takes_one_kernel(x, shift, scale)):
        return x, cheap(modulate, x, shift, scale)
    shift, scale = shift.contiguous(), scale.contiguous()
    stream, normed = one_kernel.Steer.apply(x, None, None, shift, scale)
    remade(normed, one_kernel.normed, stream, shift, scale)
    return stream, normed


def passed(
    total: Open, shift: Tensor, scale: Tensor, *, fused: bool = False
) -> tuple[Tensor, Tensor]:
    """A sum with a sub-layer's result, and its modulated norm, which the next sub-layer sees."""
    x, gate, y = total
    if not (fused and takes_one_kernel(x, gate, y, shift, scale)):
        x = gated(x, gate, y)
        return x, cheap(modulate, x, shift, scale)
    gate, shift, scale = (each.contiguous() for each in (gate, shift, scale))
    x, normed = one_kernel.Steer.apply(x, gate, y.contiguous(), shift, scale)
    remade(normed, one_kernel.normed, x, shift, scale)
    return x, normed


def heads(
    q: Tensor, k: Tensor, norms: tuple[nn.Module, nn.Module], ropes: Ropes, *, fused: bool = False
) -> tuple[Tensor, Tensor]:
    """q, k (B, L, heads, hd) normalised per head and, each where its rope is given, turned.

    Their tokens may lie apart, as columns of a larger tensor do.
    """
    fused = fused and takes_one_kernel(q, dense_from=2) and takes_one_kernel(k, dense_from=2)
    weights = [weight_in_use(norm) if fused else None for norm in norms]
    if any(weight is None for weight in weights):
        return one_side(q, norms[0], ropes[0]), one_side(k, norms[1], ropes[1])
    q_rope, k_rope = (rope or (None, None) for rope in ropes)
    if q.shape == k.shape and q.dtype == k.dtype and ropes[0] is ropes[1]:
        outs = one_kernel.NormTurn.apply(*q_rope, q, weights[0], k, weights[1])
    else:
        (of_q,) = one_kernel.NormTurn.apply(*q_rope, q, weights[0])
        outs = of_q, *one_kernel.NormTurn.apply(*k_rope, k, weights[1])
    remade(outs[0], one_kernel.turned, q, weights[0], *q_rope)
    remade(outs[1], one_kernel.turned, k, weights[1], *k_rope)
    return outs


def one_side(x: Tensor, norm: nn.Module, rope: Table | None) -> Tensor:
    """q or k of `heads` without a kernel of our own: on a CPU in pieces."""
    is_plain = is_on_cpu(x) and is_called_as_it_is(x)
    weight = weight_in_use(norm) if is_plain else None
    if weight is None:
        return cheap(head, x, norm, rope)
    given = (x, weight, *(rope or (None, None)))
    out: Tensor = in_pieces.NormTurn.apply(*given)
    remade(out, in_pieces.norm_turn, *given)
    return out


def is_on_cpu(x: Tensor) -> bool:
    """Whether a CPU's own form is for x."""
    return x.device.type == "cpu"


def keeps_projected(x: Tensor, norms: tuple[nn.Module, nn.Module], *, fused: bool) -> bool:
    """Whether q and k, made of x, are kept for the backward pass of `heads`; else what is made of them is."""
    is_in_one = fused or is_on_cpu(x)
    return is_in_one or all(type(norm) is nn.RMSNorm for norm in norms)


def head(projected: Tensor, norm: nn.Module, rope: Table | None) -> Tensor:
    normed = norm(projected)
    return normed if rope is None else rotate(normed, rope)


def weight_in_use(norm: nn.Module) -> Tensor | None:
    """What an RMSNorm, or what took its place, multiplies by; None of what does not tell."""
    if type(norm) is nn.RMSNorm:
        return norm.weight
    tell = getattr(norm, "weight_in_use", None)
    weight: Tensor | None = tell() if callable(tell) else None
    return weight


def takes_one_kernel(x: Tensor, *others: Tensor, dense_from: int = 0) -> bool:
    """Whether one kernel gives what the plain form does: of these tensors, and not for a compiler.

    others:     of one dtype, each of as many samples as x
    dense_from: the first of x's axes behind which nothing may lie apart
    """
    alike = all(len(each) == len(x) and each.dtype == others[-1].dtype for each in others)
    return is_called_as_it_is(x) and alike and is_dense(x, dense_from)


def is_called_as_it_is(x: Tensor) -> bool:
    """Neither for a compiler nor under autocast."""
    if torch.compiler.is_compiling():
        return False
    kind = x.device.type
    return not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind))


def is_dense(x: Tensor, axis: int) -> bool:
    """Whether what has one place in the axes before this one lies in one piece, in order."""
    expected = 1
    for size, stride in zip(reversed(x.shape[axis:]), reversed(x.stride()[axis:])):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
