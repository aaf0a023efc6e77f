"""LoRA: delta = scale * up @ down."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from library.errors import ConfigError, Problem
from library.memory.quantised import Quantised, frozen_weight
from networks.kinds.adapter import NO_DROPOUT, Dropout, at_use, keep_mask
from networks.kinds.fused import Chain
from networks.kinds.joined import Low
from networks.kinds.kind import Kind, KindArguments, Request, Training
from networks.kinds.linear import AdditiveAdapter, LinearAdapter, shape_of
from networks.kinds.noise_ranks import NoiseRanks
from networks.kinds.principal import principal_inputs
from networks.kinds.stored import (
    Factors,
    float32_beside,
    matrix,
    sizes_of,
    stored_alpha,
    stored_scale,
)

LORA_DOWN, LORA_UP = "lora_down", "lora_up"


def lora_delta(down: Tensor, up: Tensor) -> Tensor:
    """down (R, in), up (out, R) -> (out, in)."""
    return up @ down


class LoRA(AdditiveAdapter):
    """`lora_down` starts random, `lora_up` at zero.

    noise_ranks: which ranks act in training, by the noise; None: all
    """

    zero_factor = LORA_UP
    is_low_rank = True
    noise_ranks: NoiseRanks | None = None
    rank: int
    lora_down: nn.Parameter
    lora_up: nn.Parameter

    def __init__(
        self, in_features: int, out_features: int, rank: int, alpha: float,
        dropout: Dropout = NO_DROPOUT,
    ) -> None:  # fmt: skip
        super().__init__(rank, alpha, dropout)
        self._add_factors({LORA_DOWN: (rank, in_features), LORA_UP: (out_features, rank)})
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    @classmethod
    def as_file(cls, base: nn.Linear, factors: Factors, dropout: Dropout) -> LoRA:
        rank = lora_rank(factors, shape_of(base))
        alpha = stored_alpha(factors, rank)
        return cls(base.in_features, base.out_features, rank, alpha, dropout)

    def added(self, x: Tensor) -> Tensor:
        down, up = self.pair()
        hidden = F.linear(x, at_use(down, x))  # (..., R)
        if self.training:
            if self.dropout.neuron:
                hidden = hidden * keep_mask(hidden.shape, self.dropout.neuron, hidden, rescale=True)
            if self.dropout.rank:  # one mask per sample, as sd-scripts draws it
                shape = (x.shape[0], *(1,) * (x.dim() - 2), self.rank)
                hidden = hidden * keep_mask(shape, self.dropout.rank, hidden, rescale=True)
            if self.noise_ranks:
                hidden = hidden * self.noise.mask(self.noise_ranks, self.rank, hidden)
        return F.linear(hidden * self.strength(hidden), at_use(up, x))

    def chain(self, x: Tensor) -> tuple[Chain, Sequence[Tensor]]:
        low = self.low(x)
        return Chain(1, None, low.strength, (low.mask, None)), (low.down, low.up)

    def low(self, x: Tensor) -> Low:
        strength, masks = self.scale * self.multiplier, []
        if self.training:
            hidden, drop = (*x.shape[:-1], 1, self.rank), self.dropout
            if drop.neuron:
                masks.append(keep_mask(hidden, drop.neuron, x))
                strength /= 1 - drop.neuron
            if drop.rank:
                per_sample = (x.shape[0], *(1,) * (x.dim() - 1), self.rank)
                masks.append(keep_mask(per_sample, drop.rank, x))
                strength /= 1 - drop.rank
            if self.noise_ranks:
                masks.append(self.noise.mask(self.noise_ranks, self.rank, x).unsqueeze(-2))
            masks += [mask for mask in [self.module_mask(x)] if mask is not None]
        mask = reduce(torch.mul, masks) if masks else None
        return Low(*self.pair(), strength, mask)

    @property
    def acts_by_noise(self) -> bool:
        return self.noise_ranks is not None

    def pair(self) -> tuple[Tensor, Tensor]:
        """The matrices that are applied in turn, (R, in) and (out, R)."""
        return self.lora_down, self.lora_up

    def delta(self) -> Tensor:
        return self.scale * lora_delta(*self.pair())

    def chains(self) -> Sequence[Sequence[Tensor]]:
        return [self.pair()]


class PiSSA(LoRA):
    """A LoRA begun on the main part of the frozen weight, A0 and B0 (Meng et al. 2024, PiSSA).

    (B0 + dB)(A0 + dA) - B0 A0 = dB (A0 + dA) + B0 dA is a LoRA of twice the rank. The changes dA and dB are
    trained, from zero: the base stays as it is, weight decay pulls towards it, and what is small beside A0
    is not rounded away. rank and alpha are those of that LoRA, which is what files hold.

    start_down, start_up: A0 (R, in) and B0 (out, R); not trained
    """

    cut_at_export = True
    no_norm_limit = "pissa, whose factors are changes: what they add does not shrink as they do"
    start_down: Tensor
    start_up: Tensor

    @torch.no_grad()
    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: Dropout) -> None:
        super().__init__(base.in_features, base.out_features, rank, alpha, dropout)
        weight = dense_weight(base)
        rows = principal_inputs(weight, rank)  # what the weight has no more of stays random, as in a LoRA
        columns = weight.float() @ rows.T
        lengths = columns.norm(dim=0)
        roots = (lengths / self.scale).sqrt()
        start_down, start_up = self.lora_down.clone(), torch.zeros_like(self.lora_up)
        start_down[: len(rows)] = (roots[:, None] * rows).to(start_down.device)
        start_up[:, : len(rows)] = (columns / lengths.clamp(min=1e-30) * roots).to(start_up.device)
        self.register_buffer("start_down", start_down)
        self.register_buffer("start_up", start_up)
        self.lora_down.zero_()
        self.rank, self.alpha = 2 * rank, 2 * alpha

    def pair(self) -> tuple[Tensor, Tensor]:
        down = torch.cat([self.start_down + self.lora_down, self.lora_down])
        return down, torch.cat([self.lora_up, self.start_up], dim=1)

    def stored(self) -> dict[str, Tensor]:
        return dict(zip((LORA_DOWN, LORA_UP), (matrix.detach() for matrix in self.pair())))

    @torch.no_grad()
    def fill(self, factors: Factors, base: nn.Module, whole: Collection[str]) -> None:
        """Also A0 and B0 are those of the file."""
        down, up = float32_beside(self.lora_down, factors, (LORA_DOWN, LORA_UP))
        (begun, down), (up, start_up) = down.chunk(2), up.chunk(2, dim=1)
        super().fill({**factors, LORA_DOWN: down, LORA_UP: up}, base, whole)
        self.start_down.copy_(begun - down)
        self.start_up.copy_(start_up)


@dataclass(frozen=True, kw_only=True)
class LoRAArguments(KindArguments):
    """svd_down: `lora_down` starts on the inputs to which the frozen weight answers most
    pissa:    both factors start on the main part of the frozen weight
    tlora:    fewer ranks act the more noise there is, as T-LoRA has it: on noise alone tlora_min_rank;
              tlora_power is NoiseRanks' power
    """

    ALIASES: ClassVar[Mapping[str, str]] = {
        "use_pissa": "pissa",
        "use_timestep_mask": "tlora",
        "min_rank": "tlora_min_rank",
        "alpha_rank_scale": "tlora_power",
    }
    OF_THE_START: ClassVar[tuple[str, ...]] = ("svd_down",)

    svd_down: bool = False
    pissa: bool = False
    tlora: bool = False
    tlora_min_rank: int = 1
    tlora_power: float = 1.0

    @staticmethod
    def problems_of(values: Mapping[str, Any]) -> list[Problem]:
        found = []
        if values.get("pissa") and values.get("svd_down"):
            found.append(Problem("are two starts: keep one.", "pissa and svd_down"))
        if values.get("pissa") and values.get("tlora"):
            message = "do not go together: a rank of pissa's file is half of one that is trained."
            found.append(Problem(message, "pissa and tlora"))
        if (least := values.get("tlora_min_rank", 1)) < 1:
            found.append(Problem("expected 1 or more.", f"tlora_min_rank={least}"))
        if (power := values.get("tlora_power", 1.0)) <= 0:
            found.append(Problem("expected a number above 0.", f"tlora_power={power:g}"))
        return found

    def rank_of_file(self, rank: int) -> int:
        return 2 * rank if self.pissa else rank

    @torch.no_grad()
    def make(self, base: nn.Linear, rank: int, alpha: float, dropout: Dropout) -> LoRA:
        if self.pissa:
            return PiSSA(base, rank, alpha, dropout)
        adapter = LoRA(base.in_features, base.out_features, rank, alpha, dropout)
        if self.tlora:
            if self.tlora_min_rank > rank:
                message = f"is above the rank {rank} of an adapter; see network_dim, network_reg_dims."
                raise ConfigError([Problem(message, f"tlora_min_rank={self.tlora_min_rank}")])
            adapter.noise_ranks = NoiseRanks(self.tlora_min_rank, self.tlora_power)
        if self.svd_down:
            rows = principal_inputs(dense_weight(base), rank)
            # as long as the random rows are in the mean, so that a learning rate means the same
            adapter.lora_down[: len(rows)] = rows.to(adapter.lora_down.device) / math.sqrt(3)
        return adapter


    def without_noise(self) -> LoRAArguments:
        return replace(self, tlora=False)

    def remarks(self, adapters: Sequence[LinearAdapter], request: Request) -> Iterator[str]:
        for name in ("tlora_min_rank", "tlora_power"):
            if not self.tlora and getattr(self, name) != getattr(LoRAArguments(), name):
                yield f"{name} has no effect without tlora=true"
        if self.tlora and not any(isinstance(a, LoRA) and a.noise_ranks for a in adapters):
            yield "tlora has no effect: no adapted Linear sees noise"


def dense_weight(base: nn.Linear) -> Tensor:
    weight = frozen_weight(base)
    return weight.dense(torch.float32) if isinstance(weight, Quantised) else weight.detach()


def lora_rank(factors: Factors, weight: Sequence[int]) -> int:
    """The rank of a LoRA that fits a weight of this shape."""
    rank = len(matrix(factors, LORA_DOWN))
    expected = {LORA_DOWN: (rank, weight[1]), LORA_UP: (weight[0], rank)}
    for name, shape in expected.items():
        found = tuple(matrix(factors, name).shape)
        if found != shape:
            raise ValueError(f"{name} has shape {found}, expected {shape}")
    return sizes_of(factors, LORA_UP, LORA_DOWN)[1]


def lora_change(factors: Factors, weight: Tensor) -> Tensor:
    rank = lora_rank(factors, weight.shape)
    down, up = float32_beside(weight, factors, (LORA_DOWN, LORA_UP))
    return stored_scale(factors, rank) * lora_delta(down, up)


KIND = Kind(
    "LoRA",
    factors={
        LORA_DOWN: (
            "lora_down.weight", "lora_A.weight", "lora_A.default.weight", "lora_A",
            "lora.down.weight", "lora_linear_layer.down.weight",
        ),
        LORA_UP: (
            "lora_up.weight", "lora_B.weight", "lora_B.default.weight", "lora_B",
            "lora.up.weight", "lora_linear_layer.up.weight",
        ),
    },
    change=lora_change,
    training=Training("lora", LoRAArguments, LoRA.as_file, "2e-5 to 1e-4, most often 1e-4"),
)  # fmt: skip
