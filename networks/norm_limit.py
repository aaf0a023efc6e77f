"""--scale_weight_norms: no adapter's weight difference grows beyond a norm; after every update."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from networks.adapters import LinearAdapter


@torch.no_grad()
def limit_norms(adapters: Iterable[LinearAdapter], limit: float) -> dict[str, Tensor]:
    """Shrink each adapter whose difference is longer than `limit` (Frobenius norm) to that length.

    Its factors share the shrinking evenly. The differences themselves are never built, and nothing is
    read on the host. Returns scalars for the log, as sd-scripts names them.
    """
    norms = []
    for adapter in adapters:
        chains = adapter.chains()
        norm = abs(adapter.scale) * math.prod(map(chain_norm, chains))
        ratio = (limit / norm.clamp(min=1e-30)).clamp(max=1.0)
        matrices = [matrix for chain in chains for matrix in chain]
        for matrix in matrices:
            matrix.mul_(ratio ** (1 / len(matrices)))
        norms.append(norm)
    found = torch.stack(norms)
    kept = found.clamp(max=limit)
    return {
        "max_norm/keys_scaled": (found > limit).sum().float(),
        "max_norm/average_key_norm": kept.mean(),
        "max_norm/max_key_norm": kept.max(),
    }


def chain_norm(chain: Sequence[Tensor]) -> Tensor:
    """The Frobenius norm of the matrices applied in turn, by their Gram matrices alone."""
    if len(chain) == 1:
        return chain[0].norm()
    first, last = chain  # (r, in), (out, r)
    return ((last.T @ last) * (first @ first.T)).sum().clamp(min=0).sqrt()
