"""Reading the factors that a file has for one module: sizes, alpha, scale; and the factors of no kind.

Files come from anywhere, so sizes are compared with the module's weight before anything is computed
or allocated. ValueError says what does not fit, as the rest of a sentence about the module.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

Factors = Mapping[str, Tensor]

ALPHA, DORA_SCALE, DIFF_B, WEIGHT, BIAS = "alpha", "dora_scale", "diff_b", "weight", "bias"
MAGNITUDE = "lora_magnitude_vector"


def training_alpha(alpha: float | None, rank: int, *, rank_stabilized: bool = False) -> float:
    """The alpha that is trained and written: `alpha`, or the rank when it is 0 or not given.

    rank_stabilized: the scale is alpha / sqrt(rank) (Kalajdzievski 2023, rsLoRA). Every program divides
    by the rank, so that alpha * sqrt(rank) is written; of the precision that files hold.
    """
    chosen = float(alpha) if alpha else float(rank)
    return torch.tensor(chosen * math.sqrt(rank), device="cpu").item() if rank_stabilized else chosen


def adapter_scale(alpha: float, rank: int | None) -> float:
    """alpha / rank; 1 without a rank (LoKr with both factors full). A stored alpha of 0 gives 0."""
    return 1.0 if rank is None else alpha / rank


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


def stored_scale(factors: Factors, rank: int | None) -> float:
    return adapter_scale(stored_alpha(factors, rank), rank)


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


def check_shape(found: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(found) != tuple(expected):
        raise ValueError(
            f"has factors of a weight of shape {tuple(found)}, expected {tuple(expected)}"
        )


def float32_beside(weight: Tensor, factors: Factors, names: Iterable[str]) -> list[Tensor]:
    """Those of the named factors that there are, in float32 where `weight` is."""
    return [factors[name].to(weight.device, torch.float32) for name in names if name in factors]


def difference(given: Tensor, parameter: Tensor, is_whole: bool) -> Tensor:
    """What a stored difference, or a whole parameter, adds to the parameter; float32."""
    check_shape(given.shape, parameter.shape)
    given = given.to(parameter.device, torch.float32)
    return given - parameter.float() if is_whole else given


def is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.float()).all())
