"""Bucket resolutions, the choice among them, and the resize-and-crop plan of a picture.

Resolutions are made as sd-scripts makes them. The choice deviates: sd-scripts takes the smallest
difference of aspect ratios, which favours wide pictures over tall ones; here the bucket that crops
the least of the picture wins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

from library.settings.dataset_keys import default_of

Size = tuple[int, int]


@dataclass(frozen=True)
class CropPlan:
    """How a picture becomes its bucket's size. All (width, height) in pixels.

    resized: covers the bucket, keeping the aspect ratio to within a pixel
    crop:    (left, top) of the bucket inside `resized`; always fully inside
    """

    bucket: Size
    resized: Size
    crop: tuple[int, int]

    def __post_init__(self) -> None:
        for bucket, resized, start in zip(self.bucket, self.resized, self.crop):
            assert 0 <= start <= resized - bucket, self


@dataclass(kw_only=True, eq=False)
class BucketManager:
    """Gives every picture size its crop plan.

    resolution: (width, height); its area bounds every bucket's
    step:       every bucket edge is a multiple of it
    no_upscale: buckets follow the pictures' own sizes; min_size and max_size are then without
                effect, as in sd-scripts
    """

    resolution: Size = field(kw_only=False)
    enable_bucket: bool = default_of("enable_bucket")
    min_size: int = default_of("min_bucket_reso")
    max_size: int = default_of("max_bucket_reso")
    step: int = default_of("bucket_reso_steps")
    no_upscale: bool = default_of("bucket_no_upscale")

    @cached_property
    def resolutions(self) -> tuple[Size, ...]:
        """Those to choose from; none where pictures make their own."""
        if not self.enable_bucket:
            return (self.resolution,)
        if self.no_upscale:
            return ()
        return make_bucket_resolutions(self.resolution, self.min_size, self.max_size, self.step)

    def plan(self, size: Size) -> CropPlan:
        """The plan of a picture of `size` (width, height): cover the bucket, crop the centre."""
        if self.resolutions:
            bucket = closest_bucket(size, self.resolutions)
            return centre_plan(bucket, cover(size, bucket))
        bucket = self.native_bucket(size)
        fits = size[0] >= bucket[0] and size[1] >= bucket[1]
        small = size[0] * size[1] <= self.max_area
        return centre_plan(bucket, size if fits and small else cover(size, bucket))

    @property
    def max_area(self) -> int:
        return self.resolution[0] * self.resolution[1]

    def native_bucket(self, size: Size) -> Size:
        """The bucket made from a picture's own size, shrunk when its area is above the limit.

        A side shorter than one step gets one step: the only case in which a picture is enlarged.
        """
        width, height = size
        scale = min(1.0, math.sqrt(self.max_area / (width * height)))
        if scale == 1.0:
            bucket = (self.floor(width), self.floor(height))
        else:
            across, down = self.floor(width * scale), self.floor(height * scale)
            candidates = (
                (across, self.floor(across * height / width)),
                (self.floor(down * width / height), down),
            )
            bucket = closest_bucket(size, candidates)
        return bucket if bucket[0] * bucket[1] <= self.max_area else self.shortened(size, bucket)

    def shortened(self, size: Size, bucket: Size) -> Size:
        """A bucket above the area with one side shortened: the side that crops less."""
        width, height = (self.floor(self.max_area // edge) for edge in (bucket[1], bucket[0]))
        choices = [(width, bucket[1]), (bucket[0], height)]
        fitting = tuple(each for each in choices if each[0] * each[1] <= self.max_area)
        return closest_bucket(size, fitting)

    def floor(self, length: float) -> int:
        """The largest multiple of the step up to `length` in whole pixels, at least one step.

        Rounded to the pixel first, as sd-scripts does: 1023.66 is 1024, not a step less.
        """
        return max(self.step, int(length + 0.5) // self.step * self.step)


def make_bucket_resolutions(
    resolution: Size, min_size: int, max_size: int, step: int
) -> tuple[Size, ...]:
    """All sizes with edges in [min_size, max_size] as large as the area allows, and the square.

    As sd-scripts does: for each width the tallest height within the area, both ways round.
    """
    area = resolution[0] * resolution[1]
    square = math.isqrt(area) // step * step
    found = {(square, square)}
    for width in range(min_size, max_size + 1, step):
        height = min(max_size, area // width // step * step)
        if height >= min_size:
            found |= {(width, height), (height, width)}
    return tuple(sorted(found))


def closest_bucket(size: Size, buckets: tuple[Size, ...]) -> Size:
    """The bucket that crops the least of a picture; among equals its own size, then the largest."""

    def cost(bucket: Size) -> tuple[float, bool, int, Size]:
        # exact integers: mirrored pictures and buckets must tie exactly
        wide, tall = size[0] * bucket[1], size[1] * bucket[0]
        return 1 - min(wide, tall) / max(wide, tall), bucket != size, -bucket[0] * bucket[1], bucket

    return min(buckets, key=cost)


def cover(size: Size, bucket: Size) -> Size:
    """The smallest size of the same shape that covers `bucket`; one side fits exactly."""
    width, height = size
    if width * bucket[1] > height * bucket[0]:
        return max(bucket[0], (2 * width * bucket[1] + height) // (2 * height)), bucket[1]
    return bucket[0], max(bucket[1], (2 * height * bucket[0] + width) // (2 * width))


def centre_plan(bucket: Size, resized: Size) -> CropPlan:
    left, top = ((long - short) // 2 for long, short in zip(resized, bucket))
    return CropPlan(bucket, resized, (left, top))


def cropped_fraction(plan: CropPlan) -> float:
    """The part of the picture outside the crop, in [0, 1)."""
    return 1 - (plan.bucket[0] * plan.bucket[1]) / (plan.resized[0] * plan.resized[1])
