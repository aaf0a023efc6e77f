"""What the scan makes of folders: metadata files, masks, regularisation, filters, several sizes."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from library.errors import ConfigError, DatasetError
from tests.helpers.dataset_files import (
    BUCKETS,
    catalogue_from,
    catalogue_of,
    draw,
    folder_of,
    load_masked,
)


def write_json(path, entries):
    path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return path


def grey(path, size=(64, 64), value=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


def problems_of(make):
    with pytest.raises(DatasetError) as caught:
        make()
    return " | ".join(f"{p.where} {p.message}" for p in caught.value.problems)


def from_json(folder, entries, extra=""):
    file = write_json(folder.parent / "meta.json", entries)
    return catalogue_of(folder, subset=f"metadata_file = '{file}'\n{extra}")


def test_captions_and_tags_come_from_a_metadata_file(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 5)
    draw(folder / "deep" / "x.png", seed=9)
    entries = {
        "0": {"caption": "a cat", "tags": "cat, cute"},
        "1.png": {"tags": "dog"},
        str(folder / "2.png"): {"caption": "full path", "train_resolution": [64, 64]},
        "deep/x": {"caption": "in a folder"},
        "3": {},
    }
    catalogue = from_json(folder, entries, "class_tokens = 'thing'")
    assert {i.key: i.caption for i in catalogue.images} == {
        "0.0/0.png": "a cat,cat, cute",
        "0.0/1.png": "dog",
        "0.0/2.png": "full path",
        "0.0/3.png": None,
        "0.0/deep/x.png": "in a folder",
    }
    assert any("not read: train_resolution" in note for note in catalogue.notes)
    left_out = f"1 picture without an entry in {tmp_path / 'meta.json'}, left out: 4.png"
    assert left_out in catalogue.notes


def test_with_wildcards_the_tags_follow_every_line(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)])
    entries = {"0": {"caption": "a cat\n\nthe cat", "tags": "x, y\nz"}}
    catalogue = from_json(folder, entries, "enable_wildcard = true")
    assert catalogue.images[0].caption == "a cat,x, y,z\nthe cat,x, y,z"


def test_without_a_folder_the_pictures_lie_beside_the_metadata_file(tmp_path):
    draw(tmp_path / "a.png")
    file = write_json(tmp_path / "meta.json", {"a": {"caption": "b"}})
    text = f"[[datasets]]{BUCKETS}[[datasets.subsets]]\nmetadata_file = '{file}'"
    assert [i.caption for i in catalogue_from(tmp_path, text).images] == ["b"]


def test_a_picture_that_stands_twice_in_a_metadata_file_is_told(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)])
    file = tmp_path / "meta.json"
    file.write_text('{"0": {"caption": "a"}, "0": {"caption": "b"}}', encoding="utf-8")
    told = problems_of(lambda: catalogue_of(folder, subset=f"metadata_file = '{file}'"))
    assert "0 stands there twice" in told


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"7": {"caption": "a"}}, "'7' no such picture"),
        ({"0": {"caption": 3}}, "'0' caption is not text"),
        ({"0": "a cat"}, "'0' expected {"),
        ({"0": {}, "0.png": {}}, "0.png has two entries"),
        ({"../out": {"caption": "a"}}, "no such picture"),
        ({"0\u0000": {"caption": "a"}}, "no such picture"),
        ({"x" * 5000: {"caption": "a"}}, "no such picture"),
        ({}, "has no entries"),
        ([], "expected an object"),
    ],
)
def test_entries_that_cannot_be_used_are_named(tmp_path, entries, message):
    folder = folder_of(tmp_path / "set", [(64, 64)])
    draw(tmp_path / "out.png")
    assert message in problems_of(lambda: from_json(folder, entries))


def test_folders_within_are_searched_where_asked_for(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)])
    for place in ("b/1.png", "a/deep/2.png", "_cache/no.png", ".hidden/no.png"):
        draw(folder / place, seed=len(place)).with_suffix(".txt").write_text(place)
    (folder / "loop").symlink_to(folder)
    assert [i.key for i in catalogue_of(folder).images] == ["0.0/0.png"]
    deep = catalogue_of(folder, subset="recursive = true")
    assert [i.key for i in deep.images] == ["0.0/0.png", "0.0/a/deep/2.png", "0.0/b/1.png"]
    assert deep.images[1].caption == "a/deep/2.png"


def test_one_folder_at_several_sizes_has_no_picture_twice(tmp_path):
    folder = folder_of(tmp_path / "set", [(40, 40), (200, 200)])
    sizes = BUCKETS.replace("resolution = 64", "resolutions = [32, 64, 128]")
    catalogue = catalogue_of(folder, settings=sizes, dataset="bucket_no_upscale = true")
    looks = [(i.path, i.plan) for i in catalogue.images]
    assert len(looks) == len(set(looks)) == 5  # 40 x 40 is cut to 32 once, kept whole once
    assert any(note.startswith("1 picture too small for a larger") for note in catalogue.notes)


def several_sizes(tmp_path, batch_size, sizes="[64, [64, 128], 96]"):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 6)
    text = BUCKETS.replace("resolution = 64", f"resolutions = {sizes}")
    return catalogue_of(folder, settings=text, dataset=f"batch_size = {batch_size}")


def test_each_size_may_have_a_batch_size_of_its_own(tmp_path):
    catalogue = several_sizes(tmp_path, '{64 = 4, "64,128" = 2, 96 = 1}')
    sizes = {dataset.resolution: dataset.batch_size for dataset in catalogue.group.datasets}
    assert sizes == {(64, 64): 4, (64, 128): 2, (96, 96): 1}
    assert several_sizes(tmp_path / "one", "{64 = 3}", "[64]").group.datasets[0].batch_size == 3


@pytest.mark.parametrize(
    "batch_size, message",
    [
        ('{64 = 4, "64,128" = 2}', "batch_size says nothing of 96"),
        ('{64 = 4, "64x128" = 2, 96 = 1, 512 = 1}', "batch_size names what is no resolution here, 512"),
        ('{64 = 4, wide = 2, 96 = 1}', "'wide' is no resolution"),
        ('{64 = 0, "64,128" = 2, 96 = 1}', "0 is out of range: expected at least 1"),
        ("{}", "one for each resolution such as {512 = 4, 1024 = 1}, got a table"),
        ('"4"', "got text. Remove the quotes"),
        ("{64 = 1.5}", "got a number"),
    ],
)  # fmt: skip
def test_batch_sizes_that_do_not_fit_the_sizes_are_named(tmp_path, batch_size, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        several_sizes(tmp_path, batch_size)


def test_pictures_are_left_out_by_size_shape_and_caption(tmp_path):
    folder = folder_of(tmp_path / "set", [(48, 48), (64, 64), (120, 40), (40, 120), (70, 64)])
    (folder / "4.txt").write_text(" \n")
    rules = "min_ar = 0.5\nmax_ar = 2\nskip_empty_caption = true"
    catalogue = catalogue_of(folder, dataset="skip_image_resolution = 48", subset=rules)
    assert [i.path.name for i in catalogue.images] == ["1.png"]
    for reason, name in [
        ("skip_image_resolution = 48 x 48", "0"),
        ("max_ar = 2", "2"),
        ("min_ar = 0.5", "3"),
        ("skip_empty_caption", "4"),
    ]:
        assert f"1 picture left out by {reason}: {name}.png" in catalogue.notes


def test_when_every_picture_is_left_out_it_is_an_error(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)])
    found = problems_of(lambda: catalogue_of(folder, subset="min_ar = 3"))
    assert "no picture is left to train on" in found


def regularised(tmp_path, counts, repeats=(1, 1)):
    folders = [folder_of(tmp_path / name, [(64, 64)] * n) for name, n in zip("tr", counts)]
    text = f"[[datasets]]{BUCKETS}"
    for folder, repeat, is_reg in zip(folders, repeats, ("false", "true")):
        text += f"[[datasets.subsets]]\nimage_dir = '{folder}'\nnum_repeats = {repeat}\n"
        text += f"is_reg = {is_reg}\n"
    return catalogue_from(tmp_path, text)


@pytest.mark.parametrize(
    "counts, repeats, expected",
    [
        ((5, 2), (1, 1), [3, 2]),  # in turn until there are as many
        ((2, 3), (2, 1), [2, 1, 1]),
        ((2, 5), (1, 1), [1, 1]),  # more than needed: the first ones
        ((3, 2), (1, 4), [4]),
    ],
)
def test_regularisation_pictures_are_made_as_many_as_the_others(
    tmp_path, counts, repeats, expected
):
    catalogue = regularised(tmp_path, counts, repeats)
    assert [i.repeats for i in catalogue.images if i.subset.is_reg] == expected
    assert any("regularisation pictures are shown" in note for note in catalogue.notes)


def test_masks_are_found_by_name_and_told_when_missing(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 3)
    draw(folder / "1.jpg", seed=8)
    for name in ("0.png", "1.jpg.png", "9.png"):
        grey(tmp_path / "masks" / name)
    os.rename(tmp_path / "masks" / "1.jpg.png", tmp_path / "masks" / "1.png")
    catalogue = catalogue_of(folder, subset=f"mask_path = '{tmp_path / 'masks'}'")
    masks = {i.path.name: i.mask and i.mask.name for i in catalogue.images}
    assert masks == {"0.png": "0.png", "1.png": "1.png", "1.jpg": "1.png", "2.png": None}
    assert any("1 picture without a mask" in n and "2.png" in n for n in catalogue.notes)
    assert any("1 masks" in n and "have no picture: 9.png" in n for n in catalogue.notes)


def test_a_mask_of_another_size_or_unreadable_is_a_problem(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 2)
    grey(tmp_path / "masks" / "0.png", (32, 64))
    (tmp_path / "masks" / "1.png").write_bytes(b"no picture")
    found = problems_of(lambda: catalogue_of(folder, subset=f"mask_path = '{tmp_path / 'masks'}'"))
    assert "the mask is 32 x 64, its picture 64 x 64" in found and "1.png" in found


def test_sd_scripts_masks_have_to_be_complete(tmp_path):
    from library.config_util import load_dataset_config
    from library.data.scan import scan

    folder = folder_of(tmp_path / "set", [(64, 64)] * 2)
    grey(tmp_path / "masks" / "0.png")
    path = tmp_path / "dataset.toml"
    subset = f"image_dir = '{folder}'\nconditioning_data_dir = '{tmp_path / 'masks'}'\n"
    path.write_text(f"[[datasets]]{BUCKETS}[[datasets.subsets]]\n{subset}")
    group = load_dataset_config(path, {"masked_loss": True})
    assert "1 picture without a mask in" in problems_of(lambda: scan(group))


def remembered(folder):
    return json.loads((folder / "_cache" / "pictures.json").read_text())


def test_sizes_are_remembered_and_read_again_when_a_file_changes(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64), (80, 64)])
    first = catalogue_of(folder, subset="cache_info = true")
    memory = remembered(folder)
    assert memory["1.png"][-3:-1] == [80, 64]
    memory["1.png"][-3:-1] = [81, 63]  # to see that it is really used
    (folder / "_cache" / "pictures.json").write_text(json.dumps(memory))
    assert catalogue_of(folder, subset="cache_info = true").images[1].size == (81, 63)
    draw(folder / "1.png", (48, 64), seed=5)
    assert catalogue_of(folder, subset="cache_info = true").images[1].size == (48, 64)
    assert remembered(folder)["1.png"][-3:-1] == [48, 64]
    for damage in ("{", "[]", '{"0.png": 3}', '{"0.png": ["a"]}'):
        (folder / "_cache" / "pictures.json").write_text(damage)
        assert (
            catalogue_of(folder, subset="cache_info = true").images[0].size == first.images[0].size
        )


def held_out(catalogue):
    return {image.path.name for image in catalogue.held_out}


def test_a_share_of_the_pictures_is_held_out_by_the_seed(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 10)
    catalogue = catalogue_of(folder, dataset="validation_split = 0.3")
    assert len(catalogue.held_out) == 3 and len(catalogue.images) == 7
    assert held_out(catalogue).isdisjoint(image.path.name for image in catalogue.images)
    again = catalogue_of(folder, dataset="validation_split = 0.3")
    other = catalogue_of(folder, dataset="validation_split = 0.3\nvalidation_seed = 4")
    assert held_out(catalogue) == held_out(again) != held_out(other)
    one = catalogue_of(folder, dataset="validation_split = 0.01")
    (kept,) = held_out(one)
    assert f"  kept for validation: 1 pictures ({kept})" in one.describe()


def test_a_copy_of_a_held_out_picture_is_not_trained_on(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 6)
    copies = tmp_path / "copies"
    copies.mkdir()
    for picture in folder.glob("*.png"):
        (copies / f"copy_{picture.name}").write_bytes(picture.read_bytes())
    draw(copies / "other.png", seed=77)
    subset = f"[[datasets.subsets]]\nimage_dir = '{folder}'\n"
    more = f"[[datasets.subsets]]\nimage_dir = '{copies}'\n"
    split = f"[[datasets]]{BUCKETS}validation_split = 0.4\n"
    one = catalogue_from(tmp_path, split + subset + more)
    two = catalogue_from(tmp_path, split + subset + f"[[datasets]]{BUCKETS}" + more)
    for catalogue in (one, two):
        contents = {i.path.read_bytes() for i in catalogue.held_out}
        assert contents and contents.isdisjoint(i.path.read_bytes() for i in catalogue.images)
    assert all(image.path.parent == folder for image in two.held_out)
    assert any("the same as one kept for validation" in note for note in two.notes)


def test_the_only_picture_is_not_held_out(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)])
    catalogue = catalogue_of(folder, dataset="validation_split = 0.5")
    assert not catalogue.held_out and any("needs two different" in n for n in catalogue.notes)


def test_ten_thousand_names_are_sorted_naturally(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 12, captions=False)
    assert [i.path.stem for i in catalogue_of(folder).images] == [str(n) for n in range(12)]


def test_opacity_and_red_channel_become_masks(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)])
    plan = catalogue_of(folder).images[0].plan
    alpha = np.zeros((64, 64, 4), dtype=np.uint8)
    alpha[:, :32] = 255
    Image.fromarray(alpha).save(folder / "0.png")
    pixels, mask = load_masked(folder / "0.png", plan, alpha_mask=True)
    assert mask[:, :32].eq(1).all() and mask[:, 32:].eq(0).all() and pixels.eq(1).all()
    assert load_masked(folder / "0.png", plan)[1] is None
    red = np.zeros((64, 64, 3), dtype=np.uint8)
    red[:16, :, 0], red[..., 1] = 128, 255
    Image.fromarray(red).save(tmp_path / "mask.png")
    _, mask = load_masked(folder / "0.png", plan, mask=tmp_path / "mask.png")
    assert mask[:16].eq(128 / 255).all() and mask[16:].eq(0).all()


def test_captions_of_several_lines_are_told_unless_the_file_says_what_they_are(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 3)
    for number in (0, 1):
        (folder / f"{number}.txt").write_text("1girl, solo\n\nA girl on a bridge.\n")
    (note,) = catalogue_of(folder).notes
    assert note.startswith("2 pictures with several lines in the caption") and "0.png" in note
    for use in ("first", "join", "each"):
        assert not catalogue_of(folder, subset=f"caption_lines = '{use}'").notes
    assert not catalogue_of(folder, subset="enable_wildcard = true").notes


def test_tags_of_a_metadata_file_follow_each_line_that_may_be_drawn(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)], captions=False)
    entries = tmp_path / "meta.json"
    entries.write_text('{"0": {"caption": "a\\nb", "tags": "c, d"}}')
    source = f"metadata_file = '{entries}'\n"
    for use, text in (("join", "a\nb,c, d"), ("each", "a,c, d\nb,c, d")):
        (image,) = catalogue_of(folder, subset=f"{source}caption_lines = '{use}'").images
        assert image.caption == text


def test_more_samples_than_an_epoch_can_hold_are_refused_at_once(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 2)
    message = "an epoch would have 20,000,000 samples .* 1,000,000 are the most. Lower num_repeats"
    with pytest.raises(DatasetError, match=message):
        catalogue_of(folder, subset="num_repeats = 10000000")
    with pytest.raises(DatasetError, match="an epoch would have 20,000,000 samples"):
        regularised(tmp_path, (1, 2), (10_000_000, 1))
