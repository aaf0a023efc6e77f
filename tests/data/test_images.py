"""Pictures of every kind, made here, come out as they are seen."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from library.data.buckets import BucketManager, CropPlan
from library.data.data_types import SampleRequest
from library.data.datasets import TrainDataset
from library.data.images import (
    UnreadableImage,
    load_image,
    open_image,
    read_picture_header,
)
from tests.helpers.dataset_files import catalogue_of, load_pixels

WHOLE = CropPlan((64, 48), (64, 48), (0, 0))


def gradient(mode="RGB"):
    """64 x 48, dark on the left and bright on the right, red at the top."""
    x, y = np.meshgrid(np.linspace(0, 255, 64), np.linspace(255, 0, 48))
    array = np.stack([y, x, x], axis=-1).round().astype(np.uint8)
    return Image.fromarray(array).convert(mode)


def colours(image):
    return np.asarray(image).reshape(-1, 3)


@pytest.mark.parametrize("extension", ["png", "jpg", "jpeg", "webp", "bmp", "avif"])
def test_every_format_gives_the_same_pixels(tmp_path, extension):
    path = tmp_path / f"a.{extension}"
    options = {} if extension in ("png", "bmp") else {"quality": 95}
    gradient().save(path, **options)
    pixels = load_pixels(path, WHOLE)
    expected = torch.from_numpy(np.asarray(gradient()) / 127.5 - 1).permute(2, 0, 1).float()
    assert read_picture_header(path).size == (64, 48)
    assert pixels.shape == (3, 48, 64) and pixels.dtype == torch.float32
    assert (pixels - expected).abs().mean() < 0.03


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_counts_for_the_header_and_for_the_pixels(tmp_path, orientation):
    # stored turned so that a viewer shows the gradient upright
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = gradient().transpose(undo[orientation]) if orientation in undo else gradient()
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    stored.save(path, exif=exif)
    assert read_picture_header(path).size == (64, 48)
    assert np.array_equal(np.asarray(load_image(path)), np.asarray(gradient()))


def test_transparency_is_laid_on_white_and_hides_what_is_under_it(tmp_path):
    image = Image.new("RGBA", (64, 48), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 32, 48))
    image.paste((0, 0, 0, 128), (48, 0, 64, 48))
    image.save(tmp_path / "a.png")
    array = np.asarray(load_image(tmp_path / "a.png"))
    assert array[0, 0].tolist() == [0, 0, 255]
    assert array[0, 40].tolist() == [255, 255, 255]
    assert array[0, 60].tolist() == [127, 127, 127]


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_alpha_of_grey_and_palette_pictures_counts_too(tmp_path, mode):
    path = tmp_path / "a.png"
    if mode == "LA":
        Image.new("LA", (64, 48), (0, 0)).save(path)
    else:
        Image.new("P", (64, 48), 0).save(path, transparency=0)
    assert (colours(load_image(path)) == 255).all()


def test_an_opaque_palette_keeps_its_colours(tmp_path):
    Image.new("RGB", (64, 48), (10, 200, 30)).quantize(4).save(tmp_path / "a.png")
    assert (colours(load_image(tmp_path / "a.png")) == (10, 200, 30)).all()


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path):
    grey = np.linspace(0, 65535, 64 * 48).reshape(48, 64).round().astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    array = np.asarray(load_image(tmp_path / "a.png"))[..., 0].astype(float)
    assert np.abs(array - grey / 257).max() <= 0.5


def test_cmyk_comes_out_in_its_colours(tmp_path):
    Image.new("CMYK", (64, 48), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = colours(load_image(tmp_path / "a.jpg"))[0]
    assert red < 10 and green > 245 and blue > 245


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "bmp", "avif"])
def test_a_truncated_picture_is_an_error_naming_it(tmp_path, extension):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    whole = tmp_path / f"whole.{extension}"
    Image.fromarray(noise).save(whole)
    path = tmp_path / f"cut.{extension}"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    for read in (load_image, read_picture_header):
        with pytest.raises(UnreadableImage, match=path.name):
            read(path)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "bmp", "avif"])
def test_a_whole_picture_is_not_decoded_for_its_size(tmp_path, extension):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    path = tmp_path / f"a.{extension}"
    Image.fromarray(noise).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = b"\0" * 64  # only decoding would notice
    path.write_bytes(content)
    assert read_picture_header(path).size == (200, 200)


def test_orientation_behind_the_pixels_of_a_png_is_found(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    gradient().save(path, exif=exif)
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    iend = content.index(b"IEND") - 4
    moved = content[:start] + content[end:iend] + content[start:end] + content[iend:]
    path.write_bytes(moved)
    assert read_picture_header(path).size == load_image(path).size == (48, 64)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "empty"),
        (b"\0" * 99, "only zeros"),
        (b"<html>not found", "web page"),
        (b"\x89PNG\r\n", "not a picture"),
        (b"MZ" + bytes(range(99)), "not a picture"),
    ],
)
def test_a_file_that_is_no_picture_says_what_it_is(tmp_path, content, message):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=message) as caught:
        read_picture_header(path)
    assert "a.png" in str(caught.value)


def test_a_wrong_extension_does_not_matter_when_the_content_is_a_picture(tmp_path):
    gradient().save(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "a.jpg")
    assert read_picture_header(tmp_path / "a.jpg").size == (64, 48)


def test_the_crop_takes_the_planned_part(tmp_path):
    gradient().save(tmp_path / "a.png")
    plan = CropPlan((32, 16), (64, 48), (5, 7))
    pixels = load_pixels(tmp_path / "a.png", plan)
    whole = load_pixels(tmp_path / "a.png", WHOLE)
    assert torch.equal(pixels, whole[:, 7:23, 5:37])


def test_a_flip_mirrors_the_crop(tmp_path):
    path, plan = tmp_path / "set" / "a.png", CropPlan((32, 16), (64, 48), (5, 7))
    path.parent.mkdir()
    gradient().save(path)
    catalogue = catalogue_of(path.parent, subset="flip_aug = true")
    (image,) = catalogue.images
    dataset = TrainDataset(replace(catalogue, images=(replace(image, plan=plan),)), seed=1)
    whole, seen = load_pixels(path, plan), set()
    for request in (SampleRequest(0, epoch, 0) for epoch in range(20)):
        is_flipped = dataset.is_flipped(request)
        pixels, _ = dataset.picture_of(request)
        assert torch.equal(pixels, whole.flip(-1) if is_flipped else whole)
        seen.add(is_flipped)
    assert seen == {True, False}


def test_shrinking_averages_and_enlarging_follows_the_named_kernel(tmp_path):
    checker = Image.fromarray(np.tile(np.array([[0, 255], [255, 0]], np.uint8), (32, 32)))
    checker.save(tmp_path / "a.png")
    small = load_pixels(tmp_path / "a.png", CropPlan((16, 16), (16, 16), (0, 0)))
    assert small.abs().max() < 0.01
    nearest = CropPlan((128, 128), (128, 128), (0, 0))
    large = load_pixels(tmp_path / "a.png", nearest, resize_interpolation="nearest")
    assert set(large.unique().tolist()) == {-1.0, 1.0}
    assert len(load_pixels(tmp_path / "a.png", nearest).unique()) > 2


def test_the_plan_of_the_header_fits_the_pixels(tmp_path):
    gradient().save(tmp_path / "a.png")
    plan = BucketManager((64, 64), enable_bucket=True, min_size=16, max_size=128, step=16).plan(
        read_picture_header(tmp_path / "a.png").size
    )
    assert load_pixels(tmp_path / "a.png", plan).shape == (3, plan.bucket[1], plan.bucket[0])


def test_opening_pictures_on_many_threads_leaves_the_warnings_as_they_were(tmp_path):
    path = tmp_path / "a.png"
    gradient().save(path)
    open_image(path).close()  # the one filter that stays
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: open_image(path).close(), range(200)))
        assert warnings.filters == before


def test_a_large_picture_that_can_be_loaded_is_no_warning(tmp_path, recwarn):
    path = tmp_path / "large.png"
    Image.new("1", (10_000, 9_000)).save(path)
    assert read_picture_header(path).size == (10_000, 9_000) and not recwarn.list
