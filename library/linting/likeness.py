"""Which pictures look alike: a hash of what is seen, and groups of neighbours without comparing all pairs.

The hash is that of Zauner 2010 (pHash): the signs of the lowest frequencies of a small grey copy beside
their median, which scaling, compression and brightness hardly change. What it takes for alike is looked at
again in colour.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from library.data.images import UnreadableImage, open_image, to_rgb

GREY, LOW, SMALL = 32, 8, 8
"""Sides of the grey copy, of the frequencies kept, of the copy in colour."""
BITS = LOW * LOW - 1  # without the mean
MOST_BITS = 8
"""Signs by which pictures that look alike may differ."""
BANDS = MOST_BITS + 1
"""Of two hashes that differ in MOST_BITS places, one of so many parts is the same in both."""
MOST_COLOUR = 12.0
"""Mean difference of the copies in colour, of 255, each less its own mean."""
PLAIN = ("RGB", "L")
ONES = np.array([byte.bit_count() for byte in range(256)], dtype=np.uint8)

Bits = NDArray[np.uint64]


@dataclass(frozen=True)
class Look:
    """bits: the hash, BITS of them; colour: (SMALL, SMALL, 3), each channel less its mean"""

    bits: int
    colour: NDArray[np.float32]


def look_of(path: Path) -> Look:
    """How a picture looks, as displayed. Raises UnreadableImage."""
    with open_image(path) as image:
        try:
            image.draft("RGB", (4 * GREY, 4 * GREY))  # a JPEG need not be decoded in full
            image.load()
            small = image if image.mode in PLAIN else to_rgb(image)
            small = small.resize((2 * GREY, 2 * GREY), Image.Resampling.BOX, reducing_gap=2.0)
            small.info = image.info
            small = to_rgb(ImageOps.exif_transpose(small))
        except (OSError, SyntaxError, ValueError) as error:
            message = f"{path}: the picture is damaged ({error}). Replace it."
            raise UnreadableImage(message) from error
    colour = np.asarray(small.resize((SMALL, SMALL), Image.Resampling.BOX), dtype=np.float32)
    grey = np.asarray(
        small.convert("L").resize((GREY, GREY), Image.Resampling.BOX), dtype=np.float64
    )
    return Look(perceptual_hash(grey), colour - colour.mean(axis=(0, 1)))


def perceptual_hash(grey: NDArray[np.float64]) -> int:
    """BITS signs of a grey picture (GREY, GREY), as the bits of a number."""
    low = cosines() @ grey @ cosines().T
    values = low.ravel()[1:]
    signs = values > np.median(values)
    return int("".join("1" if sign else "0" for sign in signs), 2)


def cosines() -> NDArray[np.float64]:
    """(LOW, GREY): the lowest rows of the discrete cosine transform (DCT-II), not normalised."""
    frequency, place = np.arange(LOW)[:, None], np.arange(GREY)[None, :]
    return np.cos(np.pi / GREY * (place + 0.5) * frequency)


def groups(looks: Sequence[Look]) -> list[list[int]]:
    """Indices of pictures that look alike, two or more together; each is like one other of its group.

    Pictures are compared where one of BANDS parts of their hashes is the same: of pictures that differ that
    is 1 pair in 14. Those that are in one group already are not compared again.
    """
    if not looks:
        return []
    bits = np.array([look.bits for look in looks], dtype=np.uint64)
    colours = np.stack([look.colour for look in looks])
    label = np.arange(len(looks))
    for number, part in enumerate(parts()):
        for members in sharing(part, bits):
            for place, one in enumerate(members[:-1]):
                others = members[place + 1 :]
                others = others[label[others] != label[one]]
                others = others[distances(bits[others], bits[one]) <= MOST_BITS]
                for earlier in parts()[:number] if len(others) else ():
                    others = others[(bits[others] ^ bits[one]) & earlier != 0]  # else compared then
                near = colour_distances(colours[others], colours[one]) <= MOST_COLOUR
                for other in others[near]:
                    label[label == label[other]] = label[one]
    found: dict[int, list[int]] = {}
    for index, name in enumerate(label.tolist()):
        found.setdefault(name, []).append(index)
    return sorted(group for group in found.values() if len(group) > 1)


@cache
def parts() -> list[np.uint64]:
    """BANDS masks: each bit of a hash is in one of them."""
    edges = [round(band * BITS / BANDS) for band in range(BANDS + 1)]
    return [np.uint64((1 << high) - (1 << low)) for low, high in itertools.pairwise(edges)]


def sharing(part: np.uint64, bits: Bits) -> Iterator[NDArray[np.int64]]:
    """Indices of the hashes in which this part is the same, two or more together."""
    values = bits & part
    order = np.argsort(values, kind="stable")
    (cuts,) = np.nonzero(np.diff(values[order]))
    yield from (members for members in np.split(order, cuts + 1) if len(members) > 1)


def distances(many: Bits, one: np.uint64) -> NDArray[np.int64]:
    """In how many places each hash differs from one."""
    different = (many ^ one).view(np.uint8).reshape(len(many), 8)
    return ONES[different].sum(axis=1, dtype=np.int64)


def colour_distances(many: NDArray[np.float32], one: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean absolute difference of each copy in colour from one."""
    found: NDArray[np.float32] = np.abs(many - one).mean(axis=(1, 2, 3))
    return found
