"""Previews on a page: small copies as data: addresses, so that it needs no other file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from library.previews.pictures import small_jpeg

LONG_SIDE = 384
BUDGET = 12 * 2**20
"""Bytes of all the pictures in one page."""


@dataclass(frozen=True)
class Picture:
    """A preview. number: of its prompt, from 0; image: a small copy, as a data: address; "": none."""

    step: int
    number: int
    prompt: str
    seed: int
    file: str
    image: str = ""


def thumbnail(path: Path) -> str:
    """The picture in a file, its long side 384 px at most; "" where it cannot be read."""
    return small_jpeg(path, LONG_SIDE)


def within(pictures: Sequence[Picture], budget: int = BUDGET) -> list[Picture]:
    """The pictures, so many of them with their copies that these fit: steps evenly spread, first and last.

    Of a step all pictures keep theirs or none does.
    """
    steps = sorted({picture.step for picture in pictures})
    total = sum(len(picture.image) for picture in pictures)
    count = len(steps) if total <= budget else max(2, len(steps) * budget // total)
    if count >= len(steps):
        return list(pictures)
    kept = {steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)}
    return [picture if picture.step in kept else replace(picture, image="") for picture in pictures]
