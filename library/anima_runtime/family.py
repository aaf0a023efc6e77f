"""ANIMA, ANIMA_FILES, ANIMA_METADATA: what agnostic code needs to know of this family by name."""

from __future__ import annotations

from library.anima_runtime.foreign_files import foreign_message, import_command
from library.settings.family import Family
from networks.file_contents import FamilyFiles
from networks.kinds.table import KINDS

MODULES = {training.module_of("anima"): kind for kind, training in KINDS.trained.items()}
"""--network_module -> the kind of adapter it trains; the first is the default."""

ANIMA = Family({kind: module for module, kind in MODULES.items()}, foreign_message, import_command)

ANIMA_FILES = FamilyFiles(
    name="anima",
    front="llm_adapter",
    embeddings=("llm_adapter.embed",),
    text_encoder="qwen3_06b",
)
"""What other programs know adapter files of it by."""

ANIMA_METADATA = {"ss_base_model_version": "anima", "modelspec.architecture": "anima/lora"}
"""What adapter files of it say of themselves."""
