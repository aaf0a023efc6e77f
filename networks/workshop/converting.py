"""An adapter file's modules in another format: factors renamed, scales folded, other kinds made LoRAs.

Nothing is left out unless it was asked for: what a format cannot hold is named first, all at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from library.errors import AdapterFileError, Problem
from library.utils import first_few
from networks.codec import TEXT_ENCODER_PREFIXES
from networks.kinds.dora import MAGNITUDES, as_dora_scale
from networks.kinds.full import SET_WEIGHT
from networks.kinds.lora import LORA_DOWN, LORA_UP
from networks.kinds.norm import NORM_PARAMETERS
from networks.kinds.oft import BLOCKS
from networks.kinds.stored import ALPHA, DIFF_B, DORA_SCALE, MAGNITUDE, Factors
from networks.workshop.adapter_file import BIASES, AdapterFile
from networks.workshop.deltas import Delta, LowRank, distance
from networks.workshop.low_rank import RankRule, approximate
from networks.workshop.spelling import Spelling
from networks.workshop.spool import Spool

NAMES_SHOWN = 3
TEXT_ENCODER, UNKNOWN, DORA = "text_encoder", "unknown", "dora"
DROPS = {
    "norms": "differences of norms",
    "biases": "differences of biases",
    DORA: "DoRA's magnitudes",
    TEXT_ENCODER: "the text encoder's modules",
    UNKNOWN: "keys that belong nowhere",
}
"""What may be left out, by the word that asks for it."""
HELD = ("LoRA", "norm")
"""Kinds that need not become LoRAs."""

BaseOf = Callable[[str], Mapping[str, Tensor]]
"""A module's own weight and bias, by its path."""


@dataclass(frozen=True)
class Target:
    """What is made of a file.

    rule:  by which other kinds become LoRAs; None leaves them what they are
    dtype: of the new factors; None: as they are stored
    drop:  what is left out, see DROPS
    """

    spelling: Spelling
    rule: RankRule | None = None
    dtype: torch.dtype | None = None
    drop: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Made:
    """A module as it is written.

    before, after: its kinds
    factors:       alpha included
    size:          Frobenius norm of what it added
    error:         of what it adds now, relative to that
    rank:          of a LoRA whose scale became 1
    """

    path: str
    before: str
    after: str
    factors: Mapping[str, Tensor]
    size: float = 0.0
    error: float = 0.0
    rank: int | None = None

    @property
    def summary(self) -> Made:
        """Less the factors."""
        return replace(self, factors={})


class Conversion:
    """A file in another format, a module at a time. Raises AdapterFileError for what stands in the way.

    base_of: what some kinds need; names: of the modules in the format, by path
    kept:    factors that are not left out, by path
    """

    def __init__(self, file: AdapterFile, target: Target, base_of: BaseOf | None = None) -> None:
        self.file, self.target, self.base_of = file, target, base_of
        self.names = target.spelling.names(file.modules)
        self.kept: dict[str, list[str]] = {}
        for path, entry in file.entries.items():
            left = [f for f in entry.keys if self.word_of(path, f) not in target.drop]
            if set(left) - {ALPHA}:
                self.kept[path] = left
        if problems := [*self.malformed()] or [*self.obstacles()]:
            raise AdapterFileError(problems, source=str(file.path))

    def put_into(self, spool: Spool) -> list[Made]:
        """Every module that is kept, its factors put into the spool by their keys.

        Raises AdapterFileError with all that do not fit.
        """
        problems, rows = [], []
        for path in self.kept:
            try:
                made = self.made(path)
            except ValueError as error:
                problems.append(Problem(f"{error}.", path))
                continue
            for factor, tensor in made.factors.items():
                spool.put(self.key(path, factor), tensor)
            rows.append(made.summary)
        if problems:
            raise AdapterFileError(problems, source=str(self.file.path))
        return rows

    def key(self, path: str, factor: str) -> str:
        return f"{self.names[path]}.{self.target.spelling.ending(factor, self.file.kinds)}"

    def dropped(self) -> dict[str, list[str]]:
        """Keys that are left out, by the word that asked for it; of some words there may be none."""
        found = {word: list[str]() for word in DROPS if word in self.target.drop}
        for path, entry in self.file.entries.items():
            for factor, key in entry.keys.items():
                if (word := self.word_of(path, factor)) in found:
                    found[str(word)].append(key)
        if UNKNOWN in found:
            found[UNKNOWN] += self.file.left
        return found

    def word_of(self, path: str, factor: str) -> str | None:
        """The word of DROPS that a factor falls under, if any."""
        if path.startswith(TEXT_ENCODER_PREFIXES):
            return TEXT_ENCODER
        if path in self.file.modules.norms:
            return "norms"
        if factor in BIASES:
            return "biases"
        return DORA if factor in MAGNITUDES else None

    def kind(self, path: str) -> str:
        """As far as it is kept."""
        return self.file.kind_of(path, self.kept[path])

    def becomes_lora(self, path: str) -> bool:
        if self.kind(path) in HELD or set(self.kept[path]) <= {ALPHA, *BIASES}:
            return False
        if len(self.file.modules.shapes[path]) != 2:
            return False
        has_rule = self.target.rule is not None and self.kind(path) != "LoRA with DoRA"
        return self.target.spelling.is_bare or has_rule

    @property
    def has_idle_rule(self) -> bool:
        """A rule is given and nothing becomes a LoRA by it."""
        return self.target.rule is not None and not any(map(self.becomes_lora, self.kept))

    def malformed(self) -> Iterator[Problem]:
        for path in self.kept:
            try:
                self.kind(path)
            except ValueError as error:
                yield Problem(f"{error}.", path)

    def obstacles(self) -> Iterator[Problem]:
        """What the format cannot hold and nobody said is to be left out; no tensor is read."""
        format_, left = self.target.spelling.name, self.file.left
        if not self.kept:
            yield Problem("nothing of the file is left to write.", format_)
        if left and UNKNOWN not in self.target.drop:
            reasons = first_few([f"{key} ({why})" for key, why in left.items()], NAMES_SHOWN)
            message = f"belong nowhere: {reasons}. To leave them out, use --drop {UNKNOWN}."
            yield Problem(message, f"{len(left)} keys")
        for word, paths in self.homeless().items():
            message = (
                f"has no place for {DROPS[word]} ({named(paths)}). To leave them out, use --drop {word}."
            )
            yield Problem(message, format_)
        making = [path for path in self.kept if self.becomes_lora(path)]
        if self.target.rule is None and making:
            kinds = " and ".join(sorted({self.kind(path) for path in making}))
            message = f"holds LoRAs only; of the kind {kinds} are {named(making)}. To make LoRAs of them, "
            yield Problem(f"{message}use --rank, --energy or --error.", format_)
        asking = [path for path in self.kept if self.asks_for_base(path)]
        if self.base_of is None and asking:
            also = " Or use --drop dora." if self.has_dora(asking) else ""
            message = f"what they add depends on the base model: {named(asking)}. Give it with --base."
            yield Problem(message + also, format_)

    def homeless(self) -> dict[str, list[str]]:
        """Paths of what has no place in the format, by the word that would leave it out."""
        found: dict[str, list[str]] = {}
        for path, factors in self.kept.items():
            for word in {self.word_of(path, factor) for factor in factors} - {None, DORA}:
                no_name = word == TEXT_ENCODER and path not in self.names
                if no_name or (word != TEXT_ENCODER and self.target.spelling.is_bare):
                    found.setdefault(str(word), []).append(path)
        return found

    def has_dora(self, paths: Iterable[str]) -> bool:
        return any({*MAGNITUDES} & {*self.kept[path]} for path in paths)

    def asks_for_base(self, path: str) -> bool:
        """A whole norm becomes a difference, and what depends on the weight is computed."""
        kept = self.kept[path]
        if MAGNITUDE in kept or self.file.entries[path].whole.intersection(kept):
            return True
        return self.becomes_lora(path) and not {DORA_SCALE, SET_WEIGHT, BLOCKS}.isdisjoint(kept)

    def made(self, path: str) -> Made:
        file, kind = self.file, self.kind(path)
        factors = {f: t for f, t in file.factors(path).items() if f in self.kept[path]}
        base = self.base_of(path) if self.base_of else None
        is_known = base is not None or not file.entries[path].needs(factors)
        deltas = file.deltas(path, base, factors) if is_known else {}
        if not self.becomes_lora(path) and not (kind == "LoRA" and self.target.spelling.is_bare):
            return self.as_it_is(path, factors, deltas)
        dtype = self.target.dtype or widest(factors)
        weight, error = deltas["weight"], 0.0
        if kind == "LoRA":
            assert isinstance(weight, LowRank), kind
            wanted = weight
        else:
            assert self.target.rule is not None, "an obstacle"
            wanted, error = (found := approximate(weight, self.target.rule)).delta, found.error
        up, down = (part.to(dtype).contiguous() for part in (wanted.up, wanted.down))
        off = relative(distance(LowRank(up.float(), down.float()), wanted), wanted.norm())
        made: dict[str, Tensor] = {LORA_DOWN: down, LORA_UP: up}
        if not self.target.spelling.is_bare:
            made[ALPHA] = torch.tensor(float(len(down)))
        if "bias" in deltas:
            made[DIFF_B] = deltas["bias"].dense().to(dtype)
        return Made(path, kind, "LoRA", made, weight.norm(), math.hypot(error, off), len(down))

    def as_it_is(self, path: str, factors: Factors, deltas: Mapping[str, Delta]) -> Made:
        """Its own factors in the dtype that is asked for; whole norms as differences."""
        plain = dict(factors)
        if MAGNITUDE in plain:
            plain[DORA_SCALE] = self.dora_scale(path, plain)
            del plain[MAGNITUDE]
        for name in self.file.entries[path].whole.intersection(factors):
            plain[name] = deltas[NORM_PARAMETERS[name]].dense()
        if LORA_DOWN in plain and ALPHA not in plain:
            plain[ALPHA] = torch.tensor(float(len(plain[LORA_DOWN])))
        dtype = self.target.dtype
        made = {f: t if f == ALPHA else t.to(dtype or t.dtype) for f, t in plain.items()}
        return rounded(self.file, path, plain, made, deltas)

    def dora_scale(self, path: str, factors: Factors) -> Tensor:
        """That does what PEFT's magnitude does."""
        assert self.base_of is not None, "an obstacle"
        weight = self.base_of(path)["weight"]
        lora = {f: t for f, t in factors.items() if f not in (MAGNITUDE, *BIASES)}
        change = self.file.deltas(path, factors=lora)["weight"].dense()
        return as_dora_scale(change, weight, factors[MAGNITUDE])


def rounded(
    file: AdapterFile, path: str, plain: Factors, made: dict[str, Tensor], deltas: Mapping[str, Delta]
) -> Made:
    """A module of which the factors are rounded to other dtypes, and else stay.

    deltas: what the plain ones add; empty where that is not known
    """
    kind = file.kind_of(path, plain)
    size = math.hypot(*(delta.norm() for delta in deltas.values()))
    if all(torch.equal(made[name].double(), tensor.double()) for name, tensor in plain.items()):
        return Made(path, kind, kind, made, size)
    if file.entries[path].needs(plain):  # how far the stored numbers moved is what is known
        pairs = [(made[f].double(), plain[f].double()) for f in plain if f != ALPHA]
        off = math.hypot(*(float((new - old).norm()) for new, old in pairs))
        whole = math.hypot(*(float(old.norm()) for _, old in pairs))
        return Made(path, kind, kind, made, size, relative(off, whole))
    now = file.deltas(path, None, made)
    off = math.hypot(*(distance(now[name], deltas[name]) for name in deltas))
    return Made(path, kind, kind, made, size, relative(off, size))


def named(paths: list[str]) -> str:
    return f"{len(paths)} modules, {first_few(paths, NAMES_SHOWN)}"


def relative(error: float, size: float) -> float:
    return error / size if size else 0.0


def widest(*modules: Factors) -> torch.dtype:
    """Of all factors but alphas; integers become float32."""
    found = [t.dtype for factors in modules for name, t in factors.items() if name != ALPHA]
    floats = [dtype for dtype in found if dtype.is_floating_point]
    return max(floats, key=lambda dtype: dtype.itemsize, default=torch.float32)
