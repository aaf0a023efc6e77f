"""The flags of kept encoder outputs."""

from __future__ import annotations

from dataclasses import dataclass

from library.settings.effects import needs
from library.settings.options import at_least, flag


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Caches of encoder outputs"""

    cache_latents: bool = flag(False, "encode every picture once, before training")
    cache_latents_to_disk: bool = flag(False, "the same, kept beside the pictures; implies it")
    vae_batch_size: int = flag(
        1,
        "pictures per VAE call while caching",
        check=at_least(1),
        idle=(needs(lambda o: o.cache_latents, "latents are not cached"),),
    )
    skip_cache_check: bool = flag(
        False, "trust cache files by name and shape",
        names=("--skip_cache_check", "--skip_latents_validity_check"), idle=(needs(lambda o: o.cache_latents_to_disk or o.cache_text_encoder_outputs_to_disk, "there are no caches on disk"),))  # fmt: skip
    cache_text_encoder_outputs: bool = flag(
        False, "encode every caption of the run once, shuffled and dropped ones included"
    )
    cache_text_encoder_outputs_to_disk: bool = flag(
        False, "the same, kept beside the pictures; implies it"
    )
    text_cache_variants: int = flag(
        4000, "texts held at once; a run with more encodes them in windows of epochs",
        check=at_least(1), idle=(needs(lambda o: o.cache_text_encoder_outputs, "text encoder outputs are not cached"),))  # fmt: skip
    text_encoder_batch_size: int | None = flag(
        None, "up to so many captions of equal length per text encoder call while caching; without it each is alone",
        check=at_least(1), idle=(needs(lambda o: o.cache_text_encoder_outputs, "text encoder outputs are not cached"),))  # fmt: skip
    no_half_vae: bool = flag(False, "run the VAE in float32")
    lowram: bool = flag(
        False, "load models to the GPU", ignored="models are mapped, which needs no RAM"
    )
    highvram: bool = flag(
        False, "keep cached GPU blocks", ignored="blocks are given back once, after caching"
    )
    disable_mmap_load_safetensors: bool = flag(
        False, "read base models into memory, do not map them"
    )

    def __post_init__(self) -> None:
        """Keeping a cache on disk means caching, as in sd-scripts."""
        for name in ("cache_latents", "cache_text_encoder_outputs"):
            object.__setattr__(self, name, getattr(self, name) or getattr(self, f"{name}_to_disk"))

    @property
    def captions_at_once(self) -> int:
        """That the text encoder gets while captions are cached."""
        return (self.cache_text_encoder_outputs and self.text_encoder_batch_size) or 1
