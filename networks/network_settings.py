"""What a network is beside its adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from networks.kinds.kind import Kinds
from networks.kinds.table import KINDS


class NormExport(Enum):
    """What becomes of trained norms in the file.

    OMIT_TRAINED leaves out norms that were trained or loaded; with OMIT there may be none.
    """

    DIFF = "diff"
    OMIT = "omit"
    OMIT_TRAINED = "omit_trained"


@dataclass(frozen=True)
class NetworkSettings:
    """What a network is beside its adapters.

    kind:         the name of the kind that is trained
    used:         it and the others that are trained in some modules
    kinds:        the table of kinds
    dim:          the rank that was asked for; None where a file decided
    modules:      kind -> the --network_module that makes it, for messages
    network_args: the effective arguments, for the metadata
    matches:      pattern -> how many modules it matched
    paths:        every module of the model that could be adapted, to read files by
    norms:        those of them that are norms
    """

    kind: str
    kinds: Kinds = KINDS
    dim: int | None = None
    modules: Mapping[str, str] = field(default_factory=dict)
    network_args: Mapping[str, str] = field(default_factory=dict)
    matches: Mapping[str, int] = field(default_factory=dict)
    paths: frozenset[str] = frozenset()
    norms: frozenset[str] = frozenset()
    loraplus_ratio: float | None = None
    loraplus_text_encoder_ratio: float | None = None
    norm_export: NormExport = NormExport.DIFF
    used: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of all kinds that are trained, for people."""
        return " and ".join(self.used or (self.kind,))

    def loraplus_of(self, text_encoder: bool) -> float | None:
        """How many times faster the factor learns that starts at zero, in one of the two models."""
        return self.loraplus_text_encoder_ratio if text_encoder else self.loraplus_ratio
