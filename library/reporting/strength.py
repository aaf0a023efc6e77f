"""How strong the adapters are: the norm of each one's weight difference, read in one transfer."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from library.reporting.record import Strengths

BLOCK = re.compile(r"(.*?\b\w*(?:blocks?|layers?)\.\d+)\.(.+)")


def places_of(paths: Sequence[str]) -> list[tuple[str, str]]:
    return [place_of(path) for path in paths]


def place_of(path: str) -> tuple[str, str]:
    """(block, kind of layer) of a module: "blocks.3.attn.q" is layer attn.q of blocks.3.

    What is in no numbered block has the module that holds it in its place.
    """
    if inside := BLOCK.fullmatch(path):
        return inside[1], inside[2]
    block, _, kind = path.rpartition(".")
    return block, kind


@torch.no_grad()
def measure(norms: Sequence[Tensor | None], step: int) -> Strengths:
    """The adapters' norms; waits for the device once. None: its kind does not tell."""
    known = [norm.float() for norm in norms if norm is not None]
    values = iter(torch.stack(known).tolist() if known else ())
    return Strengths(step, [None if norm is None else next(values) for norm in norms])
