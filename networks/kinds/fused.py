"""What a chain of factors adds to a Linear's output, in one autograd Function: little is kept.

Plain autograd keeps, beside the input, what lies between the factors and the factors as they are used. Here
the input and the factors are kept and what lies between is made again, unless it is narrow; products
accumulate in the base's output and in the gradient of its input, and gradients of factors leave in
float32. The plain forms of the kinds are the same mathematics, and its test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from library.memory.gradient_sums import GradientSum, sum_for
from library.memory.quantised import Frozen, Quantised
from library.memory.recomputation import counts, uncounted
from networks.kinds import mixing
from networks.kinds.copies import NO_COPIES, Copies
from networks.kinds.frozen import add_base_gradient, base_gradient, base_product, outputs_of

HALVES = (torch.float16, torch.bfloat16)
NARROW = 16  # what has at most 1 / NARROW of the input's elements is kept


@dataclass(frozen=True)
class Chain:
    """Which way an input goes: through matrices inside each of its groups, and once across them.

    groups:   equal parts of the input that the matrices see one by one
    mix_at:   before which matrix the groups are mixed, or after all of them; None: never
    strength: what the result is multiplied by
    masks:    after each step; None, or 0 and 1 that broadcast to (samples, ..., groups, width)
    fused:    whether groups are mixed by a kernel of our own
    """

    groups: int
    mix_at: int | None
    strength: float
    masks: tuple[Tensor | None, ...]
    fused: bool = False

    def order(self, w1: Tensor | None, w2: Sequence[Tensor]) -> list[Step]:
        steps: list[Step] = [Inside(matrix) for matrix in w2]
        if self.mix_at is not None:
            assert w1 is not None
            steps.insert(self.mix_at, (Mixed if self.fused else Across)(w1))
        return steps


class Inside:
    """A matrix (k, n) applied inside each group: (T, g, n) -> (T, g, k)."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.matrix.t()

    def add_to(self, out: Tensor, x: Tensor, strength: float) -> None:
        flat = out.view(-1, self.matrix.shape[0])
        flat.addmm_(x.reshape(-1, x.shape[-1]), self.matrix.t(), alpha=strength)

    def back(self, grad: Tensor) -> Tensor:
        return grad @ self.matrix

    def add_back_to(self, out: Tensor, grad: Tensor, strength: float) -> None:
        flat = out.view(-1, self.matrix.shape[1])
        flat.addmm_(grad.reshape(-1, grad.shape[-1]), self.matrix, alpha=strength)

    def gradient(self, x: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
        rows = grad.reshape(-1, grad.shape[-1])
        return wide_product(rows.t(), x.reshape(-1, x.shape[-1]), dtype)


class Across:
    """A matrix (l, m) mixing the groups: (T, m, w) -> (T, l, w)."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def wide(self, matrix: Tensor, x: Tensor) -> Tensor:
        return matrix.expand(x.shape[0], -1, -1)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.bmm(self.wide(self.matrix, x), x)

    def add_to(self, out: Tensor, x: Tensor, strength: float) -> None:
        out.view(x.shape[0], self.matrix.shape[0], -1).baddbmm_(
            self.wide(self.matrix, x), x, alpha=strength
        )

    def back(self, grad: Tensor) -> Tensor:
        return torch.bmm(self.wide(self.matrix.t(), grad), grad)

    def add_back_to(self, out: Tensor, grad: Tensor, strength: float) -> None:
        out.view(grad.shape[0], self.matrix.shape[1], -1).baddbmm_(
            self.wide(self.matrix.t(), grad), grad, alpha=strength
        )

    def gradient(self, x: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
        """A product for each token, summed in `dtype`: no copies of whole activations."""
        return torch.bmm(grad, x.transpose(1, 2)).sum(0, dtype=dtype)


class Mixed(Across):
    """The same in one kernel each, where that takes what it is given."""

    def __call__(self, x: Tensor) -> Tensor:
        if not mixing.is_for(self.matrix, x):
            return super().__call__(x)
        mixed: Tensor = mixing.mix(self.matrix, x)
        return mixed

    def add_to(self, out: Tensor, x: Tensor, strength: float) -> None:
        if not mixing.is_for(self.matrix, x):
            return super().add_to(out, x, strength)
        mixing.mix_add(out.view(len(x), len(self.matrix), -1), self.matrix, x, strength)

    def back(self, grad: Tensor) -> Tensor:
        return Mixed(self.matrix.t())(grad)

    def add_back_to(self, out: Tensor, grad: Tensor, strength: float) -> None:
        Mixed(self.matrix.t()).add_to(out, grad, strength)

    def gradient(self, x: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
        if not mixing.is_for(self.matrix, x):
            return super().gradient(x, grad, dtype)
        sums: Tensor = mixing.mix_sums(x, grad)
        return sums.sum(0).to(dtype)


Step = Inside | Across


class AddedChain(torch.autograd.Function):
    """base_product(x, weight, bias) + strength * chain(x). w1, w2: float32; used in x's dtype."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Frozen, bias: Tensor | None, chain: Chain,
        used: Sequence[Tensor], total: GradientSum | None, *factors: Tensor,
    ) -> Tensor:  # fmt: skip
        steps = _steps(chain, used)
        if counts():
            out = base_product(x, weight, bias)
        else:
            out = uncounted(x, *x.shape[:-1], outputs_of(weight))
        hidden, between = x.reshape(-1, chain.groups, x.shape[-1] // chain.groups), []
        for step, mask in zip(steps[:-1], chain.masks):
            hidden = _masked(step(hidden), mask, x)
            between.append(hidden)
        if counts():
            _add_last(out, steps[-1], hidden, chain)
        kept = [b if b.numel() * NARROW <= x.numel() else None for b in between]
        ctx.count, ctx.dtype, ctx.total = len(used), factors[0].dtype, total
        ctx.chain = replace(
            chain, masks=()
        )  # masks are kept where recomputation can leave them out
        ctx.kind = type(weight) if isinstance(weight, Quantised) else None
        stored = weight if isinstance(weight, Quantised) else (weight,)
        ctx.save_for_backward(x, *stored, *used, *kept, *chain.masks)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        chain, count = ctx.chain, ctx.count
        x, weight, *rest = ctx.saved_tensors
        if ctx.kind is not None:
            weight = ctx.kind(weight, rest.pop(0))
        used, kept, masks = rest[:count], rest[count : 2 * count - 1], rest[2 * count - 1 :]
        steps = _steps(chain, used)
        inputs = [x.reshape(-1, chain.groups, x.shape[-1] // chain.groups)]
        for step, mask, saved in zip(steps[:-1], masks, kept):
            inputs.append(_masked(step(inputs[-1]), mask, x) if saved is None else saved)
        groups = inputs[-1].shape[1] if isinstance(steps[-1], Inside) else len(steps[-1].matrix)
        change = grad.reshape(inputs[0].shape[0], groups, -1)
        gradients: list[Tensor] = []
        for number in reversed(range(len(steps))):
            step = steps[number]
            change = _masked(change, masks[number], grad)
            gradient = step.gradient(inputs[number], change, ctx.dtype)
            gradients.insert(0, gradient if chain.strength == 1 else gradient.mul_(chain.strength))
            if number:
                change = step.back(change)
        del x, inputs  # made again for this: their memory is the gradient's
        d_input = _base_gradient(ctx, grad, weight) if ctx.needs_input_grad[0] else None
        if d_input is not None:
            steps[0].add_back_to(d_input, change, chain.strength)
        if d_input is not None and ctx.total is not None:
            ctx.total.leave(d_input)
            d_input = None
        return d_input, None, None, None, None, None, *_as_given(chain, gradients)


def _add_last(out: Tensor, step: Step, hidden: Tensor, chain: Chain) -> None:
    """Add what the last step makes of hidden (T, groups, width)."""
    mask = chain.masks[-1]
    if mask is None:
        step.add_to(out, hidden, chain.strength)
        return
    added = _masked(step(hidden), mask, out)
    out.view(added.shape[0], -1).add_(added.flatten(1), alpha=chain.strength)


def _base_gradient(ctx: Any, grad: Tensor, weight: Frozen) -> Tensor:
    """That of the input, through the frozen weight; added to what other uses of the input have left."""
    so_far: Tensor | None = None if ctx.total is None else ctx.total.so_far()
    if so_far is None:
        return base_gradient(grad, weight)
    add_base_gradient(so_far, grad, weight)
    return so_far


def wide_product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in a wider dtype than theirs: straight from the sums where the device has such a product."""
    if dtype == torch.float32 and a.dtype in HALVES and has_wide_product(a.device, a.dtype):
        return torch.mm(a, b, out_dtype=dtype)
    return (a @ b).to(dtype)


@cache
def has_wide_product(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of halves come in float32: tried with sums that the half cannot hold.

    The meta device stands for CUDA, which has them.
    """
    if device.type == "meta":
        return True
    ones = torch.ones(16, 4097, dtype=dtype, device=device)
    try:
        found = torch.mm(ones, ones.t(), out_dtype=torch.float32)
    except (NotImplementedError, RuntimeError, TypeError):  # of a device, a card, an older torch
        return False
    return bool((found == 4097).all())


def _steps(chain: Chain, used: Sequence[Tensor]) -> list[Step]:
    """used: w1, if the chain mixes, then w2's matrices."""
    mixes = chain.mix_at is not None
    return chain.order(used[0] if mixes else None, used[mixes:])


def _as_given(chain: Chain, gradients: list[Tensor]) -> list[Tensor]:
    """Gradients in the order of the steps -> in that of the factors, w1 first."""
    if chain.mix_at is None:
        return gradients
    rest = [*gradients[: chain.mix_at], *gradients[chain.mix_at + 1 :]]
    return [gradients[chain.mix_at], *rest]


def _masked(hidden: Tensor, mask: Tensor | None, like: Tensor) -> Tensor:
    """hidden (T, groups, width) times a mask that has the samples' own axes before the groups."""
    if mask is None:
        return hidden
    samples = hidden.view(*like.shape[:-1], *hidden.shape[1:])
    return (samples * mask).view_as(hidden)


def can_fuse(x: Tensor, weight: Frozen) -> bool:
    """Whether the Function gives what the plain form does: no autocast, one dtype, no compiler."""
    if torch.compiler.is_compiling():
        return False
    if not isinstance(weight, Quantised) and x.dtype != weight.dtype:
        return False
    kind = x.device.type
    return not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind))


def add_chain(
    x: Tensor, weight: Frozen, bias: Tensor | None, chain: Chain, factors: Sequence[Tensor],
    copies: Copies = NO_COPIES,
) -> Tensor:  # fmt: skip
    """The Linear's output (..., out) with what the chain adds. factors: w1, if it mixes, then w2's."""
    used = [copies.of(factor, x.dtype) for factor in factors]
    return AddedChain.apply(x, weight, bias, chain, used, sum_for(x), *factors)
