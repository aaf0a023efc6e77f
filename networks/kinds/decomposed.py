"""DoRA, trained: a magnitude for each output beside the factors of another kind.

weight -> (weight + delta) * magnitude / |weight|, row by row: ComfyUI's formula, whose norm is that of the
frozen weight, so that training needs no norms and no dense weight. DoRA as PEFT and LyCORIS train it
divides by the norm of the sum instead, which ComfyUI does not do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from library.memory.quantised import Frozen, Quantised, frozen_weight
from networks.kinds.adapter import Adapter, at_use
from networks.kinds.copies import Copies
from networks.kinds.frozen import base_product
from networks.kinds.linear import AdditiveAdapter, LinearAdapter
from networks.kinds.noise_ranks import Noise
from networks.kinds.stored import DORA_SCALE, Factors

NOT_OF_ROWS = "holds magnitudes of the inputs, which are not trained here; --base_weights can merge it"
SMALLEST_FACTOR = 1e-3
"""A row that is all but gone learns as if this much of it were left."""


class Decomposed(LinearAdapter):
    """What is trained is each magnitude's relative change, zero at first.

    So weight decay pulls towards the base, and small changes survive the narrow dtypes of a step.

    inner: what adds to the weight, always at strength 1
    norms: (out, 1) float32 on the CPU: of the base's rows as they are stored
    """

    not_universal = "the magnitudes of dora_wd"

    def __init__(self, inner: AdditiveAdapter, base: nn.Linear) -> None:
        super().__init__(inner.rank, inner.alpha, inner.dropout)
        inner.dropout = replace(inner.dropout, module=0.0)  # drawn here, for both at once
        self.inner = inner
        self.zero_factor, self.no_norm_limit = inner.zero_factor, inner.no_norm_limit
        self.norms = row_norms(frozen_weight(base))
        self.dora_gain = nn.Parameter(torch.zeros(base.out_features, dtype=torch.float32))

    def factors(self) -> dict[str, nn.Parameter]:
        return {**self.inner.factors(), DORA_SCALE: self.dora_gain}

    def parameter_names(self) -> list[str]:
        return [*(f"inner.{name}" for name in self.inner.parameter_names()), "dora_gain"]

    def stored(self) -> dict[str, Tensor]:
        """With the magnitudes themselves, (out, 1)."""
        gain = self.dora_gain.detach().to("cpu", torch.float32)[:, None]
        if self.norms.is_meta:
            gain = gain.to("meta")
        return {**self.inner.stored(), DORA_SCALE: self.norms * (1 + gain)}

    @torch.no_grad()
    def fill(self, factors: Factors, base: nn.Module, whole: Collection[str]) -> None:
        rest = {name: factor for name, factor in factors.items() if name != DORA_SCALE}
        self.inner.fill(rest, base, whole)
        self.alpha = self.inner.alpha
        change = factors[DORA_SCALE].to("cpu", torch.float64) / self.norms.double() - 1
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
        out = self.with_gain(self.inner(x, weight, None))
        mask = self.module_mask(x)
        if mask is not None or self.multiplier != 1:
            base = base_product(x, weight, None)
            strength = self.multiplier if mask is None else self.multiplier * mask
            out = base + strength * (out - base)
        return out if bias is None else out + bias

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


def row_norms(weight: Frozen) -> Tensor:
    """|row| + eps as ComfyUI divides by it, (out, 1) float32 on the CPU, or without memory as the weight."""
    dense = weight.dense(torch.float32) if isinstance(weight, Quantised) else weight.detach()
    norms = dense.float().norm(dim=1, keepdim=True) + torch.finfo(torch.float32).eps
    return norms if norms.is_meta else norms.cpu()


def with_magnitudes(inner: LinearAdapter, base: nn.Linear) -> Decomposed:
    """Raises ValueError for a kind that adds nothing."""
    if not isinstance(inner, AdditiveAdapter):
        raise ValueError("has DoRA's magnitudes beside what adds nothing to the weight")
    return Decomposed(inner, base)


def without_magnitudes(adapter: Adapter) -> Adapter:
    """The adapter of which an output's magnitude is changed, or the adapter itself."""
    return adapter.inner if isinstance(adapter, Decomposed) else adapter


def decomposed_as_file(inner: LinearAdapter, base: nn.Linear, factors: Factors) -> LinearAdapter:
    """The adapter with magnitudes, if the file has them. Raises ValueError for those of another form."""
    if DORA_SCALE not in factors:
        return inner
    found, expected = tuple(factors[DORA_SCALE].shape), (base.out_features, 1)
    if found != expected:
        if found == (1, base.in_features):
            raise ValueError(NOT_OF_ROWS)
        raise ValueError(f"has {DORA_SCALE} of shape {found}, expected {expected}")
    return with_magnitudes(inner, base)
