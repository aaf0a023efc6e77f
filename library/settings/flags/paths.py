"""The flags of the base model."""

from __future__ import annotations

from dataclasses import dataclass

from library.settings.flags.shared import NOT_SD
from library.settings.options import flag


@dataclass(frozen=True, kw_only=True)
class ModelPaths:
    """Base model"""

    pretrained_model_name_or_path: str | None = flag(None, "the base model's .safetensors file", path=True)
    vae: str | None = flag(None, "the VAE's .safetensors file", path=True)
    v2: bool = flag(False, "Stable Diffusion 2", ignored=NOT_SD)
    v_parameterization: bool = flag(False, "v-prediction", ignored=NOT_SD)
    tokenizer_cache_dir: str | None = flag(None, "folder for CLIP tokenizers", ignored=NOT_SD)
    clip_skip: int | None = flag(None, "CLIP layers to skip", ignored=NOT_SD)
    max_token_length: int | None = flag(
        None, "CLIP's length", choices=(75, 150, 225), ignored=NOT_SD
    )
