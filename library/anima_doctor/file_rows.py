"""What the model files of a run are, as rows of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

from library.anima_backend.modelling.params import DiTParams
from library.anima_doctor.page import size_text
from library.anima_runtime import key_mapping, model_loading, model_tensors
from library.anima_runtime.config_adapter import AnimaConfig
from library.anima_runtime.quantised_files import MARK, read_layout
from library.errors import UserError
from library.saving.metadata import legacy_hash
from library.settings.run_config import TrainConfig
from library.system.tensor_files import CODES, FLOATS


def file_rows(
    train: TrainConfig, anima: AnimaConfig, params: DiTParams | None
) -> Iterator[tuple[str, str]]:
    """Each file that was named: its path, then what its header says it is; params: of the DiT."""
    network = train.network
    named = [
        ("DiT", anima.anima_transformer),
        ("LLM adapter", anima.llm_adapter_path),
        ("VAE", train.paths.vae),
        ("Qwen", anima.qwen),
        ("network_weights", network.network_weights),
        *(("base_weights", file) for file in network.base_weights or ()),
    ]
    for role, path in named:
        if path:
            yield role, path
            yield "", describe_file(path)
    if params:
        yield "the DiT has", f"{params.num_blocks} blocks, {params.model_dim} wide"
    yield "attention", anima.attention_backend


def describe_file(path: str) -> str:
    """What a weight file or folder is: size, parameters, dtypes and kind, by its headers."""
    try:
        files = model_loading.qwen_files(path)
        if Path(path).is_dir() and model_loading.vae_file(path) != Path(path):
            files = [model_loading.vae_file(path)]
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: Counter[str] = Counter()
        layouts: list[str] = []
        for file in files:
            found, kinds = model_tensors.shapes_and_dtypes(file, "a model")
            shapes |= found
            dtypes.update(kinds.values())
            layouts.append(read_layout(file, "a model", floats_and_codes(kinds)).describe())
    except UserError:
        return "cannot be used: see the result"
    size = sum(file.stat().st_size for file in files)
    stored = ", ".join(f"{name} ({count} tensors)" for name, count in dtypes.most_common())
    prefix = key_mapping.transformer_prefix(shapes)
    parts = [
        key_mapping.guess_kind(shapes).partition(",")[0],
        size_text(size),
        f"{sum(map(prod, shapes.values())):,} parameters",
        stored,
        *(f"8 bits: {layout}" for layout in layouts if layout),
        f"keys begin with {prefix!r}" if prefix else "",
        "Wan 2.1 layout" if model_loading.WAN_MARK in shapes else "",
        f"hash {legacy_hash(files[0])}" if size > 2**21 else "",
    ]
    return ", ".join(part for part in parts if part)


def floats_and_codes(dtypes: Mapping[str, str]) -> list[str]:
    """The keys of what may be weights, and of marks on them."""
    may_be = FLOATS | CODES
    return [key for key, dtype in dtypes.items() if dtype in may_be or key.endswith(f".{MARK}")]
