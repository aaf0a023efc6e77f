"""--scale_weight_norms: no adapter's weight difference grows beyond a norm; after every update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from library.errors import Problem
from networks.kinds.linear import LinearAdapter


def limit_problems(adapters: Sequence[LinearAdapter], limit: float | None) -> list[Problem]:
    """Why norms cannot be limited as is asked."""
    names = sorted({adapter.no_norm_limit for adapter in adapters} - {""}) if limit else []
    return [Problem(f"does not go with {name}.", f"scale_weight_norms = {limit:g}") for name in names]


@torch.no_grad()
def limit_norms(adapters: Sequence[LinearAdapter], limit: float) -> dict[str, Tensor]:
    """Shrink each adapter whose difference is longer than `limit` (Frobenius norm) to that length.

    Nothing is read on the host. Returns scalars for the log, as sd-scripts names them.
    """
    found = torch.stack([adapter.limit_norm(limit) for adapter in adapters])
    kept = found.clamp(max=limit)
    return {
        "max_norm/keys_scaled": (found > limit).sum().float(),
        "max_norm/average_key_norm": kept.mean(),
        "max_norm/max_key_norm": kept.max(),
    }
