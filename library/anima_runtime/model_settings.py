"""Files of settings beside models, and what Qwen3 is built with: sizes, and a few of its settings.

Such files may come from anyone: of a config.json only the settings that belong to the computation
are used, and sizes only compared, so that it can neither ask for a huge network nor for other code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.anima_backend.modelling.params import Shapes, count_blocks
from library.errors import ModelFileError, Problem

if TYPE_CHECKING:
    from transformers import Qwen3Config

QWEN = "the Qwen3-0.6B text encoder, e.g. qwen_3_06b_base.safetensors"
MAX_SETTINGS = 2**22  # bytes

# Of Qwen3-0.6B, for a single file or what a config.json leaves out (transformers' defaults differ).
DEFAULTS = {"rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}
HONOURED = (
    "rope_theta", "rope_parameters", "rope_scaling", "rms_norm_eps", "hidden_act", "attention_bias",
    "max_position_embeddings", "use_sliding_window", "sliding_window", "max_window_layers",
    "layer_types", "tie_word_embeddings",
)  # fmt: skip


def qwen_sizes(shapes: Shapes) -> dict[str, int]:
    """Qwen3Config's sizes. KeyError when a tensor that decides one is missing; IndexError,
    ValueError or ZeroDivisionError when it has a shape that decides none.
    """
    first = "layers.0."
    (head_dim,) = shapes[first + "self_attn.q_norm.weight"]
    vocab, hidden = shapes["embed_tokens.weight"]
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": shapes[first + "mlp.gate_proj.weight"][0],
        "num_hidden_layers": count_blocks(shapes, "layers."),
        "num_attention_heads": shapes[first + "self_attn.q_proj.weight"][0] // head_dim,
        "num_key_value_heads": shapes[first + "self_attn.k_proj.weight"][0] // head_dim,
        "head_dim": head_dim,
    }


def read_qwen_settings(path: str | Path, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The honoured settings of a folder's config.json, if there is one, and `sizes`.

    Raises ModelFileError when the file is unreadable, of another model or of other sizes.
    """
    file = Path(path) / "config.json"
    if not os.path.isfile(file):
        return {**DEFAULTS, **sizes}
    settings = read_json(file)
    kind = settings.get("model_type", "qwen3")
    if kind != "qwen3":
        message = f'has model_type "{kind}", expected "qwen3": {QWEN}.'
        raise ModelFileError(message, source=str(file))
    told = {name: settings[name] for name in sizes if settings.get(name) is not None}
    wrong = [
        Problem(f"the tensors have {sizes[name]}.", f"{name} {str(value)[:40]}")
        for name, value in told.items()
        if value != sizes[name]
    ]
    if wrong:
        raise ModelFileError(wrong, source=str(file))
    honoured = {name: settings[name] for name in HONOURED if settings.get(name) is not None}
    rope = honoured.get("rope_parameters")
    defaults = dict(DEFAULTS)
    if isinstance(rope, dict) and "rope_theta" in rope:
        del defaults["rope_theta"]
    return {**defaults, **honoured, **sizes}


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file of settings. Raises ModelFileError."""
    source = str(file)
    try:
        if (length := file.stat().st_size) > MAX_SETTINGS:
            message = f"is {length} bytes long; settings are not. Download it again."
            raise ModelFileError(message, source=source)
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        message = f"cannot be read ({error}). Download it again."
        raise ModelFileError(message, source=source) from error
    if not isinstance(settings, dict):
        message = "holds no settings; expected an object in braces. Download it again."
        raise ModelFileError(message, source=source)
    return settings


def qwen_config(path: str | Path, shapes: Shapes) -> Qwen3Config:
    """Sizes from the tensors, the rest as the folder's config.json says, or as Qwen3-0.6B has it."""
    from transformers import Qwen3Config

    settings = read_qwen_settings(path, qwen_sizes(shapes))
    try:
        return Qwen3Config.from_dict(settings)
    except Exception as error:  # of many kinds, which differ between releases of transformers
        raise refused_settings(path, error) from error


def refused_settings(path: str | Path, error: Exception) -> ModelFileError:
    message = f"transformers refuses it: {' '.join(str(error).split())[:300]}"
    return ModelFileError(message, source=str(Path(path) / "config.json"))
