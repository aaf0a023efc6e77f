"""Pictures that look alike are found however they were made alike, and others are not."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from library.linting import likeness
from library.linting.likeness import Look, colour_distances, groups, look_of, perceptual_hash


@pytest.fixture(scope="module")
def pictures(demo) -> list[Path]:
    return sorted(path for path in (demo / "pictures").iterdir() if path.suffix in (".png", ".jpg"))


def saved(image, path, **how):
    image.convert("RGB").save(path, **how)
    return path


COPIES = {
    "compressed": lambda image, path: saved(image, path, quality=30),
    "smaller": lambda image, path: saved(image.resize((image.width // 2, image.height // 2)), path),
    "brighter": lambda image, path: saved(ImageEnhance.Brightness(image).enhance(1.15), path),
    "turned by its EXIF": lambda image, path: turned(image, path),
}


def turned(image, path):
    exif = Image.Exif()
    exif[0x0112] = 8
    return saved(image.transpose(Image.Transpose.ROTATE_270), path, exif=exif, quality=90)


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_looks_like_its_picture_and_no_two_others_do(pictures, tmp_path, name):
    paths = list(pictures)
    for path in pictures[::4]:
        with Image.open(path) as image:
            paths.append(COPIES[name](image.convert("RGB"), tmp_path / f"{path.stem}.jpg"))
    expected = [[4 * i, len(pictures) + i] for i in range(len(pictures[::4]))]
    assert groups([look_of(path) for path in paths]) == expected


def test_what_has_the_same_shapes_in_other_colours_is_not_alike(pictures, tmp_path):
    with Image.open(pictures[2]) as image:
        swapped = Image.merge("RGB", image.convert("RGB").split()[::-1])
    looks = [look_of(pictures[2]), look_of(saved(swapped, tmp_path / "a.png"))]
    assert groups(looks) == []
    assert (looks[0].bits ^ looks[1].bits).bit_count() < 20


def test_the_hash_is_of_the_lowest_frequencies():
    wave = np.cos(np.pi / 32 * (np.arange(32) + 0.5) * 3)  # the fourth of the first row alone
    rng = np.random.default_rng(0)
    bits = perceptual_hash(np.ones((32, 1)) * wave + 1e-3 * rng.standard_normal((32, 32)))
    strong = 1 << (likeness.BITS - 3)  # the mean is left out
    assert bits & strong and not perceptual_hash(-np.ones((32, 1)) * wave) & strong


def test_neighbours_are_those_of_a_comparison_of_all_pairs():
    rng, dice = np.random.default_rng(1), random.Random(1)
    looks: list[Look] = []
    for _ in range(60):
        bits, colour = dice.getrandbits(63), rng.normal(0, 30, (8, 8, 3)).astype(np.float32)
        for far in (0, 5, 8, 9, 12):
            flipped = sum(1 << place for place in dice.sample(range(63), far))
            shift = rng.choice([0.0, 11.0, 13.0]).astype(np.float32)
            looks.append(Look(bits ^ flipped, colour + shift))
    near = [
        {j for j, other in enumerate(looks)
         if (one.bits ^ other.bits).bit_count() <= likeness.MOST_BITS
         and colour_distances(other.colour[None], one.colour)[0] <= likeness.MOST_COLOUR}
        for one in looks
    ]  # fmt: skip
    found = groups(looks)
    assert found and all(len(group) > 1 for group in found)
    in_group = {i: set(group) for group in found for i in group}
    for i, neighbours in enumerate(near):
        assert neighbours <= in_group.get(i, {i})
    for group in found:  # joined by neighbours, not by chance
        reached = {group[0]}
        while more := set().union(*(near[i] for i in reached)) - reached:
            reached |= more
        assert reached == set(group)


def test_no_pictures_are_no_groups():
    assert groups([]) == []
