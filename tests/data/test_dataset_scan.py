"""Scanning: a fixed order, all problems at once, notes for what is worth knowing."""

import pytest

from library.errors import DatasetError
from tests.helpers.dataset_files import BUCKETS, catalogue_from, catalogue_of, draw, folder_of


def test_pictures_come_in_natural_order_with_captions_and_plans(tmp_path):
    folder = tmp_path / "set"
    for name in ("b10.png", "b2.png", "A1.jpg", "c.webp"):
        draw(folder / name, (80, 50))
    (folder / "b2.txt").write_bytes("\ufeffone\r\ntwo".encode())
    (folder / "._b2.png").write_bytes(b"resource fork")
    (folder / "notes.md").write_text("no picture")
    (folder / "d.png").mkdir()
    catalogue = catalogue_of(folder, subset="num_repeats = 3")
    assert [i.path.name for i in catalogue.images] == ["A1.jpg", "b2.png", "b10.png", "c.webp"]
    assert catalogue.images[1].caption == "one\ntwo"
    assert catalogue.images[0].caption is None
    assert catalogue.images[0].key == "0.0/A1.jpg"
    assert {i.plan.bucket for i in catalogue.images} == {(80, 48)}
    assert catalogue.num_samples == 12


def test_all_problems_are_reported_together(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 4)
    whole = (folder / "0.png").read_bytes()
    (folder / "0.png").write_bytes(whole[: len(whole) // 2])
    (folder / "1.png").write_text("<html>")
    (folder / "2.txt").write_bytes("café".encode("latin-1"))
    (folder / "3.txt").unlink()
    (folder / "3.txt").mkdir()
    with pytest.raises(DatasetError) as caught:
        catalogue_of(folder)
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    for part in ("0.png: the picture is damaged", "1.png: this is a text", "2.txt: the caption is"):
        assert part in text
    assert "3.txt: this caption is a folder" in text


def test_utf16_captions_are_a_problem_even_where_they_decode(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)])
    (folder / "0.txt").write_bytes("a, b".encode("utf-16-le"))
    with pytest.raises(DatasetError, match="not UTF-8"):
        catalogue_of(folder)


def test_pictures_without_captions_are_one_note_with_their_names(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 12, captions=False)
    (folder / "3.txt").write_text("there")
    (folder / "4.txt").write_text(" \n")
    (note, empty) = catalogue_of(folder).notes
    assert note.startswith("10 pictures without a caption file, trained with the empty caption")
    assert "0.png, 1.png" in note and "and 2 more" in note
    assert "1 picture with an empty caption file: 4.png" in empty


def test_class_tokens_are_named_when_they_are_used(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)], captions=False)
    (note,) = catalogue_of(folder, subset="class_tokens = '1girl'").notes
    assert "class_tokens '1girl'" in note and "empty" not in note


def test_captions_with_another_extension_are_pointed_out(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)])
    (folder / "0.txt").rename(folder / "0.caption")
    assert any("set caption_extension" in note for note in catalogue_of(folder).notes)
    assert catalogue_of(folder, subset="caption_extension = '.caption'").notes == ()


def test_a_folder_given_twice_counts_once_in_a_dataset_but_in_each_dataset(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 2)
    subset = f"[[datasets.subsets]]\nimage_dir = '{folder}'\n"
    catalogue = catalogue_from(tmp_path, 2 * f"[[datasets]]{BUCKETS}{subset}{subset}")
    assert [i.key for i in catalogue.images] == ["0.0/0.png", "0.0/1.png", "1.0/0.png", "1.0/1.png"]
    assert sum("given twice" in note for note in catalogue.notes) == 2
    assert any(note.startswith("2 pictures in more than one subset") for note in catalogue.notes)


def test_the_fingerprint_follows_what_is_trained_on(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 2)
    first = catalogue_of(folder).fingerprint()
    assert catalogue_of(folder).fingerprint() == first
    moved = folder.rename(tmp_path / "moved")
    assert catalogue_of(moved).fingerprint() == first
    others = {first, catalogue_of(moved, subset="num_repeats = 2").fingerprint()}
    others.add(catalogue_of(moved, dataset="batch_size = 2").fingerprint())
    (moved / "0.txt").write_text("other")
    others.add(catalogue_of(moved).fingerprint())
    assert len(others) == 4


def test_the_description_has_the_table_of_buckets(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * 3 + [(128, 32)])
    lines = catalogue_of(folder, dataset="batch_size = 2", subset="num_repeats = 3").describe()
    assert "64 x 64, buckets, batch size 2, 4 pictures" in lines[0]
    assert "4 pictures x 3 = 12" in lines[1]
    assert [" ".join(line.split()) for line in lines[2:]] == [
        "bucket 64 x 64 pictures 3 with repeats 9 batches 5",
        "bucket 128 x 32 pictures 1 with repeats 3 batches 2",
    ]
