"""Bucket plans: their resolutions against sd-scripts' known lists, their promises as properties."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from library.data.buckets import BucketManager, cropped_fraction, make_bucket_resolutions

edges = st.integers(1, 6000)
steps = st.sampled_from([16, 32, 64, 128])


@st.composite
def managers(draw):
    step = draw(steps)
    width, height = (step * draw(st.integers(1, 24)) for _ in range(2))
    return BucketManager(
        (width, height),
        enable_bucket=draw(st.booleans()),
        min_size=step * draw(st.integers(1, 3)),
        max_size=step * draw(st.integers(4, 40)),
        step=step,
        no_upscale=draw(st.booleans()),
    )


@settings(max_examples=200, deadline=None)
@given(managers(), edges, edges)
def test_a_plan_covers_its_bucket_and_never_exceeds_the_area(manager, width, height):
    plan = manager.plan((width, height))
    for bucket, resized, start in zip(plan.bucket, plan.resized, plan.crop):
        assert bucket % manager.step == 0
        assert 0 <= start and start + bucket <= resized
        assert abs((resized - bucket) - 2 * start) <= 1
    assert plan.bucket[0] * plan.bucket[1] <= manager.max_area
    assert min(plan.resized[i] - plan.bucket[i] for i in (0, 1)) == 0 or plan.resized == (
        width,
        height,
    )


@settings(max_examples=200, deadline=None)
@given(managers(), edges, edges)
def test_a_mirrored_size_is_cropped_just_as_much(manager, width, height):
    if manager.resolution[0] != manager.resolution[1]:
        manager.resolutions = tuple(
            {*manager.resolutions, *((h, w) for w, h in manager.resolutions)}
        )
    across, down = manager.plan((width, height)), manager.plan((height, width))
    assert cropped_fraction(across) == pytest.approx(cropped_fraction(down))


@settings(max_examples=200, deadline=None)
@given(steps, edges, edges)
def test_no_upscale_never_enlarges_unless_a_side_is_shorter_than_a_step(step, width, height):
    manager = BucketManager((1024, 1024), enable_bucket=True, step=step, no_upscale=True)
    plan = manager.plan((width, height))
    if min(width, height) >= step and max(width, height) / min(width, height) <= 1024 / step:
        assert plan.resized[0] <= width and plan.resized[1] <= height
    if min(width, height) >= step and width * height <= 1024 * 1024:
        assert plan.resized == (width, height)


@settings(max_examples=300, deadline=None)
@given(st.integers(2, 24), steps, edges, edges)
@example(16, 64, 1500, 1501)
@example(32, 16, 1201, 1200)
def test_a_picture_that_is_shrunk_loses_no_step_to_rounding(steps_along, step, width, height):
    side = steps_along * step
    if width * height <= side**2 or side**2 < step * max(width, height):
        return  # its own size, or narrower than a step
    bucket = (
        BucketManager((side, side), enable_bucket=True, step=step, no_upscale=True)
        .plan((width, height))
        .bucket
    )
    shrunk = [edge * side / math.sqrt(width * height) for edge in (width, height)]
    nearest = [int(edge + 0.5) // step * step for edge in shrunk]
    is_whole = [edge == near for edge, near in zip(bucket, nearest)]
    assert any(is_whole) or nearest[0] * nearest[1] > side**2
    assert bucket[0] <= width and bucket[1] <= height
    assert all(edge > 0 and edge % step == 0 for edge in bucket)
    assert bucket[0] * bucket[1] <= side**2


@settings(max_examples=100, deadline=None)
@given(edges, edges)
def test_no_other_bucket_would_crop_less(width, height):
    manager = BucketManager((512, 512), enable_bucket=True, min_size=128, max_size=1024)
    kept = {
        bucket: min(width * bucket[1], height * bucket[0])
        / max(width * bucket[1], height * bucket[0])
        for bucket in manager.resolutions
    }
    assert kept[manager.plan((width, height)).bucket] == max(kept.values())


def test_resolutions_are_those_sd_scripts_makes():
    # the rule by hand: for widths 256, 320, ... 1024 the height floor64(512 * 512 / width), both ways
    tall = [(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768)]
    tall += [(384, 640), (448, 576)]
    expected = {(512, 512), *tall, *((height, width) for width, height in tall)}
    assert set(make_bucket_resolutions((512, 512), 256, 1024, 64)) == expected


@pytest.mark.parametrize(
    "size, bucket, resized, crop",
    [
        ((1000, 1000), (512, 512), (512, 512), (0, 0)),
        ((100, 100), (512, 512), (512, 512), (0, 0)),
        ((1024, 512), (704, 320), (704, 352), (0, 16)),
        ((1600, 900), (640, 384), (683, 384), (21, 0)),
        ((900, 1600), (384, 640), (384, 683), (0, 21)),
    ],
)
def test_plans_worked_out_by_hand(size, bucket, resized, crop):
    plan = BucketManager((512, 512), enable_bucket=True, min_size=256, max_size=1024).plan(size)
    assert (plan.bucket, plan.resized, plan.crop) == (bucket, resized, crop)


@pytest.mark.parametrize(
    "size, bucket, resized",
    [
        ((400, 600), (384, 576), (400, 600)),  # small: kept at its own size, only cropped
        (
            (2000, 1000),
            (640, 320),
            (640, 320),
        ),  # large: of 704x320 and 640x320 the one without loss
        ((40, 300), (64, 256), (64, 480)),  # narrower than a step: enlarged to one step
        ((750, 751), (512, 512), (512, 513)),  # 511.66: rounded to the pixel before the step
        ((751, 750), (512, 512), (513, 512)),
    ],
)
def test_no_upscale_plans_worked_out_by_hand(size, bucket, resized):
    plan = BucketManager((512, 512), enable_bucket=True, no_upscale=True).plan(size)
    assert (plan.bucket, plan.resized) == (bucket, resized)


def test_without_buckets_every_picture_gets_the_one_resolution():
    manager = BucketManager((640, 384))
    plan = manager.plan((300, 900))
    assert manager.resolutions == ((640, 384),)
    assert (plan.bucket, plan.resized, plan.crop) == ((640, 384), (640, 1920), (0, 768))
