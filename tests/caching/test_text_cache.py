"""Cached texts are exact or rebuilt: one entry for each caption and encoder, whatever becomes of its file."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from library.caching.text_cache import TextCache
from library.errors import DatasetError
from tests.helpers.dataset_files import (
    LetterEncoder,
    cache_text,
    encoded_texts,
    stored_files,
    stored_with,
    together,
)


@pytest.fixture
def folder(tmp_path):
    """Without pictures: a text's file lies where it is told."""
    path = tmp_path / "set"
    path.mkdir()
    return path


def test_text_is_encoded_once_per_caption_and_encoder(folder):
    assert encoded_texts(folder, "a, b", "c") == ["a, b", "c"]
    assert encoded_texts(folder, "c", "a, b", "a") == ["a"]
    assert encoded_texts(folder, "c", "a", encoder=LetterEncoder("letters-2")) == ["c", "a"]
    assert len(stored_files(folder)) == 3


@pytest.mark.parametrize("to_disk", [False, True])
def test_text_comes_back_as_it_was_encoded(folder, to_disk):
    encoder = LetterEncoder()
    cache = cache_text(dict.fromkeys(["", "abc, 长"], folder), encoder, to_disk=to_disk)
    for caption in ("", "abc, 长"):
        stored, expected = cache.get(caption), encoder.encode(caption)
        assert stored.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(stored[name], value) and stored[name].dtype == value.dtype


def test_a_damaged_text_file_is_rebuilt(folder):
    encoded_texts(folder, "abc")
    before = stored_files(folder)
    (path,) = (folder / "_cache").iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    assert encoded_texts(folder, "abc") == ["abc"]
    assert stored_files(folder) == before


def test_text_outputs_that_are_not_finite_are_an_error_naming_the_caption(folder):
    class Broken(LetterEncoder):
        def encode(self, caption):
            return {"hidden": torch.tensor([float("inf")])}

    with pytest.raises(DatasetError, match="'abc'"):
        cache_text({"abc": folder}, Broken(), to_disk=False)


def test_a_cache_folder_deleted_while_texts_are_cached_is_made_again(folder):
    class Deleting(LetterEncoder):
        def encode(self, caption):
            if len(self.captions) == 1:
                shutil.rmtree(folder / "_cache")
            return super().encode(caption)

    cache = cache_text(dict.fromkeys("abc", folder), Deleting(), to_disk=True)
    assert all(cache.get(caption)["ids"].tolist() == [ord(caption)] for caption in "abc")
    assert encoded_texts(folder, "a", "b", "c") == []


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {**tensors, "ids": tensors["ids"].float()},
        lambda tensors: {**tensors, "hidden": tensors["hidden"][:, :3]},
        lambda tensors: {**tensors, "hidden": tensors["hidden"][:-1]},
        lambda tensors: {**tensors, "ids": tensors["ids"][None]},
        lambda tensors: {"ids": tensors["ids"]},
    ],
)
def test_text_of_another_kind_or_size_is_made_anew(folder, change):
    encoded_texts(folder, "a tag")
    (path,) = (folder / "_cache").iterdir()
    stored_with(change, path)
    assert encoded_texts(folder, "a tag") == ["a tag"]


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {**tensors, "ids": tensors["ids"] - 1000},
        lambda tensors: {**tensors, "ids": tensors["ids"] + 2**40},
    ],
)
def test_impossible_numbers_in_a_cache_are_made_anew(folder, change, caplog):
    encoded_texts(folder, "a tag")
    (path,) = (folder / "_cache").iterdir()
    expected = load_file(path)
    stored_with(change, path)
    cache = TextCache(LetterEncoder(), to_disk=True)
    cache.hold({"a tag": folder})
    found = cache.get("a tag")
    assert "impossible numbers" in caplog.text
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("already", [0, 4])
def test_processes_share_the_texts_that_are_to_be_stored(folder, already):
    captions = dict.fromkeys("abcdefgh", folder)
    encoded_texts(folder, *list(captions)[:already])

    def work(share):
        encoder = LetterEncoder()
        cache = TextCache(encoder, to_disk=True)
        cache.hold(captions, share=share)
        assert all(cache.get(text)["ids"].tolist() == [ord(text)] for text in captions)
        return len(encoder.captions)

    assert together(work) == [(8 - already) / 2] * 2
