"""The universal form of a LoRA: what programs take that read neither alpha, norms nor other kinds.

<prefix><path>.lora_A.weight and lora_B.weight, the scale inside B. A delta that is no product of two
matrices becomes the best one of a rank, by singular values.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from networks.kinds.linear import AdditiveAdapter
from networks.kinds.lokr import product
from networks.kinds.lora import LORA_DOWN, LORA_UP
from networks.workshop.deltas import Delta, Kronecker, LowRank
from networks.workshop.low_rank import RankRule, approximate
from networks.workshop.spelling import UNIVERSAL


@dataclass(frozen=True)
class Universal:
    """tensors: key -> float32 factor
    errors:  path -> |delta - LoRA| / |delta| (Frobenius) of the modules that are approximated
    error:   the same of all modules together
    """

    tensors: Mapping[str, Tensor]
    errors: Mapping[str, float] = field(default_factory=dict)
    error: float = 0.0


def universal_key(path: str, factor: str) -> str:
    """The key of a LoRA's factor, e.g. diffusion_model.blocks.0.mlp.layer1.lora_A.weight."""
    return f"{UNIVERSAL.prefix}{path}.{UNIVERSAL.ending(factor)}"


@torch.no_grad()
def universal(
    deltas: Mapping[str, Delta], rule: RankRule, cut: Collection[str] = ()
) -> Universal:
    """Deltas by module path as LoRAs of scale 1.

    rule: for those that are none, and for those of `cut`; other LoRAs stay exact
    """
    tensors: dict[str, Tensor] = {}
    errors, lost, whole = {}, 0.0, 0.0
    for path, delta in deltas.items():
        size = delta.norm()
        if isinstance(delta, LowRank) and path not in cut:
            up, down = delta.up, delta.down
        else:
            up, down, errors[path] = approximate(delta, rule)
            lost += (errors[path] * size) ** 2
        whole += size**2
        tensors[universal_key(path, LORA_DOWN)] = down.contiguous()
        tensors[universal_key(path, LORA_UP)] = up.contiguous()
    return Universal(tensors, errors, math.sqrt(lost / whole) if whole else 0.0)


@torch.no_grad()
def delta_of_adapter(adapter: AdditiveAdapter) -> Delta:
    """What an adapter adds to its weight at strength 1, by its own factors; float32 on the CPU."""
    chains = [[m.detach().to("cpu", torch.float32) for m in chain] for chain in adapter.chains()]
    if len(chains) == 2:
        first, second = map(product, chains)
        return Kronecker(adapter.scale * first, second)
    ((down, up),) = chains
    return LowRank(adapter.scale * up, down)
