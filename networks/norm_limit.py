"""--scale_weight_norms: no adapter's weight difference grows beyond a norm; after every update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from networks.kinds.linear import LinearAdapter


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
