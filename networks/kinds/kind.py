"""Kind: a row of the table of kinds, with all that the rest needs to know; and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from library.errors import Problem
from networks.kinds.adapter import Dropout
from networks.kinds.linear import LinearAdapter
from networks.kinds.stored import ALPHA, BIAS, DIFF_B, DORA_SCALE, MAGNITUDE, WEIGHT, Factors

FULL_MATRIX_DIM = 100_000

# Factors that may stand beside those of a kind, spelled as for Kind.factors.
COMMON_FACTORS: Mapping[str, Sequence[str]] = {
    ALPHA: ("alpha",),
    DORA_SCALE: ("dora_scale",),
    MAGNITUDE: (MAGNITUDE, f"{MAGNITUDE}.weight", f"{MAGNITUDE}.default.weight"),
    DIFF_B: ("diff_b", "bias.diff"),
    WEIGHT: ("weight",),
    BIAS: ("bias",),
}
_MERGE = "not trained here; --base_weights can merge it"
COMMON_MERGED_ONLY = {
    DIFF_B: f"a difference of full rank, {_MERGE}",
}
COMMON_TOOLS_ONLY = {
    MAGNITUDE: "PEFT's DoRA, which ComfyUI applies without this; neither trained nor merged here",
}


@dataclass(frozen=True)
class Request:
    """What the network flags ask of every adapter, checked.

    dim:       the rank; from FULL_MATRIX_DIM on, LyCORIS users ask for full matrices by it
    dim_given: it is not the default
    alpha:     None or 0 is the rank
    """

    dim: int
    alpha: float | None
    dropout: Dropout
    dim_given: bool = True

    @property
    def asks_for_full_matrices(self) -> bool:
        return self.dim >= FULL_MATRIX_DIM


@dataclass(frozen=True, kw_only=True)
class KindArguments:
    """The network_args that one kind alone has, and what they make. The base has none.

    ALIASES:       other names of arguments, also of those that all kinds have
    FULL_MATRICES: a network_dim of FULL_MATRIX_DIM or more has a meaning
    OF_THE_START:  arguments that say nothing but how fresh factors begin
    ADDS:          what is trained adds to a weight, so that DoRA's magnitudes can stand beside it
    """

    ALIASES: ClassVar[Mapping[str, str]] = {}
    FULL_MATRICES: ClassVar[bool] = False
    OF_THE_START: ClassVar[tuple[str, ...]] = ()
    ADDS: ClassVar[bool] = True

    @staticmethod
    def problems_of(values: Mapping[str, object]) -> list[Problem]:
        """What is wrong with values that could be read."""
        return []

    def for_request(self, request: Request) -> KindArguments:
        """The arguments as the flags change them."""
        return self

    def without_noise(self) -> KindArguments:
        """The arguments for what sees no noise."""
        return self

    def rank_of_file(self, rank: int) -> int:
        """The rank that files of a network of this rank have."""
        return rank

    def make(self, base: nn.Linear, rank: int, alpha: float, dropout: Dropout) -> LinearAdapter:
        """A fresh adapter for a Linear; it changes nothing yet."""
        raise NotImplementedError

    def remarks(self, adapters: Sequence[LinearAdapter], request: Request) -> Iterator[str]:
        """What was asked for and has no effect on these adapters; sentences to log."""
        yield from ()


@dataclass(frozen=True)
class Training:
    """How a kind of adapter of Linears is trained.

    module:     the part of its --network_module's name that is its own: lora of lora_<family>
    arguments:  its own network_args, which make fresh adapters
    as_file:    an adapter with the sizes of a file's factors, not filled yet; raises ValueError
    usual_rate: learning rates that are common with AdamW, for advice
    """

    module: str
    arguments: type[KindArguments]
    as_file: Callable[[nn.Linear, Factors, Dropout], LinearAdapter]
    usual_rate: str

    def module_of(self, family: str) -> str:
        """The --network_module that trains it in a family's models."""
        return f"networks.{self.module}_{family}"


@dataclass(frozen=True)
class Kind:
    """All that the rest needs to know of one kind of adapter.

    name:        in messages and in the log
    factors:     factor -> the endings of its keys in files; the first is the one that is written
    change:      a file's factors and a weight -> what they add to it, in its shape, float32;
                 raises ValueError when they do not fit
    of_matrices: `change` knows matrices only, and DoRA's magnitude may stand beside the factors
    training:    None for kinds that are only merged, and for norms
    merged_as:   what a file of it is called when it is refused as a start for training
    refused:     last words of keys that are not read, with the reason
    """

    name: str
    factors: Mapping[str, Sequence[str]]
    change: Callable[[Factors, Tensor], Tensor]
    of_matrices: bool = True
    training: Training | None = None
    merged_as: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)


class Kinds(Mapping[str, Kind]):
    """Kinds by name, and how keys are spelled with them.

    endings:     ending of a key -> factor
    written:     factor -> the ending that is written
    merged_only: factor -> why it is no start for training
    tools_only:  factor -> why only tools that look at files read it
    refused:     last word of a key -> why it is not read
    """

    def __init__(self, *kinds: Kind) -> None:
        self._kinds = {kind.name: kind for kind in kinds}
        self.endings: dict[str, str] = {}
        self.written: dict[str, str] = {}
        self.merged_only = dict(COMMON_MERGED_ONLY)
        self.tools_only = dict(COMMON_TOOLS_ONLY)
        self.refused: dict[str, str] = {}
        for factors in (COMMON_FACTORS, *(kind.factors for kind in kinds)):
            self._add(factors)
        for kind in kinds:
            if kind.merged_as:
                self.merged_only |= dict.fromkeys(kind.factors, f"{kind.merged_as}, {_MERGE}")
            self.refused |= kind.refused
        self.longest_first = sorted(self.endings, key=len, reverse=True)

    def _add(self, factors: Mapping[str, Sequence[str]]) -> None:
        for factor, endings in factors.items():
            assert factor not in self.written, f"{factor} is a factor of two kinds"
            self.written[factor] = endings[0]
            self.endings |= dict.fromkeys(endings, factor)

    def __getitem__(self, name: str) -> Kind:
        return self._kinds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def __hash__(self) -> int:  # a table is a constant
        return id(self)

    @property
    def trained(self) -> dict[str, Training]:
        """The kinds that train Linears."""
        return {name: kind.training for name, kind in self.items() if kind.training}

    def among(self, factors: Iterable[str]) -> list[Kind]:
        """The kinds that have one of these factors."""
        return [kind for kind in self.values() if kind.factors.keys() & set(factors)]

    def kind_of(self, factors: Factors) -> Kind:
        """The kind of one module's factors. Raises ValueError for none and for several."""
        kinds = self.among(factors)
        if len(kinds) > 1:
            names = " and of a ".join(kind.name for kind in kinds)
            raise ValueError(f"has the factors of a {names}")
        if not kinds:
            raise ValueError(f"has {', '.join(sorted(factors))} and no factors")
        return kinds[0]
