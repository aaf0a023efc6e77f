"""Changes of full rank, read to be merged: a stored difference, and a stored whole weight."""

from __future__ import annotations

from torch import Tensor

from networks.kinds.kind import Kind
from networks.kinds.stored import Factors, difference

DIFF, SET_WEIGHT = "diff", "set_weight"
_MERGED_AS = "a difference of full rank"


def difference_change(factors: Factors, weight: Tensor) -> Tensor:
    return difference(factors[DIFF], weight, is_whole=False)


def whole_change(factors: Factors, weight: Tensor) -> Tensor:
    return difference(factors[SET_WEIGHT], weight, is_whole=True)


DIFFERENCE = Kind(
    "difference", {DIFF: (DIFF,)}, difference_change, of_matrices=False, merged_as=_MERGED_AS
)
WHOLE = Kind(
    "whole weight", {SET_WEIGHT: (SET_WEIGHT,)}, whole_change, of_matrices=False,
    merged_as=_MERGED_AS,
)  # fmt: skip
