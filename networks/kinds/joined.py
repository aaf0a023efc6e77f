"""Low-rank additions to several Linears with one input, in one autograd Function: few products each way.

The frozen matrices lie side by side, and so do the factors as they are used. What is kept is what a Function
for each would keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from library.memory.gradient_sums import GradientSum, sum_for
from library.memory.quantised import Frozen
from library.memory.side_by_side import (
    as_it_computes,
    input_gradient,
    left_or_given,
    stored_parts,
)
from networks.kinds.copies import Copies
from networks.kinds.fused import NARROW, wide_product


@dataclass(frozen=True)
class Low:
    """strength * up @ (mask * (down @ x)), added to what one of the frozen matrices makes of x.

    down, up: (R, in) and (out, R), as they are trained
    mask:     None, or 0 and 1 that broadcast to (samples, ..., 1, R)
    """

    down: Tensor
    up: Tensor
    strength: float
    mask: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """Which columns are whose.

    outputs: of each frozen matrix
    ranks:   of what is added to each; 0: nothing is
    """

    outputs: tuple[int, ...]
    ranks: tuple[int, ...]
    strengths: tuple[float, ...]

    @property
    def is_alike(self) -> bool:
        """Whether all additions have one shape: their last products are one."""
        return len(set(zip(self.outputs, self.ranks))) == 1

    @property
    def shared_strength(self) -> float | None:
        """That of all additions; None where they differ."""
        found = {strength for strength, rank in zip(self.strengths, self.ranks) if rank}
        return found.pop() if len(found) == 1 else None

    def inner(self, hidden: Tensor) -> Sequence[Tensor]:
        """Of what lies between the factors, (T, all ranks), each one's columns."""
        return hidden.split(self.ranks, -1)


class JoinedChains(torch.autograd.Function):
    """x @ weight.T in the plan's columns, with what is added to each.

    parts:   what is stored of the weight
    downs:   (all ranks, in), in x's dtype as ups: (all outputs, R) in one where the plan is alike, else each
    factors: down and up of each addition in turn
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, parts: Sequence[Tensor], plan: Plan, total: GradientSum | None,
        downs: Tensor, ups: Sequence[Tensor], masks: Sequence[Tensor | None], *factors: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        out = F.linear(x, as_it_computes(parts, x.dtype))
        hidden = first_products(x, downs, plan, masks)
        add_last_products(out.view(-1, out.shape[-1]), hidden, ups, plan)
        fits = hidden.shape[1] * NARROW <= x.shape[-1] * len(factors) // 2
        ctx.plan, ctx.total, ctx.dtype = plan, total, factors[0].dtype
        ctx.counts = len(parts), len(ups)
        ctx.save_for_backward(x, downs, hidden if fits else None, *parts, *ups, *masks)
        return out.split(plan.outputs, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan, total, (stored, last) = ctx.plan, ctx.total, ctx.counts
        x, downs, hidden, *others = ctx.saved_tensors
        parts, ups, masks = others[:stored], others[stored : stored + last], others[stored + last :]
        if hidden is None:
            hidden = first_products(x, downs, plan, masks)
        changes, of_ups = hidden.new_empty(hidden.shape), []
        inner = zip(plan.inner(hidden), plan.inner(changes), plan.strengths)
        for grad, up, (low, change, strength) in zip(grads, parts_of(ups, plan), inner):
            if up is not None:
                rows = grad.reshape(-1, grad.shape[-1])
                product_into(change, rows, up, strength)
                of_ups.append(wide_product(rows.t(), low, ctx.dtype))
        mask_in_place(changes, plan, masks, x)
        of_downs = wide_product(changes.t(), x.reshape(-1, x.shape[-1]), ctx.dtype)
        pairs = zip(of_downs.split([rank for rank in plan.ranks if rank]), of_ups)
        of_factors = [each for pair in pairs for each in pair]
        del x, hidden  # made again for this: their memory is the gradient's
        rest = None, None, None, None, None, None, *of_factors
        if not ctx.needs_input_grad[0]:
            return None, *rest
        d_input = input_gradient(grads, as_it_computes(parts, grads[0].dtype), total)
        d_input.view(-1, downs.shape[1]).addmm_(changes, downs)
        return left_or_given(d_input, total), *rest


def first_products(x: Tensor, downs: Tensor, plan: Plan, masks: Sequence[Tensor | None]) -> Tensor:
    """strength * mask * (down @ x) of each addition, (T, all ranks)."""
    rows, strength = x.reshape(-1, x.shape[-1]), plan.shared_strength
    hidden = rows.new_empty(len(rows), len(downs))
    product_into(hidden, rows, downs.t(), 1.0 if strength is None else strength)
    if strength is None:
        for part, own in zip(plan.inner(hidden), plan.strengths):
            part.mul_(own)
    mask_in_place(hidden, plan, masks, x)
    return hidden


def add_last_products(out: Tensor, hidden: Tensor, ups: Sequence[Tensor], plan: Plan) -> None:
    """Add up @ hidden of each to its columns of out (T, all outputs)."""
    if plan.is_alike:
        by_part = -1, len(plan.outputs), plan.outputs[0]
        inner = hidden.unflatten(1, (len(plan.ranks), -1)).transpose(0, 1)  # (parts, T, R)
        up = ups[0].view(len(plan.outputs), *by_part[2:], -1).transpose(1, 2)
        out.view(by_part).transpose(0, 1).baddbmm_(inner, up)
        return
    parts = zip(out.split(plan.outputs, -1), plan.inner(hidden), parts_of(ups, plan))
    for part, low, matrix in parts:
        if matrix is not None:
            part.addmm_(low, matrix.t())


def parts_of(ups: Sequence[Tensor], plan: Plan) -> list[Tensor | None]:
    """up (out, R) for each frozen matrix; None where nothing is added."""
    if plan.is_alike:
        return list(ups[0].split(plan.outputs))
    own = iter(ups)
    return [next(own) if rank else None for rank in plan.ranks]


def mask_in_place(hidden: Tensor, plan: Plan, masks: Sequence[Tensor | None], x: Tensor) -> None:
    for part, mask in zip(plan.inner(hidden), masks):
        if mask is not None:
            masked_in_place(part, mask, x)


def masked_in_place(hidden: Tensor, mask: Tensor, x: Tensor) -> None:
    """hidden (T, R) times a mask that broadcasts to (samples, ..., 1, R), x being (samples, ..., in)."""
    hidden.unflatten(0, x.shape[:-1]).unsqueeze(-2).mul_(mask)


def product_into(out: Tensor, a: Tensor, b: Tensor, strength: float) -> None:
    """out = strength * (a @ b), in one product; out may be columns."""
    torch.addmm(out, a, b, beta=0, alpha=strength, out=out)


def add_low(
    x: Tensor, weight: Frozen, outputs: Sequence[int], added: Sequence[Low | None], copies: Copies
) -> tuple[Tensor, ...]:
    """x @ weight.T in parts of so many outputs, with what is added to each; None: nothing."""
    present = [each for each in added if each is not None]
    plan = Plan(
        tuple(outputs),
        tuple(0 if each is None else len(each.down) for each in added),
        tuple(0.0 if each is None else each.strength for each in added),
    )
    downs = copies.together([each.down for each in present], x.dtype)
    ups = [each.up for each in present]
    used = (
        [copies.together(ups, x.dtype)] if plan.is_alike else [copies.of(up, x.dtype) for up in ups]
    )
    masks = [None if each is None else each.mask for each in added]
    factors = [factor for each in present for factor in (each.down, each.up)]
    found: tuple[Tensor, ...] = JoinedChains.apply(
        x, stored_parts(weight), plan, sum_for(x), downs, used, masks, *factors
    )
    return found
