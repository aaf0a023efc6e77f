"""Several adapter files as one that adds what they add together, each with its strength.

LoRAs are joined exactly: their factors side by side, so that ranks add up. What one file alone has for a
module keeps its kind. Norms and differences add up. A sum of LoKrs is a LoKr only where they share a
matrix; all other sums are the nearest LoRA, by a rule for ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from library.errors import AdapterFileError, Problem
from networks.kinds.full import DIFF
from networks.kinds.lora import LORA_DOWN, LORA_UP
from networks.kinds.norm import B_NORM, W_NORM
from networks.kinds.stored import ALPHA, DIFF_B, MAGNITUDE, Factors
from networks.workshop.converting import Made, named, relative, rounded, widest
from networks.workshop.delta_of import delta_of
from networks.workshop.deltas import Delta, Dense, Kronecker, LowRank, Sum, distance
from networks.workshop.low_rank import RankRule, approximate
from networks.workshop.scaling import scaled
from networks.workshop.sources import Source, Sources
from networks.workshop.spelling import Spelling
from networks.workshop.spool import Spool

SAME = 1e-6
"""How far matrices may be apart, relative to their size, that count as one."""
ON_THE_BASE = (
    "is of a kind that depends on the base model's weight. Merge it into the base with --base, or make a "
    "LoRA of it with convert_lora_format.py first"
)


@dataclass(frozen=True)
class Joining:
    """rule: for sums, those of LoRAs too; dtype: of the factors, None: as in the files"""

    sources: Sources
    rule: RankRule | None = None
    dtype: torch.dtype | None = None

    def put_into(self, spool: Spool, spelling: Spelling) -> list[Made]:
        """Every module, by its keys. Raises AdapterFileError with all that cannot be joined."""
        problems: dict[str, list[str]] = {}
        rows = []
        names = spelling.names(self.sources.files[0].file.modules)
        for path in self.sources.paths():
            try:
                made = self.made(path, self.sources.of(path))
            except ValueError as error:
                problems.setdefault(f"{error}.", []).append(path)
                continue
            for factor, tensor in made.factors.items():
                spool.put(f"{names[path]}.{spelling.ending(factor)}", tensor)
            rows.append(made.summary)
        if problems:
            found = [Problem(message, named(paths)) for message, paths in problems.items()]
            raise AdapterFileError(found, source="the files together")
        return rows

    def made(self, path: str, sources: Sequence[Source]) -> Made:
        if len(sources) == 1:
            return self.alone(path, sources[0])
        if any(source.file.entries[path].needs_base for source in sources):
            raise ValueError(ON_THE_BASE)
        read = [source.file.factors(path) for source in sources]
        found = [s.file.deltas(path, None, scaled(f, s.strength)) for s, f in zip(sources, read)]
        kinds = " + ".join(sorted({source.file.kind_of(path) for source in sources}))
        is_norm = path in sources[0].file.modules.norms
        factors, size, off, rank = dict[str, Tensor](), 0.0, 0.0, None
        dtype = self.dtype or widest(*read)
        if weights := [deltas["weight"] for deltas in found if "weight" in deltas]:
            whole = sum_of(weights)
            held, lost = self.held(whole, kinds)
            factors = in_dtype(factors_of(held, is_norm), dtype)
            now = delta_of({f: t.float() for f, t in factors.items()}, None, sources[0].file.kinds)
            size, off = whole.norm(), math.hypot(lost * whole.norm(), distance(now, held))
            rank = len(held.down) if isinstance(held, LowRank) else None
        if biases := [deltas["bias"] for deltas in found if "bias" in deltas]:
            bias = sum_of(biases)
            factors[B_NORM if is_norm else DIFF_B] = bias.dense().to(dtype)
            size = math.hypot(size, bias.norm())
        after = sources[0].file.kind_of(path, factors)
        return Made(path, kinds, after, factors, size, relative(off, size), rank)

    def alone(self, path: str, source: Source) -> Made:
        """What one file alone has, at its strength."""
        file, entry = source.file, source.file.entries[path]
        factors = file.factors(path)
        if entry.needs_base and (source.strength != 1 or entry.whole or MAGNITUDE in factors):
            raise ValueError(ON_THE_BASE)
        plain = factors if source.strength == 1 else scaled(factors, source.strength)
        deltas = {} if entry.needs_base else file.deltas(path, None, plain)
        made = {f: t if f == ALPHA else t.to(self.dtype or factors[f].dtype) for f, t in plain.items()}
        return rounded(file, path, plain, made, deltas)

    def held(self, whole: Delta, kinds: str) -> tuple[Delta, float]:
        """A delta that a file can hold, and its relative error. Raises ValueError where there is none."""
        is_matrix = len(whole.shape) == 2
        if self.rule is not None and is_matrix and not isinstance(whole, Kronecker):
            matrix = Dense(whole.dense()) if isinstance(whole, Sum) else whole
            found = approximate(matrix, self.rule)
            return found.delta, found.error
        if isinstance(whole, Sum):
            raise ValueError(
                f"is {kinds}, whose sum is of neither kind; to make a LoRA of it, use --rank, --energy or "
                "--error"
            )
        return whole, 0.0


def sum_of(terms: Sequence[Delta]) -> Delta:
    """In the form that holds it exactly; a Sum where there is none. Raises ValueError for other shapes."""
    if len(shapes := {term.shape for term in terms}) > 1:
        told = " and ".join(str(shape) for shape in sorted(shapes))
        raise ValueError(f"is of the shapes {told}: the files are for models of other widths")
    loras = [term for term in terms if isinstance(term, LowRank)]
    lokrs = [term for term in terms if isinstance(term, Kronecker)]
    if len(terms) == 1:
        return terms[0]
    if len(loras) == len(terms):
        return LowRank(torch.cat([t.up for t in loras], 1), torch.cat([t.down for t in loras]))
    if all(isinstance(term, Dense) for term in terms):
        return Dense(torch.stack([term.dense() for term in terms]).sum(0))
    if len(lokrs) == len(terms) and len({term.first.shape for term in lokrs}) == 1:
        firsts, seconds = [term.first for term in lokrs], [term.second for term in lokrs]
        if (shares := multiples(firsts)) is not None:
            return Kronecker(firsts[0], weighted(shares, seconds))
        if (shares := multiples(seconds)) is not None:
            return Kronecker(weighted(shares, firsts), seconds[0])
    return Sum(tuple(terms))


def multiples(matrices: Sequence[Tensor]) -> list[float] | None:
    """How often each is the first one; None where one is no multiple of it."""
    first = matrices[0].double()
    if not (size := float(first.square().sum())):
        return None
    shares = [float((each.double() * first).sum()) / size for each in matrices]
    rests = [float((m.double() - share * first).norm()) for m, share in zip(matrices, shares)]
    is_shared = all(rest <= SAME * float(m.norm()) for rest, m in zip(rests, matrices))
    return shares if is_shared else None


def weighted(shares: Sequence[float], matrices: Sequence[Tensor]) -> Tensor:
    return torch.stack([share * matrix for share, matrix in zip(shares, matrices)]).sum(0)


def factors_of(delta: Delta, is_norm: bool) -> dict[str, Tensor]:
    """As a file has them, with scale 1."""
    if isinstance(delta, LowRank):
        rank = torch.tensor(float(len(delta.down)))
        return {LORA_DOWN: delta.down, LORA_UP: delta.up, ALPHA: rank}
    if isinstance(delta, Kronecker):
        return {"lokr_w1": delta.first, "lokr_w2": delta.second, ALPHA: torch.tensor(1.0)}
    return {W_NORM if is_norm else DIFF: delta.dense()}


def in_dtype(factors: Factors, dtype: torch.dtype) -> dict[str, Tensor]:
    return {f: t if f == ALPHA else t.to(dtype).contiguous() for f, t in factors.items()}
