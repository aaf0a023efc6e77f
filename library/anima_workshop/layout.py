"""Which modules Anima's adapter files may be for: of the base that is given, else of the published sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from library.anima_backend.modelling.params import MAX_BLOCKS, PUBLISHED, DiTParams
from library.anima_runtime.model_loading import inspect_transformer, shapes_of_dit
from library.errors import AdapterFileError
from networks._anima_arguments import DIT_TARGETS, LLM_ADAPTER_TARGETS
from networks.targets import matches_target
from networks.workshop.adapter_file import AdapterFile, adapter_header, open_adapter
from networks.workshop.modules import Modules, Shape

NUMBERED = re.compile(r"(?:^|[._])blocks[._](\d{1,6})[._]")
LLM_ADAPTER_NUMBERED = re.compile(r"llm_adapter[._]blocks[._]\d+")

QWEN = "text_encoders.qwen3_06b.transformer.model."
"""What ComfyUI calls the text encoder; adapters of it are no start for training here."""
QWEN_OTHERS = ("text_encoders.transformer.model.", "lora_te_")
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
        aliases=dict(text_encoder_names(text)),
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
    dotted, flat = QWEN_OTHERS
    for path in paths:
        name = path.removeprefix(QWEN)
        yield dotted + name, path
        yield flat + name.replace(".", "_"), path
