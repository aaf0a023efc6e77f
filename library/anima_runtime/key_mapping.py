"""Checkpoint keys <-> module names, as pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "net.", "")
"""What stands before a DiT's keys, longest first."""

DIT_MARK = "x_embedder.proj.1.weight"
ADAPTER_PREFIX = "llm_adapter."

TOLERATED = re.compile(
    r"pos_embedder\.(seq|dim_spatial_range|dim_temporal_range)"  # kohya's full fine-tunes
    r"|accum_.*|.*_extra_state|logvar\..*"  # Cosmos originals
    r"|llm_adapter\.rotary_emb\.inv_freq"
)
"""Keys without prefix that hold nothing the network needs."""

OTHER_PARTS = ("text_encoders.", "vae.", "first_stage_model.", "cond_stage_model.", "conditioner.")
"""The other models of an all-in-one checkpoint, beside the DiT's prefix."""

T = TypeVar("T")


def transformer_prefix(keys: Iterable[str]) -> str | None:
    """The prefix of a DiT checkpoint, recognised by its patch embedding; None if it is not one."""
    keys = set(keys)
    return next((prefix for prefix in PREFIXES if prefix + DIT_MARK in keys), None)


def strip_prefix(entries: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The entries under `prefix`, without it."""
    return {key[len(prefix) :]: value for key, value in entries.items() if key.startswith(prefix)}


def transformer_entries(entries: Mapping[str, T], prefix: str) -> dict[str, T]:
    """A DiT checkpoint's entries by module name, the tolerated ones left out.

    What is neither under `prefix` nor of another model keeps a name that no module has, so that it
    is reported and not dropped.
    """
    named = {}
    for key, value in entries.items():
        name = key.removeprefix(prefix)
        if TOLERATED.fullmatch(name):
            continue
        if key.startswith(prefix):
            named[name] = value
        elif not key.startswith(OTHER_PARTS):
            named[f"{key} (not under {prefix})"] = value
    return named


def adapter_entries(entries: Mapping[str, T]) -> dict[str, T]:
    """The LLM adapter's entries of a file of its own, without any prefix."""
    for prefix in (*(p + ADAPTER_PREFIX for p in PREFIXES), ""):
        if prefix + "embed.weight" in entries:
            return {
                key: value
                for key, value in strip_prefix(entries, prefix).items()
                if key != "rotary_emb.inv_freq"
            }
    return {}


def qwen_entries(entries: Mapping[str, T]) -> dict[str, T]:
    """Qwen3's entries by the names of transformers' Qwen3Model; a tied lm_head is left out."""
    return {
        key.removeprefix("model."): value
        for key, value in entries.items()
        if key != "lm_head.weight"
    }


def guess_kind(keys: Iterable[str]) -> str:
    """What a weight file probably is, in words for an error message."""
    text = "\n".join(keys)
    signs = (
        (r"(lora_down|lora_up|lora_A|lora_B|lokr_w|hada_w)", "a LoRA or LoKr, not a base model"),
        (r"(^|\.)x_embedder\.proj\.1\.weight", "an Anima DiT"),
        (r"(^|\n)(model\.)?layers\.0\.self_attn\.q_norm\.weight", "a Qwen3 text encoder"),
        (
            r"(first_stage_model|conditioner\.embedders|cond_stage_model)\.",
            "a Stable Diffusion model",
        ),
        (r"(^|\.|\n)input_blocks\.0\.|(^|\n)down_blocks\.0\.resnets\.", "a Stable Diffusion UNet"),
        (r"decoder\.(middle\.0\.residual|mid_block|mid\.block_1)", "a VAE"),
        (r"double_blocks\.0\.", "a FLUX-like model"),
        (r"text_model\.encoder\.", "a CLIP text encoder"),
        (r"encoder\.block\.0\.layer\.0\.SelfAttention", "a T5 text encoder"),
    )
    return next((kind for sign, kind in signs if re.search(sign, text)), "not a model known here")
