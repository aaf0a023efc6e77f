"""A module's factors at another strength, their shapes and their rank as they were."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from networks.kinds.dora import MAGNITUDES
from networks.kinds.full import DIFF, SET_WEIGHT
from networks.kinds.lora import LORA_UP
from networks.kinds.norm import W_NORM
from networks.kinds.stored import ALPHA, Factors, stored_alpha
from networks.workshop.adapter_file import BIASES
from networks.workshop.delta_of import rank_of

TAKES_STRENGTH = (LORA_UP, "lokr_w1", "lokr_w1_a", "hada_w1_a", W_NORM, DIFF)
"""The factor that is multiplied where alpha does not count: the first that there is."""


def scaled(factors: Factors, strength: float, whole: Collection[str] = ()) -> dict[str, Tensor]:
    """The factors of `strength` times the delta; where there is an alpha that counts, it alone changes.

    whole: factors that are no differences. Raises ValueError, as the rest of a sentence about the module,
    for what depends on the base model's weight.
    """
    if {*MAGNITUDES, SET_WEIGHT, *whole} & factors.keys():
        raise ValueError("depends on the base model's weight, so that it has no other strength")
    made = dict(factors)
    for name in BIASES:
        if name in made:
            made[name] = strength * made[name].float()
    rank = rank_of(factors)
    if ALPHA in factors and rank is not None:
        made[ALPHA] = torch.tensor(strength * stored_alpha(factors, rank))
        return made
    for name in TAKES_STRENGTH:
        if name in made:
            made[name] = strength * made[name].float()
            break
    return made
