"""How a file holds a module: kind, rank, alpha, scale and the numbers it is stored in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from networks.kinds.stored import ALPHA, stored_scale
from networks.workshop.adapter_file import AdapterFile
from networks.workshop.delta_of import rank_of


@dataclass(frozen=True)
class Traits:
    """kind:   as AdapterFile.kind_of names it
    rank:   what alpha is divided by; None for a kind without, and for a LoKr of full matrices
    alpha:  as it is stored; None where it is not
    scale:  what the product of the factors is multiplied by
    dtypes: of all but alpha, as headers spell them
    """

    kind: str
    rank: int | None
    alpha: float | None
    scale: float
    dtypes: frozenset[str]


def traits_of(file: AdapterFile, path: str) -> Traits:
    """Only alpha is read. Raises ValueError, as the rest of a sentence about the module, for what does
    not fit, and AdapterFileError for a file that is no longer whole."""
    stored = file.stored(path)
    shapes = {
        name: torch.empty(entry.shape, device="meta")
        for name, entry in stored.items()
        if name != ALPHA
    }
    if ALPHA not in stored:
        return Traits(file.kind_of(path), rank_of(shapes), None, 1.0, dtypes_of(file, path))
    (alpha,) = file.read(file.entries[path].keys[ALPHA])
    rank = rank_of(shapes)
    scale = stored_scale({**shapes, ALPHA: alpha}, rank)
    return Traits(file.kind_of(path), rank, float(alpha), scale, dtypes_of(file, path))


def dtypes_of(file: AdapterFile, path: str) -> frozenset[str]:
    return frozenset(e.dtype for name, e in file.stored(path).items() if name != ALPHA)
