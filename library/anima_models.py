"""The public loaders of Anima's models, re-stated in one place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from library.anima_backend.modelling.dit import Anima
from library.anima_backend.modelling.vae import QwenImageVAE
from library.anima_runtime import model_loading
from library.anima_runtime.tokenizer_assets import load_qwen_tokenizer as load_anima_qwen_tokenizer
from library.anima_runtime.tokenizer_assets import load_t5_tokenizer as load_anima_t5_tokenizer

if TYPE_CHECKING:
    from transformers import Qwen3Model

__all__ = [
    "Anima",
    "QwenImageVAE",
    "load_anima_qwen_model",
    "load_anima_qwen_tokenizer",
    "load_anima_t5_tokenizer",
    "load_anima_transformer",
    "load_anima_vae",
]


def load_anima_transformer(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    llm_adapter_path: str | Path | None = None,
    attention_backend: str = "torch",
) -> Anima:
    """The DiT with its LLM adapter, frozen; ModelFileError when the file does not fit."""
    model = model_loading.load_transformer(
        path, device=device, dtype=dtype, llm_adapter_path=llm_adapter_path
    )
    model.set_attention_backend(attention_backend)
    return model


def load_anima_vae(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> QwenImageVAE:
    """The VAE: encode (B, 3, H, W) in [-1, 1] to (B, 16, H/8, W/8) normalised means, and decode."""
    return model_loading.load_vae(path, device=device, dtype=dtype)


def load_anima_qwen_model(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16
) -> Qwen3Model:
    """The frozen Qwen3 text encoder, from a Hugging Face folder or the single file."""
    return model_loading.load_qwen(path, device=device, dtype=dtype)
