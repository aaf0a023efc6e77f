"""KINDS: every kind of adapter that files may hold, one row each."""

from __future__ import annotations

from networks.kinds import full, loha, lokr, lora, norm, oft
from networks.kinds.kind import Kinds

KINDS = Kinds(
    lora.KIND,
    lokr.KIND,
    loha.KIND,
    oft.KIND,
    norm.KIND,
    full.DIFFERENCE,
    full.WHOLE,
)
