"""The holders of factors, LoRA, LoKr and NormDelta: initialize, drop out, apply, give the delta.

Factors are float32 Parameters whatever the base dtype and are cast to the input's dtype at use.
Dropout draws masks from the global torch RNG (the one that checkpointing rewinds) and never skips a
branch, so every factor has a gradient on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.factors import (
    LoKrShape,
    adapter_scale,
    lokr_apply,
    lokr_delta,
    lora_delta,
    product,
)

NORM_PARAMETERS = {"w_norm": "weight", "b_norm": "bias"}


@dataclass(frozen=True)
class Dropout:
    """Probabilities in [0, 1); active in training mode only.

    neuron: of each entry between the factors (LoRA) or of the adapter's output (LoKr)
    rank:   of each rank entry; the rest is divided by 1 - rank
    module: of the whole adapter, for one call; not rescaled, as sd-scripts and LyCORIS do it
    """

    neuron: float = 0.0
    rank: float = 0.0
    module: float = 0.0


class Adapter(nn.Module):
    """What LoRA, LoKr and NormDelta share: named float32 factors and the user's strength."""

    zero_factor = ""  # the factor that starts at zero; LoRA+ raises its learning rate

    def __init__(self) -> None:
        super().__init__()
        self.multiplier = 1.0

    def factors(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by factor name."""
        return dict(self.named_parameters(recurse=False))

    def changes(self) -> dict[str, Tensor]:
        """What is added to each of the base's parameters at strength 1."""
        raise NotImplementedError

    def _add_factors(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=torch.float32)))


class LinearAdapter(Adapter):
    """An adapter of a Linear: x (..., in) -> what is added to the output, (..., out)."""

    kind = ""

    def __init__(self, rank: int | None, alpha: float, dropout: Dropout) -> None:
        super().__init__()
        self.rank, self.alpha, self.dropout = rank, alpha, dropout

    @property
    def scale(self) -> float:
        return adapter_scale(self.alpha, self.rank)

    def delta(self) -> Tensor:
        """The dense weight difference at strength 1, (out, in)."""
        raise NotImplementedError

    def changes(self) -> dict[str, Tensor]:
        return {"weight": self.delta()}

    def chains(self) -> Sequence[Sequence[Tensor]]:
        """The trained matrices: of each Kronecker factor those applied in turn, [w] or [first, last]."""
        raise NotImplementedError

    def strength(self, x: Tensor) -> float | Tensor:
        """scale * multiplier, times the mask of module dropout: 0 or 1 for this call."""
        strength = self.scale * self.multiplier
        if self.training and self.dropout.module:
            return strength * keep_mask((), self.dropout.module, x)
        return strength


class LoRA(LinearAdapter):
    """delta = scale * up @ down. `down` starts random, `up` at zero."""

    kind = "LoRA"
    zero_factor = "lora_up"

    def __init__(
        self, in_features: int, out_features: int, rank: int, alpha: float,
        dropout: Dropout = Dropout(),
    ) -> None:  # fmt: skip
        super().__init__(rank, alpha, dropout)
        self._add_factors({"lora_down": (rank, in_features), "lora_up": (out_features, rank)})
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x, self.lora_down.to(x.dtype))  # (..., R)
        if self.training:
            hidden = F.dropout(hidden, self.dropout.neuron)
            if self.dropout.rank:  # one mask per sample, as sd-scripts draws it
                shape = (x.shape[0], *(1,) * (x.dim() - 2), self.rank)
                hidden = hidden * keep_mask(shape, self.dropout.rank, hidden, rescale=True)
        return F.linear(hidden * self.strength(hidden), self.lora_up.to(x.dtype))

    def delta(self) -> Tensor:
        return self.scale * lora_delta(self.lora_down, self.lora_up)

    def chains(self) -> Sequence[Sequence[Tensor]]:
        return [[self.lora_down, self.lora_up]]


class LoKr(LinearAdapter):
    """delta = scale * kron(w1, w2), applied by its factors; LoKrShape says which are factored."""

    kind = "LoKr"

    def __init__(self, shape: LoKrShape, alpha: float, dropout: Dropout = Dropout()) -> None:
        super().__init__(shape.rank, 1.0 if shape.rank is None else alpha, dropout)
        self.shape = shape
        self._add_factors(shape.factors())
        self.zero_factor = "lokr_w2" if shape.w2_rank is None else "lokr_w2_b"
        for name, factor in self.factors().items():
            if name != self.zero_factor:
                nn.init.kaiming_uniform_(factor, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        w1, w2 = self.chains()
        if self.training and self.dropout.rank:
            w1, w2 = self._drop_rank(w1), self._drop_rank(w2)
        scaled = (product(w1) * self.strength(x)).to(x.dtype)
        out = lokr_apply(x, scaled, [matrix.to(x.dtype) for matrix in w2])
        return F.dropout(out, self.dropout.neuron) if self.training else out

    def delta(self) -> Tensor:
        w1, w2 = self.chains()
        return self.scale * lokr_delta(product(w1), w2)

    def chains(self) -> tuple[list[Tensor], list[Tensor]]:
        """w1 and w2 as the matrices applied in turn: [w] or [w_b, w_a]."""
        w1 = [self.lokr_w1] if self.shape.w1_rank is None else [self.lokr_w1_b, self.lokr_w1_a]
        w2 = [self.lokr_w2] if self.shape.w2_rank is None else [self.lokr_w2_b, self.lokr_w2_a]
        return w1, w2

    def _drop_rank(self, chain: list[Tensor]) -> list[Tensor]:
        """Mask rank entries, for the whole batch; a full matrix has none."""
        if len(chain) == 1:
            return chain
        first, last = chain
        return [first * keep_mask((len(first), 1), self.dropout.rank, first, rescale=True), last]


class NormDelta(Adapter):
    """Float32 differences of a norm's weight and, where there is one, bias; zero at first."""

    kind = "norm"

    def __init__(self, size: int, *, bias: bool) -> None:
        super().__init__()
        self._add_factors({"w_norm": (size,), **({"b_norm": (size,)} if bias else {})})

    def changes(self) -> dict[str, Tensor]:
        return {NORM_PARAMETERS[name]: factor for name, factor in self.factors().items()}

    def weight(self, base: Tensor) -> Tensor:
        """The norm's weight with its difference added, in float32."""
        return base.float() + self.multiplier * self.w_norm.float()

    def bias(self, base: Tensor | None) -> Tensor | None:
        return None if base is None else base.float() + self.multiplier * self.b_norm.float()


def keep_mask(shape: tuple[int, ...], drop: float, like: Tensor, rescale: bool = False) -> Tensor:
    """1 with probability 1 - drop, else 0, in the dtype and on the device of `like`.

    rescale: divide by 1 - drop, so that the mean stays
    """
    kept = (torch.rand(shape, device=like.device) >= drop).to(like.dtype)
    return kept / (1 - drop) if rescale else kept
