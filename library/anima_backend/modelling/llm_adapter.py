"""The LLM adapter: T5 token ids attend to Qwen's hidden states and become the DiT's text context.

Pre-norm blocks without gates or timestep; attention is bidirectional; rotary positions in both
attentions, each side counting from 0. The source is not normalised or projected again.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from library.anima_backend.modelling.attention import attention
from library.anima_backend.modelling.glue import heads, keeps_projected
from library.anima_backend.modelling.params import EPS, LLMAdapterParams
from library.anima_backend.modelling.rope import text_rope
from library.memory.side_by_side import joining_of, products

Rope = tuple[Tensor, Tensor]


class AdapterAttention(nn.Module):
    """q from the target, k and v from the source; q and k normalised per head before rotation."""

    def __init__(self, dim: int, head_dim: int, source_dim: int | None = None) -> None:
        """source_dim: of another source than the target itself"""
        super().__init__()
        self.head_dim, self.fused, self.sees_itself = head_dim, False, source_dim is None
        source_dim = source_dim or dim
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(source_dim, dim, bias=False)
        self.v_proj = nn.Linear(source_dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.q_norm = nn.RMSNorm(head_dim, eps=EPS)
        self.k_norm = nn.RMSNorm(head_dim, eps=EPS)

    def forward(
        self, x: Tensor, source: Tensor, ropes: tuple[Rope, Rope], mask: Tensor | None
    ) -> Tensor:
        split, norms = (-1, self.head_dim), (self.q_norm, self.k_norm)
        linears, alone = self.of_one_input(), [] if self.sees_itself else [self.q_proj(x)]
        # a frozen one may go to RAM and back, which parts its matrices: contexts would be other bits then
        joins = joining_of(linears) is not None and keeps_projected(x, norms, fused=self.fused)
        found = *alone, *products(source, linears, together=joins)
        q, k, v = (each.unflatten(-1, split) for each in found)
        q, k = heads(q, k, norms, ropes, fused=self.fused)
        return self.o_proj(attention(q, k, v, mask, "torch"))

    def of_one_input(self) -> tuple[nn.Linear, ...]:
        """The Linears that see the source."""
        rest = self.k_proj, self.v_proj
        return (self.q_proj, *rest) if self.sees_itself else rest


class AdapterBlock(nn.Module):
    def __init__(self, params: LLMAdapterParams) -> None:
        super().__init__()
        dim, head_dim = params.model_dim, params.head_dim
        self.norm_self_attn = nn.RMSNorm(dim, eps=EPS)
        self.self_attn = AdapterAttention(dim, head_dim)
        self.norm_cross_attn = nn.RMSNorm(dim, eps=EPS)
        self.cross_attn = AdapterAttention(dim, head_dim, params.source_dim)
        self.norm_mlp = nn.RMSNorm(dim, eps=EPS)
        self.mlp = nn.Sequential(
            nn.Linear(dim, params.mlp_dim), nn.GELU(), nn.Linear(params.mlp_dim, dim)
        )

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        ropes: tuple[Rope, Rope],
        masks: tuple[Tensor | None, Tensor | None],
    ) -> Tensor:
        target_rope, source_rope = ropes
        normed = self.norm_self_attn(x)
        x = x + self.self_attn(normed, normed, (target_rope, target_rope), masks[0])
        x = x + self.cross_attn(
            self.norm_cross_attn(x), source, (target_rope, source_rope), masks[1]
        )
        return x + self.mlp(self.norm_mlp(x))


class LLMAdapter(nn.Module):
    """(B, S, source_dim) hidden states and (B, T) T5 ids -> (B, T, target_dim)."""

    def __init__(self, params: LLMAdapterParams) -> None:
        super().__init__()
        self.params = params
        self.embed = nn.Embedding(params.vocab, params.target_dim)
        if params.model_dim != params.target_dim:
            self.in_proj = nn.Linear(params.target_dim, params.model_dim)
        self.blocks = nn.ModuleList(AdapterBlock(params) for _ in range(params.num_blocks))
        self.out_proj = nn.Linear(params.model_dim, params.target_dim)
        self.norm = nn.RMSNorm(params.target_dim, eps=EPS)

    def forward(
        self,
        hidden: Tensor,
        ids: Tensor,
        hidden_mask: Tensor | None = None,
        ids_mask: Tensor | None = None,
        depth: int | None = None,
    ) -> Tensor:
        """Masks (B, S) and (B, T), 1 = real, hide keys only; rows of padding are the caller's to zero.

        depth: so many blocks alone, to try a shape
        """
        x = F.embedding(ids, self.embed.weight)
        if hasattr(self, "in_proj"):
            x = self.in_proj(x)
        head_dim = self.params.head_dim
        ropes = (
            text_rope(ids.shape[1], head_dim, ids.device),
            text_rope(hidden.shape[1], head_dim, ids.device),
        )
        masks = (key_mask(ids_mask), key_mask(hidden_mask))
        for block in self.blocks if depth is None else self.blocks[:depth]:
            x = block(x, hidden, ropes, masks)
        return self.norm(self.out_proj(x))


def key_mask(mask: Tensor | None) -> Tensor | None:
    """(B, L), 1 = real -> (B, 1, 1, L) boolean; a row with no real key sees its first one.

    Such a row's output is zeroed by its T5 mask or was never meant to be read, and a softmax over
    nothing would be NaN.
    """
    if mask is None:
        return None
    seen = mask.bool()
    first = seen.new_zeros(seen.shape[1]).index_fill(0, seen.new_zeros(1).long(), True)
    return (seen | (first & ~seen.any(1, keepdim=True)))[:, None, None]
