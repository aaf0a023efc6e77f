"""The DiT of a run without memory: all its modules, to choose and to count by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from library.anima_backend.modelling.dit import Anima
from library.anima_backend.modelling.params import DiTParams
from library.anima_runtime.model_loading import inspect_qwen
from library.anima_runtime.model_settings import qwen_config
from library.device_utils import without_memory

if TYPE_CHECKING:
    from transformers import Qwen3Model


def empty_model(params: DiTParams, text_encoder: str | None = None) -> Anima:
    """On the meta device. text_encoder: the file or folder of one that it holds"""
    with without_memory():
        model = Anima(params)
        if text_encoder:
            model.hold_text_encoder(new_text_encoder(text_encoder))
    return model


def new_text_encoder(path: str) -> Qwen3Model:
    """Of the sizes of a file or folder, with values of its own. Raises ModelFileError."""
    from transformers import Qwen3Model

    return Qwen3Model(qwen_config(path, inspect_qwen(path)))
