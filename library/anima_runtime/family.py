"""ANIMA: what messages about settings need to know of this family."""

from __future__ import annotations

from library.anima_runtime.foreign_files import foreign_message
from library.settings.family import Family
from networks.kinds.table import KINDS

MODULES = {training.module_of("anima"): kind for kind, training in KINDS.trained.items()}
"""--network_module -> the kind of adapter it trains; the first is the default."""

ANIMA = Family({kind: module for module, kind in MODULES.items()}, foreign_message)
