"""The DiT's parts: timestep embedding, patches, attention, feed-forward, block."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from library.anima_backend.modelling.attention import attention
from library.anima_backend.modelling.modulation import Modulation
from library.anima_backend.modelling.params import DiTParams
from library.anima_backend.modelling.rope import rotate
from library.memory.recomputation import cheap

EPS = 1e-6


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
        return torch.addcmul(x, gate, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        gate, y = ctx.saved_tensors
        of_gate = None if y is None else (grad * y).sum(1, keepdim=True)
        return grad, of_gate, grad * gate


def gated(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate * y in the dtype of x, the residual stream's."""
    gate, y = gate.to(x), y.to(x)
    if torch.compiler.is_compiling():
        return torch.addcmul(x, gate, y)
    return Gated.apply(x, gate, y)


def heads(projected: Tensor, norm: nn.Module, rope: tuple[Tensor, Tensor] | None) -> Tensor:
    """(B, L, heads, hd) -> the same normalised per head and, where rope is given, turned."""
    normed = norm(projected)
    return normed if rope is None else rotate(normed, rope)


class Attention(nn.Module):
    """Self-attention (rope given) or attention to the text; q and k normalised per head first."""

    def __init__(self, params: DiTParams, key_dim: int) -> None:
        super().__init__()
        dim = params.model_dim
        self.head_dim, self.backend = params.head_dim, "torch"
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(key_dim, dim, bias=False)
        self.v_proj = nn.Linear(key_dim, dim, bias=False)
        self.output_proj = nn.Linear(dim, dim, bias=False)
        self.q_norm = nn.RMSNorm(params.head_dim, eps=EPS)
        self.k_norm = nn.RMSNorm(params.head_dim, eps=EPS)

    def forward(self, x: Tensor, source: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        split = (-1, self.head_dim)
        q = cheap(heads, self.q_proj(x).unflatten(-1, split), self.q_norm, rope)
        k = cheap(heads, self.k_proj(source).unflatten(-1, split), self.k_norm, rope)
        v = self.v_proj(source).unflatten(-1, split)
        return self.output_proj(attention(q, k, v, None, self.backend))


class FeedForward(nn.Module):
    """Exact GELU between two linears without bias."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layer1 = nn.Linear(dim, hidden, bias=False)
        self.layer2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(cheap(F.gelu, self.layer1(x)))


class Block(nn.Module):
    """Self-attention, attention to the text, feed-forward: x += gate * f(modulated x)."""

    def __init__(self, params: DiTParams) -> None:
        super().__init__()
        self.self_attn = Attention(params, params.model_dim)
        self.cross_attn = Attention(params, params.text_dim)
        self.mlp = FeedForward(params.model_dim, params.mlp_dim)
        self.adaln_modulation_self_attn = Modulation(params, 3)
        self.adaln_modulation_cross_attn = Modulation(params, 3)
        self.adaln_modulation_mlp = Modulation(params, 3)

    def forward(
        self, x: Tensor, context: Tensor, time: tuple[Tensor, Tensor], rope: tuple[Tensor, Tensor],
        steered: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """x (B, L, D), context (B, T, X), time = (embedded (B, 1, D), shared (B, 1, 3D)).

        steered: (9, B, 1, D), what the three modulations make of the time, where that is known
        """
        shift, scale, gate, *others = self.modulated(time) if steered is None else steered.unbind()
        normed = cheap(modulate, x, shift, scale)
        x = gated(x, gate, self.self_attn(normed, normed, rope))
        shift, scale, gate, *others = others
        normed = cheap(modulate, x, shift, scale)
        x = gated(x, gate, self.cross_attn(normed, context, None))
        shift, scale, gate = others
        normed = cheap(modulate, x, shift, scale)
        return gated(x, gate, self.mlp(normed))

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
