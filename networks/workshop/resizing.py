"""A module's factors at a smaller rank, of the same kind, or as a LoRA.

Of a LoRA the product of its two factors is cut, of a LoKr its second matrix, which leaves the same
relative error in the whole delta. The scale stays what it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from networks.kinds.lokr import LoKrShape, lokr_shape_of
from networks.kinds.lora import LORA_DOWN, LORA_UP, lora_rank
from networks.kinds.stored import ALPHA, DIFF_B, Factors, stored_scale
from networks.workshop.adapter_file import AdapterFile
from networks.workshop.delta_of import weight_shape
from networks.workshop.deltas import Delta, Dense, LowRank
from networks.workshop.low_rank import RankRule, approximate

LORA, LOKR = "LoRA", "LoKr"
W2, W2_A, W2_B = "lokr_w2", "lokr_w2_a", "lokr_w2_b"


@dataclass(frozen=True)
class Resized:
    """A module made anew.

    factors:       what it has now; None where it stays as it is
    was, now:      its kind
    before, after: its rank; None for a full matrix
    norm:          of its delta, Frobenius; 0 where it was not measured
    error:         |new - old| / |old|
    kept:          why it stays as it is
    """

    factors: Factors | None = None
    was: str = ""
    now: str = ""
    before: int | None = None
    after: int | None = None
    norm: float = 0.0
    error: float = 0.0
    kept: str = ""


def resized(file: AdapterFile, path: str, rule: RankRule, *, to_lora: bool = False) -> Resized:
    """One module of a file. to_lora: also kinds that are no LoRA, which become one.

    Raises ValueError, as the rest of a sentence about the module, for factors that do not fit.
    """
    entry, kind = file.entries[path], file.kind_of(path)
    if entry.needs_base:
        return Resized(kept=f"{kind}: depends on the base model's weight")
    if kind == "norm" or not entry.keys.keys() - {ALPHA, DIFF_B}:
        return Resized(kept=f"{kind}: has no rank")
    delta, factors = file.deltas(path)["weight"], file.factors(path)
    if kind == LORA:
        rank = lora_rank(factors, weight_shape(factors))
        same = Resized(was=LORA, now=LORA, before=rank, after=rank, norm=delta.norm())
        return smaller_lora(factors, rule, same)
    if to_lora and len(delta.shape) == 2:
        return as_lora(factors, delta, rule, kind)
    if kind == LOKR:
        shape = lokr_shape_of(factors, delta.shape)
        same = Resized(
            was=LOKR, now=LOKR, before=shape.w2_rank, after=shape.w2_rank, norm=delta.norm()
        )
        return smaller_lokr(factors, shape, rule, same)
    return Resized(kept=f"{kind}: has no smaller form of its own")


def smaller_lora(factors: Factors, rule: RankRule, same: Resized) -> Resized:
    """same: what it is where no rank can be spared"""
    found = approximate(LowRank(factors[LORA_UP].float(), factors[LORA_DOWN].float()), rule)
    assert same.before is not None, "a LoRA has one"
    if found.rank >= same.before:
        return same
    new = with_scale(factors, {LORA_UP: found.up, LORA_DOWN: found.down}, same.before, found.rank)
    return replace(same, factors=new, after=found.rank, error=found.error)


def smaller_lokr(factors: Factors, shape: LoKrShape, rule: RankRule, same: Resized) -> Resized:
    """A full second matrix becomes a product where that has fewer numbers."""
    second: Delta
    if shape.w2_rank is None:
        second = Dense(factors[W2].float())
        smaller = shape.k * shape.n / (shape.k + shape.n)
    else:
        second, smaller = LowRank(factors[W2_A].float(), factors[W2_B].float()), shape.w2_rank
    found = approximate(second, rule)
    if found.rank >= smaller:
        return same
    new = with_scale(factors, {W2_A: found.up, W2_B: found.down}, shape.rank, found.rank)
    new.pop(W2, None)
    return replace(same, factors=new, after=found.rank, error=found.error)


def with_scale(factors: Factors, new: Factors, rank: int | None, after: int) -> dict[str, Tensor]:
    """The factors with new ones in their places, and an alpha that gives the old scale."""
    made = {**factors, **new}
    if ALPHA in factors:
        made[ALPHA] = torch.tensor(stored_scale(factors, rank) * after)
    return made


def as_lora(factors: Factors, delta: Delta, rule: RankRule, kind: str) -> Resized:
    """Of scale 1; what a file has for the bias stays."""
    found = approximate(delta, rule)
    new = {LORA_UP: found.up, LORA_DOWN: found.down, ALPHA: torch.tensor(float(found.rank))}
    new |= {name: factors[name] for name in (DIFF_B,) if name in factors}
    return Resized(new, kind, LORA, after=found.rank, norm=delta.norm(), error=found.error)
