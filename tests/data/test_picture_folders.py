"""Where pictures are looked for: links, masks and other subsets' folders within, unread kinds."""

import os
from pathlib import Path

import pytest
from PIL import Image

from library.config_util import load_folders_config
from library.data.images import formats, load_image
from library.data.picture_folders import (
    KINDS,
    PLUGINS,
    UNREAD_KINDS,
    Search,
    cure_of,
    has_plugin,
    is_picture,
)
from library.data.scan import scan
from library.errors import ConfigError
from tests.helpers.dataset_files import BUCKETS, catalogue_from, catalogue_of, draw, folder_of


def link(path, target):
    try:
        path.symlink_to(target)
    except OSError:  # Windows without the right to make links
        pytest.skip("no links here")


def keys_of(catalogue):
    return [image.key for image in catalogue.images]


def note_of(catalogue, part):
    (note,) = [note for note in catalogue.notes if part in note]
    return note


def test_linked_folders_are_searched_each_once_and_circles_end(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)])
    folder_of(tmp_path / "real", [(64, 64)] * 2)
    link(folder / "b", tmp_path / "real")
    link(folder / "c", tmp_path / "real")
    link(tmp_path / "real" / "up", folder)
    link(folder / "b2", tmp_path / "nowhere")
    link(folder / "gone.png", tmp_path / "nowhere.png")
    link(folder / "self", folder / "self")
    catalogue = catalogue_of(folder, subset="recursive = true")
    assert keys_of(catalogue) == ["0.0/0.png", "0.0/b/0.png", "0.0/b/1.png"]
    dead = note_of(catalogue, "nowhere, left out")
    assert dead.endswith("3 links that lead nowhere, left out: b2, gone.png, self")
    assert ": up, c" in note_of(catalogue, "searched by another path already")


def test_linked_class_folders_are_taken_and_dead_ones_named(tmp_path):
    parent = tmp_path / "train"
    folder_of(parent / "2_cat", [(64, 64)])
    folder_of(tmp_path / "real", [(64, 64)])
    draw(parent / "loose.png")
    link(parent / "10_dog", tmp_path / "real")
    link(parent / "3_gone", tmp_path / "nowhere")
    group = load_folders_config({"train_data_dir": str(parent), "resolution": "64"})
    catalogue = scan(group)
    assert [(i.subset.num_repeats, i.subset.class_tokens) for i in catalogue.images] == [
        (10, "dog"),
        (2, "cat"),
    ]
    assert "3_gone" in note_of(catalogue, "lead nowhere")
    assert "loose.png" in note_of(catalogue, "beside the folders")
    (parent / "2_cat").rename(tmp_path / "elsewhere")
    (parent / "10_dog").unlink()
    with pytest.raises(ConfigError, match="3_gone"):
        load_folders_config({"train_data_dir": str(parent), "resolution": "64"})


@pytest.mark.parametrize("source", ["mask_path", "conditioning_data_dir"])
@pytest.mark.parametrize("holder", ["this subset", "another subset"])
def test_masks_within_the_pictures_are_no_pictures(tmp_path, source, holder):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 2)
    for name in ("0.png", "1.png"):
        draw(folder / "masks" / name)
    other = folder_of(tmp_path / "other", [(64, 64)] * 2)
    names_masks = f"{source} = '{folder / 'masks'}'\n"
    first, second = (names_masks, "") if holder == "this subset" else ("", names_masks)
    text = f"[[datasets]]{BUCKETS}[[datasets.subsets]]\nimage_dir = '{folder}'\nrecursive = true\n"
    text += f"{first}[[datasets.subsets]]\nimage_dir = '{other}'\n{second}"
    catalogue = catalogue_from(tmp_path, text)
    assert keys_of(catalogue) == ["0.0/0.png", "0.0/1.png", "0.1/0.png", "0.1/1.png"]
    assert "masks" in note_of(catalogue, "of masks, not searched")


def test_folders_of_regularisation_within_are_not_trained_on_as_well(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 2)
    folder_of(folder / "reg", [(64, 64)])
    folder_of(folder / "more", [(64, 64)])
    text = f"[[datasets]]{BUCKETS}[[datasets.subsets]]\nimage_dir = '{folder}'\nrecursive = true\n"
    text += f"[[datasets.subsets]]\nimage_dir = '{folder / 'reg'}'\nis_reg = true\n"
    text += f"[[datasets.subsets]]\nimage_dir = '{folder / 'more'}'\n"
    catalogue = catalogue_from(tmp_path, text)
    assert keys_of(catalogue) == [
        *("0.0/0.png", "0.0/1.png", "0.0/more/0.png", "0.1/0.png", "0.2/0.png")
    ]
    assert "reg" in note_of(catalogue, "regularisation subset")
    assert "1 picture in more than one subset" in note_of(catalogue, "trained in each")


def test_folders_and_files_that_are_passed_over_are_named(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)])
    folder_of(folder / "deeper", [(64, 64)])
    draw(folder / ".hidden.png")
    (folder / "._0.png").write_bytes(b"macOS")
    (folder / "a.exr").write_bytes(b"")
    (folder / "b.psd").write_bytes(b"")
    (folder / "empty").mkdir()
    catalogue = catalogue_of(folder)
    assert keys_of(catalogue) == ["0.0/0.png"]
    assert "(recursive = true of a dataset file searches them): deeper" in note_of(catalogue, "deeper")
    assert note_of(catalogue, "hidden").endswith(": .hidden.png")
    unread = note_of(catalogue, "kinds that are not read")
    assert unread.startswith("2 pictures") and "convert .exr .psd to png" in unread
    deep = catalogue_of(folder, subset="recursive = true")
    assert keys_of(deep) == ["0.0/0.png", "0.0/deeper/0.png"]


def test_a_folder_of_unread_kinds_alone_says_so(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.psd").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"1 of a kind that is not read: convert .psd to png"):
        catalogue_of(tmp_path / "set")


def test_the_cure_names_the_plugins():
    cure = cure_of([Path("a.HEIC"), Path("b.jxl"), Path("c.psd")])
    assert cure == "convert .heic .jxl .psd to png, or pip install pillow-heif pillow-jxl-plugin"


@pytest.mark.parametrize("kind, module", [(".heic", "pillow_heif"), (".jxl", "pillow_jxl")])
def test_kinds_of_plugins_are_read_where_these_are_installed(tmp_path, kind, module):
    if not has_plugin(module):
        assert not is_picture(f"a{kind}")
        return
    formats()  # registers them
    Image.new("RGB", (64, 48), "red").save(tmp_path / f"a{kind}")
    (image,) = catalogue_of(tmp_path, settings="\nresolution = 16\n").images
    assert image.size == load_image(image.path).size == (64, 48)


def test_every_kind_is_read_or_named():
    assert not set(KINDS) & {*PLUGINS, *UNREAD_KINDS}
    assert all(is_picture(f"a{kind}") and is_picture(f"a{kind.upper()}") for kind in KINDS)
    assert not any(is_picture(f"a{kind}") for kind in UNREAD_KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_is_read_trains(tmp_path, kind):
    picture = Image.effect_noise((64, 48), 80).convert("RGB")
    Image.init()
    picture.save(tmp_path / f"a{kind}", Image.EXTENSION.get(kind, "PPM"))
    (image,) = catalogue_of(tmp_path, settings="\nresolution = 16\n").images
    assert image.size == (64, 48)


def test_of_animations_the_first_frame_is_trained_and_told(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    for kind in (".gif", ".webp", ".png", ".tif"):
        frames[0].save(folder / f"a{kind}", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "still.gif")
    for _ in range(2):  # read, then remembered
        catalogue = catalogue_of(folder, subset="cache_info = true")
        note = note_of(catalogue, "several frames or pages")
        assert note.startswith("4 pictures") and "still.gif" not in note
    assert all(load_image(i.path).getpixel((9, 9))[2] < 9 for i in catalogue.images)  # red


def test_masks_that_cannot_be_used_are_told(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 2)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "0.psd").write_bytes(b"")
    link(tmp_path / "masks" / "1.png", tmp_path / "nowhere.png")
    draw(tmp_path / "masks" / "2.png")
    catalogue = catalogue_of(folder, subset=f"mask_path = '{tmp_path / 'masks'}'")
    assert "1.png" in note_of(catalogue, "nowhere, left out")
    assert "0.psd" in note_of(catalogue, "kinds that are not read")


def test_pictures_that_share_a_caption_file_are_told(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 2)
    draw(folder / "0.tif")
    assert "0.png, 0.tif" in note_of(catalogue_of(folder), "share a caption file")


def test_a_search_knows_folders_by_where_they_really_are(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)])
    folder_of(folder / "masks", [(64, 64)])
    link(tmp_path / "alias", folder)
    masks = {os.path.realpath(tmp_path / "alias" / "masks")}
    search = Search(deep=True, masks=masks)
    assert [path.name for path in search.files(folder)] == ["0.png"]
    assert search.passed.masks == [folder / "masks"]
