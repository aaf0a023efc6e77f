"""The DiT's parts: timestep embedding, patches, attention, feed-forward, block."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from library.anima_backend.modelling.attention import attention
from library.anima_backend.modelling.glue import (
    Open,
    Table,
    entered,
    gated,
    gelu,
    heads,
    keeps_projected,
    modulate,
    passed,
)
from library.anima_backend.modelling.modulation import Modulation
from library.anima_backend.modelling.padded_text import attention_beside_zeros
from library.anima_backend.modelling.params import EPS, DiTParams
from library.memory.activation import activated
from library.memory.gradient_sums import shared
from library.memory.recomputation import last
from library.memory.side_by_side import products


def sinusoid(sigma: Tensor, dim: int) -> Tensor:
    """(B,) float32 -> (B, 1, dim) float32: [cos | sin] of sigma times 10000 ** -(i / (dim/2))."""
    steps = torch.arange(dim // 2, dtype=torch.float32, device=sigma.device)
    angles = sigma.float()[:, None, None] * torch.exp(steps * (-math.log(10000) / (dim // 2)))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepMLP(nn.Module):
    """The sinusoid -> the 3D values shared by all modulations (`adaln_lora`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, dim, bias=False)
        self.linear_2 = nn.Linear(dim, 3 * dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(features)))


class PatchEmbed(nn.Module):
    """(B, C+1, H, W) -> (B, H/p * W/p, D); a token's inputs are ordered channel, row, column."""

    def __init__(self, params: DiTParams) -> None:
        super().__init__()
        self.patch = params.patch
        inputs = (params.channels + 1) * params.patch**2
        self.proj = nn.Sequential(nn.Identity(), nn.Linear(inputs, params.model_dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        p = self.patch
        x = x.unflatten(2, (-1, p)).unflatten(4, (-1, p))  # (B, C, h, p, w, p)
        return self.proj(x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))


class Attention(nn.Module):
    """Self-attention, or attention to a text of another width; q and k normalised per head first."""

    def __init__(self, params: DiTParams, text_dim: int | None = None) -> None:
        super().__init__()
        dim = params.model_dim
        self.sees_itself, key_dim = text_dim is None, text_dim or dim
        self.head_dim, self.backend, self.fused = params.head_dim, "torch", False
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(key_dim, dim, bias=False)
        self.v_proj = nn.Linear(key_dim, dim, bias=False)
        self.output_proj = nn.Linear(dim, dim, bias=False)
        self.q_norm = nn.RMSNorm(params.head_dim, eps=EPS)
        self.k_norm = nn.RMSNorm(params.head_dim, eps=EPS)

    def forward(
        self, x: Tensor, source: Tensor, rope: Table | None,
        log_zeros: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """rope: where x, which is the source then, is turned

        log_zeros: of how many rows of zeros were left out of `source`; None: of none
        """
        split, norms = (-1, self.head_dim), (self.q_norm, self.k_norm)
        if self.fused:
            source = shared(source)
        alone = [] if self.sees_itself else [self.q_proj(x)]
        joins = keeps_projected(x, norms, fused=self.fused)  # v, which is kept, keeps what it lies beside
        found = *alone, *products(source, self.of_one_input(), together=joins)
        q, k, v = (each.unflatten(-1, split) for each in found)
        q, k = heads(q, k, norms, (rope, rope), fused=self.fused)
        if log_zeros is not None:
            attended = attention_beside_zeros(q, k, v, log_zeros, fused=self.fused)
            return self.output_proj(attended)
        return self.output_proj(attention(q, k, v, None, self.backend))

    def of_one_input(self) -> tuple[nn.Linear, ...]:
        """The Linears that see the source."""
        rest = self.k_proj, self.v_proj
        return (self.q_proj, *rest) if self.sees_itself else rest


class FeedForward(nn.Module):
    """Exact GELU between two linears without bias."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layer1 = nn.Linear(dim, hidden, bias=False)
        self.layer2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor, *, is_kept: bool = True) -> Tensor:
        """is_kept: whether the result is kept for the backward pass"""
        hidden = activated(self.layer1, x, gelu)
        return self.layer2(hidden) if is_kept else last(self.layer2, hidden)


class Block(nn.Module):
    """Self-attention, attention to the text, feed-forward: x += gate * f(modulated x)."""

    def __init__(self, params: DiTParams) -> None:
        super().__init__()
        self.self_attn = Attention(params)
        self.cross_attn = Attention(params, params.text_dim)
        self.mlp = FeedForward(params.model_dim, params.mlp_dim)
        self.adaln_modulation_self_attn = Modulation(params, 3)
        self.adaln_modulation_cross_attn = Modulation(params, 3)
        self.adaln_modulation_mlp = Modulation(params, 3)
        self.fused = False

    def forward(
        self, x: Tensor | Open, context: Tensor, time: tuple[Tensor, Tensor],
        tables: tuple[Tensor, ...], steered: Tensor | None = None, *, leaves_open: bool = False,
    ) -> Tensor | Open:  # fmt: skip
        """x (B, L, D), context (B, T, X), time = (embedded (B, 1, D), shared (B, 1, 3D)).

        tables:  cos and sin of the positions; log(n) of n rows of zeros that the context lacks, if any
        steered: (9, B, 1, D), what the three modulations make of the time, where that is known
        leaves_open: whether the last sum is left to the next block
        """
        shift, scale, gate, *others = self.modulated(time) if steered is None else steered.unbind()
        x, normed = entered(x, shift, scale, fused=self.fused)
        y = self.self_attn(normed, normed, tables[:2])
        shift, scale, next_gate, *others = others
        x, normed = passed(Open(x, gate, y), shift, scale, fused=self.fused)
        y = self.cross_attn(normed, context, None, *tables[2:])
        shift, scale, last_gate = others
        x, normed = passed(Open(x, next_gate, y), shift, scale, fused=self.fused)
        y = self.mlp(normed, is_kept=last_gate.requires_grad)
        if leaves_open:
            return Open(x, last_gate, y)
        return last(partial(gated, fused=self.fused), x, last_gate, y)

    def modulations(self) -> tuple[Modulation, ...]:
        """In the order in which they are used."""
        attentions = self.adaln_modulation_self_attn, self.adaln_modulation_cross_attn
        return *attentions, self.adaln_modulation_mlp

    def modulated(self, time: tuple[Tensor, Tensor]) -> list[Tensor]:
        return [value for each in self.modulations() for value in each(*time)]


class FinalLayer(nn.Module):
    """Modulated tokens -> patches, ordered row, column, channel (unlike the embedding)."""

    def __init__(self, params: DiTParams) -> None:
        super().__init__()
        outputs = params.channels * params.patch**2
        self.linear = nn.Linear(params.model_dim, outputs, bias=False)
        self.adaln_modulation = Modulation(params, 2)

    def forward(self, x: Tensor, time: tuple[Tensor, Tensor]) -> Tensor:
        shift, scale = self.adaln_modulation(*time)
        return self.linear(modulate(x, shift, scale))
