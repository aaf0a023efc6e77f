"""DoRA, trained: a magnitude for each output, or for each input, beside the factors of another kind.

Outputs: weight -> (weight + delta) * magnitude / |weight|, row by row: ComfyUI's formula, whose norm is that
of the frozen weight, so that training needs no norms and no dense weight. DoRA as PEFT and LyCORIS train it
divides by the norm of the sum instead, which ComfyUI does not do. Inputs: column by column, and there ComfyUI
divides by the norm of the sum, as LyCORIS does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from library.memory.quantised import Frozen, Quantised, frozen_weight
from library.memory.recomputation import needed
from networks.kinds.adapter import Adapter, at_use
from networks.kinds.copies import Copies
from networks.kinds.frozen import base_gradient, base_product
from networks.kinds.linear import AdditiveAdapter, LinearAdapter
from networks.kinds.lora import LoRA
from networks.kinds.noise_ranks import Noise
from networks.kinds.stored import DORA_SCALE, Factors

SMALLEST_FACTOR = 1e-3
"""A row that is all but gone learns as if this much of it were left."""


EPS = torch.finfo(torch.float32).eps
"""Beside a norm, as ComfyUI has it."""


class Decomposed(LinearAdapter):
    """What is trained is each magnitude's relative change, zero at first.

    So weight decay pulls towards the base, and small changes survive the narrow dtypes of a step.

    inner: what adds to the weight, always at strength 1
    axis:  that of the weight along which norms are taken: 1 for outputs, 0 for inputs
    norms: (out, 1) or (1, in) float32 on the CPU: of the base as it is stored
    """

    not_universal = "the magnitudes of dora_wd"
    axis = 1

    def __init__(self, inner: AdditiveAdapter, base: nn.Linear) -> None:
        super().__init__(inner.rank, inner.alpha, inner.dropout)
        inner.dropout = replace(inner.dropout, module=0.0)  # drawn here, for both at once
        self.inner = inner
        self.zero_factor, self.no_norm_limit = inner.zero_factor, inner.no_norm_limit
        self.norms = norms_of(frozen_weight(base), self.axis)
        self.dora_gain = nn.Parameter(torch.zeros(self.norms.numel(), dtype=torch.float32))

    def factors(self) -> dict[str, nn.Parameter]:
        return {**self.inner.factors(), DORA_SCALE: self.dora_gain}

    def parameter_names(self) -> list[str]:
        return [*(f"inner.{name}" for name in self.inner.parameter_names()), "dora_gain"]

    def stored(self) -> dict[str, Tensor]:
        """With the magnitudes themselves, shaped as the norms."""
        gain = self.dora_gain.detach()
        place = "meta" if gain.is_meta or self.norms.is_meta else "cpu"
        gain = gain.to(place, torch.float32).view(self.norms.shape)
        return {**self.inner.stored(), DORA_SCALE: self.norms.to(place) * (1 + gain)}

    @torch.no_grad()
    def fill(self, factors: Factors, base: nn.Module, whole: Collection[str]) -> None:
        rest = {name: factor for name, factor in factors.items() if name != DORA_SCALE}
        self.inner.fill(rest, base, whole)
        self.alpha = self.inner.alpha
        magnitudes = factors[DORA_SCALE].to(self.norms.device, torch.float64)
        change = magnitudes / self.norms.double() - 1
        if not change.is_meta:
            self.dora_gain.copy_(change.flatten())

    def use_copies(self, copies: Copies) -> None:
        super().use_copies(copies)
        self.inner.use_copies(copies)

    @property
    def acts_by_noise(self) -> bool:
        return self.inner.acts_by_noise

    def use_noise(self, noise: Noise) -> None:
        self.inner.use_noise(noise)

    def forward(self, x: Tensor, weight: Frozen, bias: Tensor | None) -> Tensor:
        out = self.decomposed(x, weight)
        mask = self.module_mask(x)
        if mask is not None or self.multiplier != 1:
            base = base_product(x, weight, None)
            strength = self.multiplier if mask is None else self.multiplier * mask
            out = base + strength * (out - base)
        return out if bias is None else out + bias

    def decomposed(self, x: Tensor, weight: Frozen) -> Tensor:
        """The output without bias, magnitudes at strength 1; a tensor of its own."""
        return self.with_gain(needed(self.inner, x, weight, None))

    def with_gain(self, total: Tensor) -> Tensor:
        """total (..., out), which is used up, times 1 + gain."""
        if torch.compiler.is_compiling():
            return torch.addcmul(total, total, at_use(self.dora_gain, total))
        used = self.copies.of(self.dora_gain, total.dtype)
        return WithGain.apply(total, used, self.dora_gain)

    def merged(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = parameters["weight"]
        total = weight + self.inner.delta().to(weight.device, torch.float32)
        gain = self.dora_gain[:, None].to(weight.device, torch.float32)
        return {"weight": weight + self.multiplier * (total * (1 + gain) - weight)}

    def change_norm(self) -> Tensor:
        """Of the difference before the magnitudes."""
        return self.inner.change_norm()

    def limit_norm(self, limit: float) -> Tensor:
        """The difference before the magnitudes is limited; they are not."""
        return self.inner.limit_norm(limit)


class DecomposedInputs(Decomposed):
    """Magnitudes of the inputs. The norm of the sum is a constant for backward, as in the paper.

    Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", 4.3.

    norms_beside: the norms where the factors are, from the time on that they have their place
    """

    axis = 0
    norms_beside: Tensor | None = None

    def use_copies(self, copies: Copies) -> None:
        super().use_copies(copies)
        # not first in a pass: a compiler would make another graph for the second
        self.norms_beside = self.norms.to(self.dora_gain.device)

    def decomposed(self, x: Tensor, weight: Frozen) -> Tensor:
        ratio = self.ratio(weight, x.dtype)
        change = torch.addcmul(ratio - 1, self.dora_gain.float(), ratio)
        return self.inner(torch.addcmul(x, x, at_use(change, x)), weight, None)

    @torch.no_grad()
    def ratio(self, weight: Frozen, dtype: torch.dtype) -> Tensor:
        """|weight| / |weight + delta| of each column, (in,) float32 where the factors are.

        dtype: of products with the weight
        """
        if self.norms_beside is None or self.norms_beside.device != self.dora_gain.device:
            self.norms_beside = self.norms.to(self.dora_gain.device)
        norms = self.norms_beside.flatten()
        return norms / (self.norms_of_sum(weight, norms - EPS, dtype) + EPS)

    def norms_of_sum(self, weight: Frozen, norms: Tensor, dtype: torch.dtype) -> Tensor:
        """|weight + delta| of each column. Of a LoRA by its factors: no difference is built.

        |w + d|^2 = |w|^2 + 2 w.d + |d|^2, column by column
        """
        if not isinstance(self.inner, LoRA):
            return (dense(weight) + self.inner.delta()).norm(dim=0)
        down, up = (matrix.float() for matrix in self.inner.pair())
        across = base_gradient(up.T.to(dtype), weight).float()  # (R, in): up.T @ weight
        own, scale = (up.T @ up) @ down, self.inner.scale
        square = norms.square() + scale * (down * (2 * across + scale * own)).sum(0)
        return square.clamp(min=0).sqrt()

    def merged(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = parameters["weight"]
        total = weight + self.inner.delta().to(weight.device, torch.float32)
        gain, norms = self.dora_gain.to(weight.device, torch.float32), self.norms.to(weight.device)
        whole = total * (norms * (1 + gain) / (total.norm(dim=0) + EPS))
        return {"weight": weight + self.multiplier * (whole - weight)}


class WithGain(torch.autograd.Function):
    """total * (1 + gain), in the memory of total; used: gain in total's dtype.

    The result is kept for backward, which the next layer mostly keeps anyway, and total made of it again.
    """

    @staticmethod
    def forward(ctx: Any, total: Tensor, used: Tensor, gain: Tensor) -> Tensor:
        ctx.mark_dirty(total)
        out = total.addcmul_(total, used)
        ctx.save_for_backward(out, used, gain)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        out, used, gain = ctx.saved_tensors
        factor = 1 + gain
        factor = torch.where(factor.abs() < SMALLEST_FACTOR, SMALLEST_FACTOR, factor)
        summed = (grad * out).flatten(0, -2).sum(0, dtype=gain.dtype)
        return torch.addcmul(grad, grad, used), None, summed / factor


def dense(weight: Frozen) -> Tensor:
    """In float32."""
    return (weight.dense(torch.float32) if isinstance(weight, Quantised) else weight.detach()).float()


def norms_of(weight: Frozen, axis: int) -> Tensor:
    """Norms along an axis + eps as ComfyUI divides by them, float32 on the CPU, or without memory as the
    weight; that axis is kept."""
    norms = dense(weight).norm(dim=axis, keepdim=True) + EPS
    return norms if norms.is_meta else norms.cpu()


def with_magnitudes(inner: LinearAdapter, base: nn.Linear, *, of_outputs: bool = True) -> Decomposed:
    """Raises ValueError for a kind that adds nothing."""
    if not isinstance(inner, AdditiveAdapter):
        raise ValueError("has DoRA's magnitudes beside what adds nothing to the weight")
    return (Decomposed if of_outputs else DecomposedInputs)(inner, base)


def without_magnitudes(adapter: Adapter) -> Adapter:
    """The adapter of which an output's magnitude is changed, or the adapter itself."""
    return adapter.inner if isinstance(adapter, Decomposed) else adapter


def decomposed_as_file(inner: LinearAdapter, base: nn.Linear, factors: Factors) -> LinearAdapter:
    """The adapter with magnitudes, if the file has them. Raises ValueError for those of another form."""
    if DORA_SCALE not in factors:
        return inner
    found = tuple(factors[DORA_SCALE].shape)
    outputs, inputs = (base.out_features, 1), (1, base.in_features)
    if found not in (outputs, inputs):
        raise ValueError(f"has {DORA_SCALE} of shape {found}, expected {outputs} or {inputs}")
    return with_magnitudes(inner, base, of_outputs=found == outputs)
