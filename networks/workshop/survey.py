"""A file measured module by module: norms, singular values, alpha, and the numbers it is stored in.

One module is in memory at a time. What cannot be measured is kept with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from library.system.tensor_files import NUMBERS
from networks.codec import split_factor
from networks.kinds.stored import ALPHA, Factors
from networks.workshop.adapter_file import AdapterFile, NeedsBase
from networks.workshop.comparing import WeightsOf
from networks.workshop.delta_of import rank_of
from networks.workshop.deltas import Delta, Kronecker, LowRank
from networks.workshop.number_range import NumberRange

VALUES_KEPT = 128
"""Singular values of a module that are kept, the largest ones."""
PART = 2**18
"""Numbers whose squares are added in float32."""
LARGEST = 600
"""The shorter side of a matrix whose singular values are computed: larger ones take minutes for a file."""


@dataclass(frozen=True)
class Measured:
    """One module of a file.

    kind:     as AdapterFile.kind_of says; "" for factors of no kind
    rank:     what alpha is divided by; None where nothing is
    alpha:    as it is stored; None where it is not, NaN where it is not one number
    shape:    of the weight that is changed; () where it is not known
    norm:     Frobenius norm of the delta, of weight and bias together; None where it is not known
    problem:  why it is not: the rest of a sentence about the module
    waits:    the reason is that there is no base
    values:   singular values, descending, the VALUES_KEPT largest; empty for vectors and what is too large
    effective_rank: of all singular values, see effective_rank; None without them
    base:     norm of the base's own weight and bias; None without a base
    """

    path: str
    kind: str
    rank: int | None = None
    alpha: float | None = None
    shape: tuple[int, ...] = ()
    norm: float | None = None
    problem: str = ""
    waits: bool = False
    values: Sequence[float] = ()
    effective_rank: float | None = None
    base: float | None = None

    @property
    def relative(self) -> float | None:
        """The norm as a part of the base's."""
        return self.norm / self.base if self.norm is not None and self.base else None


@dataclass(frozen=True)
class Survey:
    """modules: in the order of the model
    ranges:  dtype -> the numbers stored in it, without alphas
    broken:  key -> how many of its numbers are not finite, without alphas
    zero:    ending of keys -> those of them that hold nothing but 0
    endings: ending of keys -> how many there are, without alphas
    """

    modules: Sequence[Measured]
    ranges: Mapping[str, NumberRange] = field(default_factory=dict)
    broken: Mapping[str, int] = field(default_factory=dict)
    zero: Mapping[str, Sequence[str]] = field(default_factory=dict)
    endings: Mapping[str, int] = field(default_factory=dict)


class Surveyor:
    """Counts what a file's tensors hold while its modules are measured."""

    def __init__(self, file: AdapterFile, base: WeightsOf | None) -> None:
        self.file, self.base = file, base
        self.ranges: dict[str, NumberRange] = {}
        self.broken: dict[str, int] = {}
        self.zero: dict[str, list[str]] = {}
        self.endings: dict[str, int] = {}

    def survey(self) -> Survey:
        modules = [self.measure(path) for path in self.file]
        for key in self.file.left:
            entry = self.file.header.entries[key]
            if entry.dtype in NUMBERS:
                self.count(key, self.file.read(key)[0])
        return Survey(modules, self.ranges, self.broken, self.zero, self.endings)

    def count(self, key: str, tensor: Tensor) -> None:
        split = split_factor(key, self.file.kinds)
        ending = key[len(split[0]) + 1 :] if split else key.rpartition(".")[2]
        if split and split[1] == ALPHA:
            return
        dtype = self.file.header.entries[key].dtype
        broken, is_zero = self.ranges.setdefault(dtype, NumberRange()).add(tensor)
        self.endings[ending] = self.endings.get(ending, 0) + 1
        if broken:
            self.broken[key] = broken
        if is_zero:
            self.zero.setdefault(ending, []).append(key)

    def measure(self, path: str) -> Measured:
        keys, factors = self.file.entries[path].keys, self.file.factors(path)
        for factor, tensor in factors.items():
            self.count(keys[factor], tensor)
        weights = (self.base(path) if self.base else None) or None
        of_base = norm_of(weights.values()) if weights else None
        found = Measured(path, "", alpha=alpha_of(factors), base=of_base)
        try:
            found = replace(found, kind=self.file.kind_of(path))
            rank = rank_of({name: tensor for name, tensor in factors.items() if name != ALPHA})
            found = replace(found, rank=rank)
            return with_figures(found, self.file.deltas(path, weights, factors))
        except (NeedsBase, ValueError) as error:
            return replace(found, problem=str(error), waits=isinstance(error, NeedsBase))


def survey(file: AdapterFile, base: WeightsOf | None = None) -> Survey:
    """base: gives a module's own weight and bias; nothing for one that the base has not.

    Raises AdapterFileError for a file that is no longer whole.
    """
    return Surveyor(file, base).survey()


def alpha_of(factors: Factors) -> float | None:
    if ALPHA not in factors:
        return None
    alpha = factors[ALPHA]
    return float(alpha.item()) if alpha.numel() == 1 else math.nan


def norm_of(tensors: Iterable[Tensor]) -> float:
    """Of all numbers together: float32 within a part, float64 over the parts, so that nothing is copied."""
    parts = (part for tensor in tensors for part in tensor.reshape(-1).split(PART))
    return math.hypot(*(float(torch.linalg.vector_norm(part)) for part in parts))


def with_figures(module: Measured, deltas: Mapping[str, Delta]) -> Measured:
    """The module with what is measured of its deltas. Raises ValueError where that is infinite."""
    norm = math.hypot(*(delta.norm() for delta in deltas.values()))
    if not math.isfinite(norm):
        raise ValueError("adds what is larger than float32 can hold")
    main = deltas.get("weight") or deltas["bias"]
    values = singular_values(main)
    return replace(
        module,
        shape=main.shape,
        norm=norm,
        values=values[:VALUES_KEPT].tolist(),
        effective_rank=effective_rank(values) if len(values) else None,
    )


def singular_values(delta: Delta) -> Tensor:
    """Descending; none for a vector, and for what is too large."""
    if len(delta.shape) != 2 or decomposed(delta) > LARGEST:
        return torch.empty(0)
    return delta.values().clamp_min(0)


def decomposed(delta: Delta) -> int:
    """The shorter side of the largest matrix that has to be decomposed."""
    if isinstance(delta, LowRank):
        return min(delta.up.shape[1], *delta.shape)
    if isinstance(delta, Kronecker):
        return max(min(delta.first.shape), min(delta.second.shape))
    return min(delta.shape)


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the singular values as shares of their sum: 1 for one direction, n for n
    equal ones; 0 for a delta of zero. Roy and Vetterli 2007, "The effective rank"."""
    values = values.double()
    total = float(values.sum())
    if total == 0:
        return 0.0
    shares = values / total
    return math.exp(-float(torch.special.xlogy(shares, shares).sum()))
