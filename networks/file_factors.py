"""What the factors that a file has for one module mean: their kind, sizes, alpha and weight change.

Files come from anywhere, so sizes are compared with the module's weight before anything is computed
or allocated. ValueError says what does not fit, as the rest of a sentence about the module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from networks.codec import (
    ALPHA,
    B_NORM,
    DIFF,
    DIFF_B,
    DORA_SCALE,
    LOHA_FACTORS,
    LOKR_FACTORS,
    LORA_DOWN,
    LORA_UP,
    SET_WEIGHT,
    W_NORM,
)
from networks.factors import LoKrShape, adapter_scale, lokr_delta, lora_delta, product

Factors = Mapping[str, Tensor]

KINDS = {
    "LoRA": {LORA_DOWN, LORA_UP},
    "LoKr": set(LOKR_FACTORS),
    "LoHa": set(LOHA_FACTORS),
    "norm": {W_NORM, B_NORM},
    "difference": {DIFF},
    "whole weight": {SET_WEIGHT},
}


def kind_of(factors: Factors) -> str:
    """One of KINDS. Raises ValueError for none and for several."""
    kinds = [kind for kind, names in KINDS.items() if names & factors.keys()]
    if len(kinds) > 1:
        raise ValueError(f"has the factors of a {' and of a '.join(kinds)}")
    if not kinds:
        raise ValueError(f"has {', '.join(sorted(factors))} and no factors")
    return kinds[0]


def matrix(factors: Factors, name: str) -> Tensor:
    """A factor that has to be there and to be a matrix."""
    if name not in factors:
        raise ValueError(f"comes without {name}")
    if factors[name].dim() != 2:
        raise ValueError(f"has {name} of shape {tuple(factors[name].shape)}, expected a matrix")
    return factors[name]


def sizes_of(factors: Factors, first: str, last: str) -> tuple[int, int, int]:
    """(rows, rank, columns) of the product `first` @ `last`."""
    (rows, rank), (inner, columns) = matrix(factors, first).shape, matrix(factors, last).shape
    if rank != inner:
        raise ValueError(f"has {first} of rank {rank} and {last} of rank {inner}")
    if rank == 0:
        raise ValueError(f"has {first} and {last} of rank 0")
    return rows, rank, columns


def lora_rank(factors: Factors, weight: Sequence[int]) -> int:
    """The rank of a LoRA that fits a weight of this shape."""
    rank = len(matrix(factors, LORA_DOWN))
    expected = {LORA_DOWN: (rank, weight[1]), LORA_UP: (weight[0], rank)}
    for name, shape in expected.items():
        found = tuple(matrix(factors, name).shape)
        if found != shape:
            raise ValueError(f"{name} has shape {found}, expected {shape}")
    return sizes_of(factors, LORA_UP, LORA_DOWN)[1]


def lokr_shape_of(factors: Factors, weight: Sequence[int]) -> LoKrShape:
    """The sizes of a LoKr that fits a weight of this shape."""
    sizes: dict[str, tuple[int, int | None, int]] = {}
    for name in ("lokr_w1", "lokr_w2"):
        given = [n for n in (name, f"{name}_a", f"{name}_b") if n in factors]
        if given == [name]:
            rows, columns = matrix(factors, name).shape
            sizes[name] = (rows, None, columns)
        elif given == [f"{name}_a", f"{name}_b"]:
            sizes[name] = sizes_of(factors, *given)
        else:
            found = ", ".join(given) or "neither"
            raise ValueError(f"expected {name}, or {name}_a and {name}_b; found {found}")
    (l, w1_rank, m), (k, w2_rank, n) = sizes["lokr_w1"], sizes["lokr_w2"]
    check_shape((l * k, m * n), weight)
    return LoKrShape(l, m, k, n, w1_rank, w2_rank)


def check_shape(found: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(found) != tuple(expected):
        raise ValueError(
            f"has factors of a weight of shape {tuple(found)}, expected {tuple(expected)}"
        )


def stored_alpha(factors: Factors, rank: int | None) -> float:
    """A file's alpha as it applies: absent means scale 1; 0 stays 0, as ComfyUI reads it."""
    if ALPHA not in factors:
        return float(rank or 1)
    if factors[ALPHA].numel() != 1:
        raise ValueError(f"alpha holds {factors[ALPHA].numel()} numbers, expected one")
    alpha = float(factors[ALPHA].item())
    if rank is not None and not math.isfinite(alpha):  # full matrices have scale 1 whatever it is
        raise ValueError(f"alpha is {alpha}, expected a finite number")
    return alpha


def is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.float()).all())


def weight_changes(
    factors: Factors, weight: Tensor, bias: Tensor | None, whole: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """What the factors add to a module's weight and bias at strength 1, in float32 where `weight` is.

    whole: factors that hold the parameter itself.  Raises ValueError when they do not fit it.
    """
    unused = dict(factors)
    biases = [unused.pop(name) for name in (B_NORM, DIFF_B) if name in unused]
    changes = {}
    if unused or not biases:
        changes["weight"] = weight_change(unused, weight, whole)
    for change in biases:
        if bias is None:
            raise ValueError("has no bias, but the file has one for it")
        changes["bias"] = difference(change, bias, B_NORM in whole)
    return changes


def weight_change(factors: Factors, weight: Tensor, whole: frozenset[str]) -> Tensor:
    kind = kind_of(factors)
    own = KINDS[kind] | ({ALPHA, DORA_SCALE} if kind in ("LoRA", "LoKr", "LoHa") else {ALPHA})
    if extra := factors.keys() - own:
        raise ValueError(f"has {', '.join(sorted(extra))} beside the factors of a {kind}")
    if kind in ("norm", "difference", "whole weight"):
        (name,) = KINDS[kind] & factors.keys()
        return difference(factors[name], weight, name in whole or kind == "whole weight")
    if weight.dim() != 2:
        raise ValueError(f"has the factors of a {kind}, but is not a matrix")
    change = DELTAS[kind](factors, weight)
    check_shape(change.shape, weight.shape)
    return decomposed(change, weight, factors[DORA_SCALE]) if DORA_SCALE in factors else change


def difference(given: Tensor, parameter: Tensor, is_whole: bool) -> Tensor:
    check_shape(given.shape, parameter.shape)
    given = given.to(parameter.device, torch.float32)
    return given - parameter.float() if is_whole else given


def lora_change(factors: Factors, weight: Tensor) -> Tensor:
    rank = lora_rank(factors, weight.shape)
    down, up = (factors[name].to(weight.device, torch.float32) for name in (LORA_DOWN, LORA_UP))
    return adapter_scale(stored_alpha(factors, rank), rank) * lora_delta(down, up)


def lokr_change(factors: Factors, weight: Tensor) -> Tensor:
    shape = lokr_shape_of(factors, weight.shape)
    w1, w2 = (
        [factors[name].to(weight.device, torch.float32) for name in names if name in factors]
        for names in (
            ("lokr_w1", "lokr_w1_b", "lokr_w1_a"),
            ("lokr_w2", "lokr_w2_b", "lokr_w2_a"),
        )
    )
    scale = adapter_scale(stored_alpha(factors, shape.rank), shape.rank)
    return scale * lokr_delta(product(w1), w2)


def loha_change(factors: Factors, weight: Tensor) -> Tensor:
    """scale * (w1_a @ w1_b) * (w2_a @ w2_b), entry by entry; the rank is w1_b's."""
    pairs = [("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")]
    for pair in pairs:
        rows, rank, columns = sizes_of(factors, *pair)
        check_shape((rows, columns), weight.shape)
    first, second = (
        factors[a].to(weight.device, torch.float32) @ factors[b].to(weight.device, torch.float32)
        for a, b in pairs
    )
    rank = len(factors["hada_w1_b"])
    return adapter_scale(stored_alpha(factors, rank), rank) * first * second


DELTAS = {"LoRA": lora_change, "LoKr": lokr_change, "LoHa": loha_change}


def decomposed(change: Tensor, weight: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA's change from a plain one, as ComfyUI has it: (weight + change) brought to `magnitude`.

    magnitude: (out, 1), relative to the rows of the weight, or (1, in), to the columns of the sum
    """
    out, width = weight.shape
    weight, magnitude = weight.float(), magnitude.to(weight.device, torch.float32)
    eps = torch.finfo(weight.dtype).eps
    total = weight + change
    if magnitude.shape == (out, 1):
        norm = weight.norm(dim=1, keepdim=True)
    elif magnitude.shape == (1, width):
        norm = total.norm(dim=0, keepdim=True)
    else:
        found = tuple(magnitude.shape)
        raise ValueError(f"has dora_scale of shape {found}, expected {(out, 1)} or {(1, width)}")
    return total * (magnitude / (norm + eps)) - weight
