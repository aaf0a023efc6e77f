"""Sizes of the networks, read off a checkpoint's tensor shapes: nothing is looked up by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

Shapes = Mapping[str, tuple[int, ...]]


MAX_BLOCKS = 1000
EPS = 1e-6
"""What every norm adds to the square that it divides by."""


def count_blocks(shapes: Shapes, prefix: str) -> int:
    """How many numbered blocks there are under `prefix`; ValueError for more than any model has.

    Numbers are counted, not believed: with one of a million no million blocks are built.
    """
    numbers = {
        found[1] for key in shapes if (found := re.match(rf"{re.escape(prefix)}(\d+)\.", key))
    }
    if len(numbers) > MAX_BLOCKS:
        raise ValueError(f"{len(numbers)} blocks under {prefix}")
    return len(numbers)


@dataclass(frozen=True, kw_only=True)
class LLMAdapterParams:
    """vocab: rows of the T5 id embedding; source: Qwen's width; target: the DiT's text width."""

    vocab: int
    source_dim: int
    target_dim: int
    model_dim: int
    head_dim: int
    mlp_dim: int
    num_blocks: int

    @staticmethod
    def from_state_shapes(shapes: Shapes) -> LLMAdapterParams:
        """From keys without the `llm_adapter.` prefix."""
        query = shapes["blocks.0.self_attn.q_proj.weight"]
        params = LLMAdapterParams(
            vocab=shapes["embed.weight"][0],
            source_dim=shapes["blocks.0.cross_attn.k_proj.weight"][1],
            target_dim=shapes["embed.weight"][1],
            model_dim=query[1],
            head_dim=shapes["blocks.0.self_attn.q_norm.weight"][0],
            mlp_dim=shapes["blocks.0.mlp.0.weight"][0],
            num_blocks=count_blocks(shapes, "blocks."),
        )
        check_sizes(params)
        return params


@dataclass(frozen=True, kw_only=True)
class DiTParams:
    """channels: of the latents, without the mask channel; patch: side of a patch in latent cells."""

    channels: int
    patch: int
    model_dim: int
    head_dim: int
    text_dim: int
    adaln_dim: int
    mlp_dim: int
    num_blocks: int
    llm_adapter: LLMAdapterParams

    @staticmethod
    def from_state_shapes(shapes: Shapes) -> DiTParams:
        """From keys without prefix; KeyError when a tensor that decides a size is missing, and
        IndexError or ValueError when one has a shape that decides none.
        """
        patch = 2
        model_dim, patch_inputs = shapes["x_embedder.proj.1.weight"]
        prefix = "llm_adapter."
        adapter = {k[len(prefix) :]: v for k, v in shapes.items() if k.startswith(prefix)}
        params = DiTParams(
            channels=patch_inputs // patch**2 - 1,
            patch=patch,
            model_dim=model_dim,
            head_dim=shapes["blocks.0.self_attn.q_norm.weight"][0],
            text_dim=shapes["blocks.0.cross_attn.k_proj.weight"][1],
            adaln_dim=shapes["final_layer.adaln_modulation.1.weight"][0],
            mlp_dim=shapes["blocks.0.mlp.layer1.weight"][0],
            num_blocks=count_blocks(shapes, "blocks."),
            llm_adapter=LLMAdapterParams.from_state_shapes(adapter),
        )
        check_sizes(params)
        if params.text_dim != params.llm_adapter.target_dim:
            gives = params.llm_adapter.target_dim
            raise ValueError(f"text of width {params.text_dim} from an adapter that gives {gives}")
        return params


def check_sizes(params: LLMAdapterParams | DiTParams) -> None:
    """Raise ValueError for sizes that no network can be built with."""
    wrong = [
        f"{f.name} {value}" for f in fields(params) if (value := getattr(params, f.name)) in (0, -1)
    ]
    if params.head_dim % 2 or params.model_dim % (params.head_dim or 1):
        wrong.append(f"heads of {params.head_dim} in a width of {params.model_dim}")
    if wrong:
        raise ValueError(", ".join(wrong))


PUBLISHED = DiTParams(
    channels=16,
    patch=2,
    model_dim=2048,
    head_dim=128,
    text_dim=1024,
    adaln_dim=256,
    mlp_dim=8192,
    num_blocks=28,
    llm_adapter=LLMAdapterParams(
        vocab=32128,
        source_dim=1024,
        target_dim=1024,
        model_dim=1024,
        head_dim=64,
        mlp_dim=4096,
        num_blocks=6,
    ),
)
"""The sizes of the published files."""
