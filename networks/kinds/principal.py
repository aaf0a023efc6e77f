"""The directions of its input to which a frozen weight answers most: where a LoRA may start."""

from __future__ import annotations

import torch
from torch import Tensor

MORE = 8
ROUNDS = 6
"""Of subspace iteration, with MORE directions than are asked for."""


@torch.no_grad()
def principal_inputs(weight: Tensor, rank: int) -> Tensor:
    """The first right singular vectors of a weight (out, in): (R, in) float32 where it is, orthonormal rows.

    R is rank, or the weight's smaller side. By subspace iteration (Halko et al. 2011, 4.4) from a start
    that is the same each time; no generator of the run is drawn from. On the meta device: nothing.
    """
    wide = weight.detach().float()
    found = min(rank, *wide.shape)
    if wide.is_meta:
        return torch.empty(found, wide.shape[1], device="meta")
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(wide.shape[1], min(rank + MORE, *wide.shape), generator=generator)
    basis = torch.linalg.qr(start.to(wide.device)).Q
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(wide.T @ (wide @ basis)).Q
    turned = torch.linalg.svd(wide @ basis, full_matrices=False).Vh[:found]
    return turned @ basis.T
