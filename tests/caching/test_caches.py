"""Caches are exact or rebuilt: invalidation one cause at a time, damage, interruption, NaN."""

import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from library.caching.cache_files import THREADS
from library.caching.contents import Contents
from library.caching.latents_cache import Storing, cache_latents
from library.caching.latents_encoder import decode_ahead
from library.caching.latents_files import latents_fingerprint
from library.errors import DatasetError
from tests.helpers.dataset_files import (
    BUCKETS,
    LetterEncoder,
    ShrinkingEncoder,
    cache_text,
    catalogue_from,
    catalogue_of,
    draw,
    encoded_texts,
    folder_of,
    load_pixels,
    stored_files,
    stored_with,
    together,
)


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path / "set", [(64, 64)] * 3 + [(128, 32)])


def encoded(folder, encoder=None, *, batch_size=1, subset="", skip_check=False, **catalogue):
    """How many pictures a new run over this folder encodes."""
    encoder = encoder or ShrinkingEncoder()
    images = catalogue_of(folder, subset=subset, **catalogue)
    cache_latents(images, encoder, Storing(to_disk=True, batch_size=batch_size, skip_check=skip_check))
    return sum(encoder.batches)


@pytest.mark.parametrize("to_disk", [False, True])
def test_latents_are_what_the_encoder_gives_plain_and_mirrored(folder, to_disk):
    catalogue = catalogue_of(folder, subset="flip_aug = true")
    encoder = ShrinkingEncoder()
    cache = cache_latents(catalogue, encoder, Storing(to_disk=to_disk, batch_size=2))
    for image in catalogue.images:
        pixels = load_pixels(image.path, image.plan)[None]
        assert torch.equal(cache.get(image.key)[0], encoder.encode(pixels)[0])
        assert torch.equal(cache.get(image.key, True)[0], encoder.encode(pixels.flip(-1))[0])
    assert (folder / "_cache").exists() == to_disk


def test_files_are_named_by_the_full_picture_name_size_and_flip(folder):
    draw(folder / "0.jpg")
    encoded(folder, subset="flip_aug = true")
    expected = {
        f"{name}_{size}{flip}.safetensors"
        for name, size in [
            ("0.png", "0064x0064"),
            ("0.jpg", "0064x0064"),
            ("1.png", "0064x0064"),
            ("2.png", "0064x0064"),
            ("3.png", "0128x0032"),
        ]
        for flip in ("", "_flip")
    }
    assert set(stored_files(folder)) == expected


def test_a_second_run_encodes_nothing_and_says_so(folder, caplog):
    assert encoded(folder) == 4
    before = stored_files(folder)
    with caplog.at_level(logging.INFO):
        assert encoded(folder) == 0
    assert "latents: 4 reused, 0 encoded" in caplog.messages
    assert stored_files(folder) == before


def test_a_changed_picture_is_encoded_anew_and_no_other(folder, caplog):
    encoded(folder)
    draw(folder / "1.png", seed=99)
    with caplog.at_level(logging.INFO):
        assert encoded(folder) == 1
    assert "latents: 3 reused, 1 encoded, 1 of them outdated or damaged before" in caplog.messages


def test_a_changed_time_alone_changes_nothing(folder):
    encoded(folder)
    os.utime(folder / "1.png", ns=(1, 1))
    assert encoded(folder) == 0


def test_a_folder_that_is_copied_with_its_cache_needs_no_encoding(folder, tmp_path):
    encoded(folder, subset="flip_aug = true")
    encoded_texts(folder, "a, b")
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert encoded(copy, subset="flip_aug = true") == 0
    assert encoded_texts(copy, "a, b") == []


def bitmaps(folder):
    """Two pictures of one size and time."""
    for number in (0, 1):
        path = draw(folder / f"{number}.bmp", seed=number)
        os.utime(path, ns=(10**18, 10**18))
    return folder / "0.bmp", folder / "1.bmp"


def test_two_pictures_of_one_size_and_time_that_swap_names_keep_their_latents(tmp_path):
    one, other = bitmaps(tmp_path / "set")
    assert encoded(one.parent) == 2
    spare = one.with_name("spare")
    one.rename(spare), other.rename(one), spare.rename(other)
    encoder = ShrinkingEncoder()
    cache = cache_latents(catalogue_of(one.parent), encoder, Storing(to_disk=True, batch_size=1))
    assert sum(encoder.batches) == 2
    for image in cache_images(one.parent):
        pixels = load_pixels(image.path, image.plan)[None]
        assert torch.equal(cache.get(image.key)[0], encoder.encode(pixels)[0])


def cache_images(folder):
    return catalogue_of(folder).images


def test_two_masks_that_swap_names_keep_to_their_pictures(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 2)
    one, other = bitmaps(tmp_path / "masks")
    subset = f"mask_path = '{one.parent}'"
    assert encoded(folder, subset=subset) == 2
    spare = one.with_name("spare")
    one.rename(spare), other.rename(one), spare.rename(other)
    assert encoded(folder, subset=subset) == 2


def test_files_of_an_earlier_version_are_made_anew_and_it_is_said(folder, caplog):
    encoded(folder)
    encoded_texts(folder, "abc")
    for path in (folder / "_cache").glob("*.safetensors"):
        save_file(load_file(path), path, metadata={"cache": f"{'0' * 32} 12345678"})
    with caplog.at_level(logging.INFO):
        assert encoded(folder) == 4 and encoded_texts(folder, "abc") == ["abc"]
    said = [line for line in caplog.messages if "earlier version" in line]
    assert [line.split()[:2] for line in said] == [["latents:", "4"], ["captions:", "1"]]
    assert encoded(folder) == 0 and encoded_texts(folder, "abc") == []


@pytest.mark.parametrize("when", range(1, 4))
def test_a_cache_folder_deleted_while_caching_is_made_again(folder, when):
    class Deleting(ShrinkingEncoder):
        def encode(self, pixels):
            if len(self.batches) == when:
                shutil.rmtree(folder / "_cache")
            return super().encode(pixels)

    catalogue = catalogue_of(folder)
    cache = cache_latents(catalogue, Deleting(), Storing(to_disk=True, batch_size=1))
    expected = cache_latents(catalogue, ShrinkingEncoder(), Storing(to_disk=False, batch_size=1))
    for image in catalogue.images:
        assert torch.equal(cache.get(image.key)[0], expected.get(image.key)[0])
    assert encoded(folder) == 0


def test_another_encoder_rebuilds_everything(folder):
    encoded(folder)
    assert encoded(folder, ShrinkingEncoder("shrink-2")) == 4


def test_another_resolution_is_stored_beside_the_first(folder):
    encoded(folder)
    smaller = BUCKETS.replace("resolution = 64", "resolution = 32")
    assert encoded(folder, settings=smaller) == 4
    assert encoded(folder) == 0


def test_another_kernel_rebuilds_everything(folder):
    encoded(folder)
    assert encoded(folder, subset="resize_interpolation = 'bicubic'") == 4


def test_asking_for_flips_adds_only_the_mirrored_ones(folder):
    encoded(folder)
    before = stored_files(folder)
    assert encoded(folder, subset="flip_aug = true") == 4
    after = stored_files(folder)
    assert len(after) == 8 and before.items() <= after.items()


def test_captions_do_not_concern_the_latents(folder):
    encoded(folder)
    (folder / "0.txt").write_text("other")
    assert encoded(folder, subset="shuffle_caption = true") == 0


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_a_file_cut_short_is_rebuilt_to_the_same_bytes(folder, kept):
    encoded(folder)
    before = stored_files(folder)
    path = folder / "_cache" / "1.png_0064x0064.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert encoded(folder) == 1
    assert stored_files(folder) == before


def test_a_foreign_file_is_rebuilt(folder):
    encoded(folder)
    path = folder / "_cache" / "1.png_0064x0064.safetensors"
    save_file({"latents": torch.zeros(3, 8, 8)}, path)
    assert encoded(folder) == 1
    assert load_file(path)["latents"].abs().sum() > 0


def test_skipping_the_check_trusts_name_and_shape_alone(folder):
    encoded(folder)
    draw(folder / "1.png", seed=99)
    path = folder / "_cache" / "2.png_0064x0064.safetensors"
    save_file({"latents": torch.zeros(3, 4, 4)}, path)
    assert encoded(folder, skip_check=True) == 1


def test_what_was_missing_does_not_change_what_is_stored(folder):
    encoded(folder, batch_size=3)
    before = stored_files(folder)
    (folder / "_cache" / "1.png_0064x0064.safetensors").unlink()
    encoder = ShrinkingEncoder()
    encoded(folder, encoder, batch_size=3)
    assert encoder.batches == [3]  # the whole batch again, as the catalogue fixes it
    assert stored_files(folder) == before


def test_batches_have_one_size_and_at_most_the_given_number(folder):
    encoder = ShrinkingEncoder()
    encoded(folder, encoder, batch_size=2)
    assert sorted(encoder.batches) == [1, 1, 2]


def test_two_datasets_that_resize_to_one_size_differently_keep_their_own(tmp_path):
    folder = folder_of(tmp_path / "set", [(200, 64)])
    dataset = f"[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{folder}'\n"
    catalogue = catalogue_from(tmp_path, f"{dataset}{dataset}resize_interpolation = 'nearest'")
    assert len({image.plan for image in catalogue.images}) == 1
    encoder = ShrinkingEncoder()
    cache = cache_latents(catalogue, encoder, Storing(to_disk=True, batch_size=1))
    for image in catalogue.images:
        kernel = image.subset.resize_interpolation
        pixels = load_pixels(image.path, image.plan, resize_interpolation=kernel)[None]
        assert torch.equal(cache.get(image.key)[0], encoder.encode(pixels)[0])


def test_another_crop_of_the_same_size_is_another_picture(folder):
    def prints(image):
        return latents_fingerprint(image, False, "x", Contents())

    image = catalogue_of(folder).images[0]
    wide = replace(image.plan, resized=(70, 64))
    plans = [image.plan, wide, replace(wide, crop=(3, 0)), replace(wide, crop=(6, 0))]
    assert len({prints(replace(image, plan=plan)) for plan in plans}) == 4
    assert prints(image) == prints(replace(image, caption="other", key="elsewhere"))


def test_pictures_are_decoded_ahead_of_the_encoder_and_not_all_at_once():
    decoded = []

    class Job:
        def load(self):
            decoded.append(self)

    with ThreadPoolExecutor(THREADS) as pool:
        ready = decode_ahead(pool, [Job() for _ in range(100)])
        next(ready)
    assert len(decoded) == 3 * THREADS + 1


class NaNForDark(ShrinkingEncoder):
    def encode(self, pixels):
        latents = super().encode(pixels)
        latents[pixels.mean(dim=(1, 2, 3)) < -0.9] = float("nan")
        return latents


@pytest.mark.parametrize("to_disk", [False, True])
def test_latents_that_are_not_finite_are_an_error_naming_the_picture(folder, to_disk):
    Image.new("RGB", (64, 64)).save(folder / "2.png")
    with pytest.raises(DatasetError, match=r"2\.png.*NaN") as caught:
        cache_latents(catalogue_of(folder), NaNForDark(), Storing(to_disk=to_disk, batch_size=2))
    assert len(caught.value.problems) == 1
    if to_disk:  # the others are stored: the next run has less to do
        assert len(stored_files(folder)) == 3


def test_a_picture_damaged_inside_is_an_error_naming_it_and_the_rest_is_kept(folder):
    catalogue = catalogue_of(folder)
    content = (folder / "1.png").read_bytes()
    half = len(content) // 2
    (folder / "1.png").write_bytes(content[:half] + b"\0" * 64 + content[half + 64 :])
    with pytest.raises(DatasetError, match=r"1\.png"):
        cache_latents(catalogue, ShrinkingEncoder(), Storing(to_disk=True, batch_size=1))
    assert len(stored_files(folder)) == 3


def test_a_folder_that_cannot_be_written_is_reported_before_anything_is_encoded(folder):
    (folder / "_cache").write_text("in the way")
    encoder = ShrinkingEncoder()
    with pytest.raises(DatasetError, match="cannot be written"):
        encoded(folder, encoder)
    assert encoder.batches == []
    with pytest.raises(DatasetError, match="cannot be written"):
        cache_text({"a": folder}, LetterEncoder(), to_disk=True)


@pytest.mark.parametrize("name", ["长" * 80, "长" * 83, "a" * 251])
def test_very_long_picture_names_can_be_cached(tmp_path, name):
    folder = tmp_path / "set"
    draw(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text("a")
    assert encoded(folder) == 1
    assert encoded(folder) == 0
    subset = "caption_extension = '.caption'"  # a name that cannot exist is not there
    assert [image.caption for image in catalogue_of(folder, subset=subset).images] == [None]


def test_a_cache_file_lost_during_the_run_is_made_anew(folder, caplog):
    catalogue = catalogue_of(folder)
    cache = cache_latents(catalogue, ShrinkingEncoder(), Storing(to_disk=True, batch_size=2))
    before, expected = stored_files(folder), cache.get("0.0/0.png")[0].clone()
    (folder / "_cache" / "0.png_0064x0064.safetensors").unlink()
    assert torch.equal(cache.get("0.0/0.png")[0], expected)
    assert "made anew" in caplog.text
    assert stored_files(folder) == before


@pytest.mark.parametrize("change", [lambda path: draw(path, seed=9), lambda path: path.unlink()])
def test_what_is_lost_is_not_made_anew_from_another_picture(folder, change):
    cache = cache_latents(catalogue_of(folder), ShrinkingEncoder(), Storing(to_disk=True, batch_size=2))
    (folder / "_cache" / "0.png_0064x0064.safetensors").unlink()
    change(folder / "0.png")
    with pytest.raises(DatasetError, match=r"0\.png has changed since the run began"):
        cache.get("0.0/0.png")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {"latents": tensors["latents"].long()},
        lambda tensors: {"latents": tensors["latents"][:, :-1]},
        lambda tensors: {**tensors, "more": torch.zeros(1)},
        lambda tensors: {"other": tensors["latents"]},
        lambda tensors: {"latents": tensors["latents"].to(torch.float8_e4m3fn)},
    ],
)
def test_latents_of_another_kind_or_size_are_made_anew(folder, change):
    encoded(folder)
    stored_with(change, folder / "_cache" / "0.png_0064x0064.safetensors")
    assert encoded(folder) == 1
    stored_with(change, folder / "_cache" / "0.png_0064x0064.safetensors")
    assert encoded(folder, skip_check=True) == 1


@pytest.mark.parametrize("already", [0, 3])
def test_processes_share_the_pictures_that_are_to_be_stored(folder, already):
    catalogue = catalogue_of(folder, subset="flip_aug = true")
    cache_latents(catalogue, ShrinkingEncoder(), Storing(to_disk=True, batch_size=1))
    for path in sorted((folder / "_cache").glob("*.safetensors"))[2 * already :]:
        path.unlink()  # what is left is not one process's part

    def work(share):
        encoder = ShrinkingEncoder()
        cache = cache_latents(catalogue, encoder, Storing(to_disk=True, batch_size=1), share=share)
        for image in catalogue.images:
            pixels = load_pixels(image.path, image.plan)[None]
            assert torch.equal(cache.get(image.key)[0], encoder.encode(pixels)[0])
        return sum(encoder.batches) - len(catalogue.images)

    assert sorted(together(work)) == ([4, 4] if not already else [0, 2])
