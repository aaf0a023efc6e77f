"""What is done to a picture by chance: where it is cropped, and small changes of its colours.

Pure functions of the random generator they are given.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from library.data.buckets import CropPlan, Size, cover

COLOUR_CHANCE = 0.33  # of a picture to be changed at all
HUE_LIMIT = 16.0  # degrees; sd-scripts' 8 counts in half degrees
GAMMA_LIMIT = 0.05


@dataclass(frozen=True)
class Face:
    """A face in the picture: centre and size in pixels of the file."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Framing:
    """How a face is cut out.

    times_the_face: the least and the most that the cut's short side is of the face's long one
    scatter:        away from the face by chance, rather near than far (random_crop)
    """

    times_the_face: tuple[float, float]
    scatter: bool = False


def face_in_name(path: Path) -> Face | None:
    """The face that a name ending in `_<x>_<y>_<width>_<height>` tells of; None when it does not."""
    parts = path.stem.split("_")[1:][-4:]
    if len(parts) < 4 or not all(part.isascii() and part.isdecimal() for part in parts):
        return None
    face = Face(*map(int, parts))
    return face if face.width > 0 and face.height > 0 else None


def random_crop(plan: CropPlan, rng: random.Random) -> CropPlan:
    """The same size cut anywhere out of the resized picture."""
    left, top = (rng.randint(0, long - short) for long, short in zip(plan.resized, plan.bucket))
    return CropPlan(plan.bucket, plan.resized, (left, top))


def face_crop(
    plan: CropPlan, size: Size, face: Face, framing: Framing, rng: random.Random
) -> CropPlan:
    """The bucket cut out around a face. Never enlarged beyond the file, unless the bucket needs it."""
    smallest = cover(size, plan.bucket)
    least = max(smallest[0] / size[0], smallest[1] / size[1])
    wanted = min(plan.bucket) / max(face.width, face.height)
    low, high = (max(least, min(1.0, wanted / part)) for part in reversed(framing.times_the_face))
    scale = rng.uniform(low, high)
    resized = tuple(
        max(edge, math.floor(length * scale + 0.5)) for edge, length in zip(smallest, size)
    )
    starts = []
    for centre, edge, length in zip((face.x, face.y), plan.bucket, resized):
        middle = round(centre * scale)
        start = middle - edge // 2
        if framing.scatter:
            reach = max(length - middle, middle)
            start += rng.randint(0, reach) + rng.randint(0, reach) - reach
        starts.append(max(0, min(start, length - edge)))
    return CropPlan(plan.bucket, (resized[0], resized[1]), (starts[0], starts[1]))


def change_colours(image: Image.Image, rng: random.Random) -> Image.Image:
    """One picture in three a little different: in hue, or in brightness by gamma. RGB in and out."""
    changed, by_hue = rng.random() < COLOUR_CHANCE, rng.random() < 0.5
    amount = rng.uniform(-1.0, 1.0)
    if not changed:
        return image
    if by_hue:
        hue, saturation, value = image.convert("HSV").split()
        shift = round(amount * HUE_LIMIT * 256 / 360)
        turned = (np.asarray(hue, dtype=np.int16) + shift) % 256
        hue = Image.fromarray(turned.astype(np.uint8))
        return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    gamma = 1.0 + amount * GAMMA_LIMIT
    table = [round(255 * (level / 255) ** gamma) for level in range(256)]
    return image.point(table * 3)
