"""A module's factors as a Delta, of the form that keeps them apart where the kind has one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from networks.kinds.full import DIFF
from networks.kinds.kind import Kinds
from networks.kinds.loha import PAIRS
from networks.kinds.lokr import FACTORS as LOKR_FACTORS
from networks.kinds.lokr import lokr_shape_of, product
from networks.kinds.lora import LORA_DOWN, LORA_UP, lora_rank
from networks.kinds.norm import W_NORM
from networks.kinds.stored import ALPHA, Factors, check_shape, matrix, sizes_of, stored_scale
from networks.workshop.deltas import Delta, Dense, Kronecker, LowRank

LOHA_FACTORS = {name for pair in PAIRS for name in pair}
LARGEST = 2**29
"""Numbers of a weight: a file of a stranger could else ask for any memory. The largest matrix of a
published model, a text encoder's table of words, has 0.16e9."""


def delta_of(factors: Factors, weight: Tensor | None, kinds: Kinds) -> Delta:
    """What a file's factors, all of one kind, add to a weight; ValueError when they do not fit.

    weight: what they are added to; without it their own sizes are believed
    """
    kind = kinds.kind_of(factors)
    if extra := factors.keys() - kind.factors.keys() - {ALPHA}:
        raise ValueError(f"has {', '.join(sorted(extra))} beside the factors of a {kind.name}")
    shape = weight_shape(factors) if weight is None else tuple(weight.shape)
    if math.prod(shape) > LARGEST:
        raise ValueError(f"has factors of a weight of shape {shape}; no model has one so large")
    if kind.of_matrices and len(shape) != 2:
        raise ValueError(f"has the factors of a {kind.name}, but is not a matrix")
    if LORA_DOWN in factors or LORA_UP in factors:
        return lora_delta(factors, shape)
    if kind.name == "LoKr":
        return lokr_delta(factors, shape)
    if kind.name == "LoHa" and (small := loha_delta(factors, shape)):
        return small
    if weight is None:
        weight = torch.zeros(()).expand(shape)  # a shape to be compared with, without memory
    change = kind.change(factors, weight)
    check_shape(change.shape, shape)
    return Dense(change)


def rank_of(factors: Factors) -> int | None:
    """The rank that alpha is divided by; None for what has none. Only sizes are looked at.

    Raises ValueError for factors that do not fit one another.
    """
    if LORA_DOWN in factors or LORA_UP in factors:
        return lora_rank(factors, weight_shape(factors))
    if factors.keys() & set(LOKR_FACTORS):
        return lokr_shape_of(factors, weight_shape(factors)).rank
    if factors.keys() & LOHA_FACTORS:
        return sizes_of(factors, *PAIRS[0])[1]
    return None  # OFT's alpha is a limit


def weight_shape(factors: Factors) -> tuple[int, ...]:
    """The shape of the weight that factors are for. Raises ValueError."""
    if LORA_DOWN in factors or LORA_UP in factors:
        return len(matrix(factors, LORA_UP)), matrix(factors, LORA_DOWN).shape[1]
    if factors.keys() & LOHA_FACTORS:
        rows, _, columns = sizes_of(factors, *PAIRS[0])
        return rows, columns
    for name in (W_NORM, DIFF):
        if name in factors:
            return tuple(factors[name].shape)
    sides = []
    for name in ("lokr_w1", "lokr_w2"):
        if name in factors:
            sides.append(tuple(matrix(factors, name).shape))
        else:
            rows, _, columns = sizes_of(factors, f"{name}_a", f"{name}_b")
            sides.append((rows, columns))
    (l, m), (k, n) = sides
    return l * k, m * n


def lora_delta(factors: Factors, shape: tuple[int, ...]) -> LowRank:
    scale = stored_scale(factors, lora_rank(factors, shape))
    return LowRank(scale * factors[LORA_UP].float(), factors[LORA_DOWN].float())


def lokr_delta(factors: Factors, shape: tuple[int, ...]) -> Kronecker:
    scale = stored_scale(factors, lokr_shape_of(factors, shape).rank)
    first, second = (whole_factor(factors, name) for name in ("lokr_w1", "lokr_w2"))
    return Kronecker(scale * first, second)


def whole_factor(factors: Factors, name: str) -> Tensor:
    if name in factors:
        return factors[name].float()
    return product([factors[f"{name}_b"].float(), factors[f"{name}_a"].float()])


def loha_delta(factors: Factors, shape: tuple[int, ...]) -> LowRank | None:
    """An entrywise product of two products of ranks r and s is one product of rank r * s.

    None where that is no smaller than the matrix.
    """
    for pair in PAIRS:
        rows, _, columns = sizes_of(factors, *pair)
        check_shape((rows, columns), shape)
    (up1, down1), (up2, down2) = ([factors[name].float() for name in pair] for pair in PAIRS)
    if len(down1) * len(down2) >= min(shape):
        return None
    scale = stored_scale(factors, len(down1))
    up = torch.einsum("or,os->ors", up1, up2).flatten(1)
    down = torch.einsum("ri,si->rsi", down1, down2).flatten(0, 1)
    return LowRank(scale * up, down)
