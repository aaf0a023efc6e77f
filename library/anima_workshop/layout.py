"""Which modules Anima's adapter files may be for: of the base that is given, else of the published sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from library.anima_backend.modelling.params import MAX_BLOCKS, PUBLISHED, DiTParams
from library.anima_backend.modelling.text_encoder import PLACE
from library.anima_runtime.model_loading import inspect_transformer, shapes_of_dit
from library.errors import AdapterFileError
from networks._anima_arguments import DIT_TARGETS, LLM_ADAPTER_TARGETS
from networks.codec import text_encoder_aliases
from networks.targets import matches_target
from networks.workshop.adapter_file import AdapterFile, adapter_header, open_adapter
from networks.workshop.modules import Modules, Shape

NUMBERED = re.compile(r"(?:^|[._])blocks[._](\d{1,6})[._]")
LLM_ADAPTER_NUMBERED = re.compile(r"llm_adapter[._]blocks[._]\d+")

DIFFUSERS_PARTS = {"llm_adapter.": "text_conditioner.", "": "transformer."}
DIFFUSERS_WORDS = (
    ("final_layer.adaln_modulation.", "norm_out.linear_"),
    ("final_layer.linear", "proj_out"),
    ("blocks.", "transformer_blocks."),
    ("adaln_modulation_self_attn.", "norm1.linear_"),
    ("adaln_modulation_cross_attn.", "norm2.linear_"),
    ("adaln_modulation_mlp.", "norm3.linear_"),
    ("self_attn.output_proj", "attn1.to_out.0"),
    ("cross_attn.output_proj", "attn2.to_out.0"),
    ("self_attn.", "attn1."),
    ("cross_attn.", "attn2."),
    ("q_proj", "to_q"),
    ("k_proj", "to_k"),
    ("v_proj", "to_v"),
    ("mlp.layer1", "ff.net.0.proj"),
    ("mlp.layer2", "ff.net.2"),
    ("t_embedder.1.", "time_embed.t_embedder."),
    ("x_embedder.proj.1", "patch_embed.proj"),
)
"""What diffusers calls the DiT's Linears; those of the LLM adapter it calls as they are."""

QWEN = f"{PLACE}."
"""How the paths of the text encoder's modules begin."""
QWEN_LAYERS = 28
QWEN_LINEARS: dict[str, Shape] = {
    "self_attn.q_proj": (2048, 1024),
    "self_attn.k_proj": (1024, 1024),
    "self_attn.v_proj": (1024, 1024),
    "self_attn.o_proj": (1024, 2048),
    "mlp.gate_proj": (3072, 1024),
    "mlp.up_proj": (3072, 1024),
    "mlp.down_proj": (1024, 3072),
}
QWEN_NORMS: dict[str, Shape] = {
    "self_attn.q_norm": (128,),
    "self_attn.k_norm": (128,),
    "input_layernorm": (1024,),
    "post_attention_layernorm": (1024,),
}


def open_anima_adapter(path: str | Path, base: str | Path | None = None) -> AdapterFile:
    """An adapter file with Anima's modules: those of `base`, a DiT's file, if there is one.

    Raises AdapterFileError for the adapter, ModelFileError for the base.
    """
    if base:
        return open_adapter(path, modules_of(inspect_transformer(base)[0], is_exact=True))
    header = adapter_header(path)
    blocks = max(block_numbers(header.entries), default=-1) + 1
    if blocks > MAX_BLOCKS:
        message = f"is for a block {blocks - 1}; no model has so many."
        raise AdapterFileError(message, source=str(path))
    return open_adapter(path, published(max(blocks, PUBLISHED.num_blocks)))


def block_numbers(keys: Iterable[str]) -> Iterator[int]:
    """The numbers of the DiT's blocks that keys of any spelling name."""
    for key in keys:
        if found := NUMBERED.search(LLM_ADAPTER_NUMBERED.sub("", key)):
            yield int(found[1])


@cache
def published(blocks: int) -> Modules:
    """Of the published widths, with so many blocks."""
    return modules_of(replace(PUBLISHED, num_blocks=blocks), is_exact=False)


def modules_of(params: DiTParams, *, is_exact: bool) -> Modules:
    """The modules of a DiT of these sizes, and those of its text encoder."""
    shapes = shapes_of_dit(params)
    weights = {name.removesuffix(".weight"): shape for name, shape in shapes.items()
               if name.endswith(".weight")}  # fmt: skip
    targets = (*DIT_TARGETS, *LLM_ADAPTER_TARGETS)
    text = text_encoder_shapes()
    return Modules(
        shapes={**weights, **text},
        biases=frozenset(n.removesuffix(".bias") for n in shapes if n.endswith(".bias")),
        targets=frozenset(p for p in weights if any(matches_target(t, p) for t in targets)),
        aliases={**dict(text_encoder_names(text)), **diffusers_names(weights)},
        is_exact=is_exact,
    )


def text_encoder_shapes() -> dict[str, Shape]:
    """Qwen3-0.6B's modules by the names ComfyUI has for them."""
    shapes: dict[str, Shape] = {f"{QWEN}embed_tokens": (151936, 1024), f"{QWEN}norm": (1024,)}
    for layer in range(QWEN_LAYERS):
        for name, shape in {**QWEN_LINEARS, **QWEN_NORMS}.items():
            shapes[f"{QWEN}layers.{layer}.{name}"] = shape
    return shapes


def text_encoder_names(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Other spellings that ComfyUI reads, and the path of each."""
    return ((name, path) for path in paths for name in text_encoder_aliases(path))


def diffusers_names(weights: Mapping[str, Shape]) -> dict[str, str]:
    """What diffusers calls the matrices -> path."""
    found = {}
    for path, shape in weights.items():
        start = next(start for start in DIFFUSERS_PARTS if path.startswith(start))
        name = path.removeprefix(start)
        for ours, theirs in DIFFUSERS_WORDS if not start else ():
            name = name.replace(ours, theirs)
        if len(shape) == 2:
            found[DIFFUSERS_PARTS[start] + name] = path
    return found
