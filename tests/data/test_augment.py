"""Random crops, faces and colours: always inside, as far as promised, the same for the same chance."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from library.data.augment import Face, Framing, change_colours, face_crop, face_in_name, random_crop
from library.data.buckets import BucketManager

sides = st.integers(30, 900)
MANAGER = BucketManager((256, 256), enable_bucket=True, min_size=64, max_size=512, step=32)


@pytest.mark.parametrize(
    "name, face",
    [
        ("girl_100_80_60_50.png", Face(100, 80, 60, 50)),
        ("a_girl_2024_100_80_60_50.jpg", Face(100, 80, 60, 50)),
        ("girl_100_80_60.png", None),
        ("100_80_60_50.png", None),
        ("girl_100_80_0_0.png", None),
        ("girl_100_-80_60_50.png", None),
        ("girl_x_y_w_h.png", None),
    ],
)
def test_a_face_stands_at_the_end_of_the_name(name, face):
    assert face_in_name(Path("folder") / name) == face


@settings(max_examples=200, deadline=None)
@given(sides, sides, st.integers(0, 2**32))
def test_a_random_crop_is_one_of_the_resized_picture(width, height, seed):
    plan = MANAGER.plan((width, height))
    cut = random_crop(plan, random.Random(seed))  # CropPlan itself checks that it is inside
    assert (cut.bucket, cut.resized) == (plan.bucket, plan.resized)
    assert cut == random_crop(plan, random.Random(seed))


def test_random_crops_reach_both_ends():
    plan = BucketManager((64, 64)).plan((100, 64))
    lefts = {random_crop(plan, random.Random(seed)).crop[0] for seed in range(400)}
    assert lefts == set(range(plan.resized[0] - plan.bucket[0] + 1))


@settings(max_examples=300, deadline=None)
@given(sides, sides, st.data(), st.booleans())
def test_a_face_crop_stays_inside_and_keeps_its_promise(width, height, data, scatter):
    face = Face(
        data.draw(st.integers(0, width)), data.draw(st.integers(0, height)),
        data.draw(st.integers(1, width)), data.draw(st.integers(1, height)),
    )  # fmt: skip
    low = data.draw(st.floats(0.5, 4))
    high = low * data.draw(st.floats(1, 3))
    plan = MANAGER.plan((width, height))
    rng = random.Random(data.draw(st.integers(0, 99)))
    cut = face_crop(plan, (width, height), face, Framing((low, high), scatter), rng)
    assert cut.bucket == plan.bucket
    scale = cut.resized[0] / width
    least = max(b / s for b, s in zip(plan.bucket, (width, height)))
    assert scale <= max(1.0, least) + 2 / min(width, height)  # whole pixels of the short side
    part = min(cut.bucket) / (max(face.width, face.height) * scale)
    if least * 1.05 < scale < 0.95:  # neither end of the range was out of reach
        assert low * 0.9 <= part <= high * 1.1
    if not scatter:  # the face's centre is in the picture, where the edge does not forbid it
        centre = [round(c * scale) for c in (face.x, face.y)]
        for place, start, edge, length in zip(centre, cut.crop, cut.bucket, cut.resized):
            assert start - 1 <= min(place, length) <= start + edge + 1


def test_colours_change_a_little_in_a_third_of_the_cases():
    ramp = np.linspace(20, 235, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    ramp[..., 0] = ramp[..., 0][::-1]
    picture = Image.fromarray(ramp)
    changes = []
    for seed in range(300):
        changed = np.asarray(change_colours(picture, random.Random(seed)), dtype=int)
        changes.append(np.abs(changed - ramp).mean())
    share = sum(change > 0 for change in changes) / len(changes)
    assert 0.2 < share < 0.45 and max(changes) < 30
    again = change_colours(picture, random.Random(7))
    assert np.array_equal(again, change_colours(picture, random.Random(7)))
