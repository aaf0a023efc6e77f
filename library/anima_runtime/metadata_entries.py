"""What Anima adds to the metadata of its files: at the start of a run, and when the first is written."""

from __future__ import annotations

import logging
from pathlib import Path

from library.anima_runtime.config_adapter import AnimaConfig
from library.anima_runtime.family import ANIMA_METADATA
from library.anima_runtime.model_facts import ModelFiles
from library.errors import ModelFileError
from library.saving.metadata import FileHashes, legacy_hash

logger = logging.getLogger(__name__)


def run_entries(
    files: ModelFiles, anima: AnimaConfig, attention: str, padding: str, *, fused: bool
) -> dict[str, str]:
    """Which files a run trains on, how it reads and pads text, which kernels compute attention and norms."""
    entries = {}
    for role, path in files.by_role().items():
        entries[f"ss_{role}_name"] = Path(path).name
        if Path(path).is_file():
            entries[f"ss_{role}_hash"] = legacy_hash(path)
    return entries | {
        **ANIMA_METADATA,
        "ss_qwen3_max_token_length": str(anima.qwen_max_length),
        "ss_t5_max_token_length": str(anima.t5_max_length),
        "ss_empty_caption": anima.empty_caption,
        "ss_attention": attention,
        "ss_fused_kernels": str(fused),
        "ss_text_padding": padding,
        "modelspec.implementation": "https://huggingface.co/circlestone-labs/Anima",
    }


def hash_entries(files: ModelFiles, hashes: FileHashes) -> dict[str, str]:
    """The base models' hashes, as far as their files can still be read: weights are not lost to it."""
    found = {}
    for role in files.by_role():
        try:
            digest = hashes.get(role)
        except ModelFileError as error:
            logger.warning("saved without the hash of a base model: %s", error)
            continue
        if digest:
            found[f"ss_new_{role}_hash"] = digest
    return found
