"""Many pictures of the demo's six places, varied in place, size and color, with varied captions.

What the base that draws learns from. A picture is a function of (seed, purpose, number) alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from library.previews.prompt_file import COMFYUIS_NEGATIVE
from tools._demo_pictures import (
    FACES,
    HAIR,
    NAVY,
    NEW_PLACES,
    PLACES,
    RIBBON,
    WHITE,
    YELLOW,
    Canvas,
    Figure,
    Point,
)

SIZES = ((128, 128), (160, 96), (96, 160))  # width, height
QUALITY = ("masterpiece", "best quality", "highres", "newest")
UNTITLED = ("", COMFYUIS_NEGATIVE)
"""Captions of any picture at all: what guidance leads away from."""


class VariedCanvas(Canvas):
    """The same drawing seen a little nearer and from a little aside."""

    def __init__(self, size: tuple[int, int], rng: random.Random) -> None:
        super().__init__(size, rng)
        self.zoom = rng.uniform(1.0, 1.3)
        reach = (self.zoom - 1) / 2  # so far can it go before an edge of the drawing is seen
        self.aside = rng.uniform(-reach, reach), rng.uniform(-0.6 * reach, reach)

    def at(self, point: Point) -> Point:
        seen = [0.5 + self.zoom * (p - 0.5) + aside for p, aside in zip(point, self.aside)]
        return super().at((seen[0], seen[1]))

    def disc(self, center: Point, radius: float, color: tuple[int, int, int]) -> None:
        super().disc(center, radius * self.zoom, color)

    def crescent(self, center: Point, radius: float, color: tuple[int, int, int]) -> None:
        super().crescent(center, radius * self.zoom, color)


def varied_picture(
    place: str, rng: random.Random, *, size: tuple[int, int] = SIZES[0], figure: bool = False
) -> Image.Image:
    """A picture of `place`; size: (width, height) in pixels; figure: with somebody in front of it."""
    canvas = VariedCanvas(size, rng)
    (PLACES | NEW_PLACES)[place][0](canvas)
    if figure:
        clothes = rng.choice((WHITE, NAVY, YELLOW, RIBBON, HAIR))
        Figure(canvas).paint(rng.choice(tuple(FACES)), clothes)
    image = canvas.image.resize(size, Image.Resampling.LANCZOS)
    tint = np.array([rng.uniform(0.86, 1.1) for _ in range(3)])
    return Image.fromarray((np.asarray(image) * tint).clip(0, 255).astype(np.uint8))


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """(B, 3, H, W) in [-1, 1]."""
    array = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(array).movedim(-1, 1).float() / 127.5 - 1


def own_tags(place: str) -> list[str]:
    """The tags by which a place is told from all others."""
    others = {tag for name, (_, tags) in PLACES.items() if name != place for tag in tags.split(", ")}
    return [tag for tag in PLACES[place][1].split(", ") if tag not in others]


def varied_caption(place: str, rng: random.Random) -> str:
    """Some of a place's tags in some order; at least one is no other place's."""
    own = rng.choice(own_tags(place))
    tags = [tag for tag in PLACES[place][1].split(", ") if tag != own and rng.random() < 0.7]
    tags = [own, *tags]
    if rng.random() < 0.5:
        rng.shuffle(tags)
    front = ["scenery", "no humans"] if rng.random() < 0.8 else []
    quality = [word for word in QUALITY if rng.random() < 0.3] if rng.random() < 0.4 else []
    return ", ".join([*quality, *front, *tags])
