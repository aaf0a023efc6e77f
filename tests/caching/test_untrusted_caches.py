"""Cache files from strangers: they are used when they fit, made anew, or refused in words."""

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from library.caching.latents_cache import Storing, cache_latents
from library.errors import OutputError
from tests.helpers.dataset_files import (
    LetterEncoder,
    ShrinkingEncoder,
    cache_text,
    catalogue_of,
    folder_of,
)
from tests.helpers.hostile_files import SIZES, examples, file_bytes, layout_of, spoiled


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("caches") / "set", [(64, 64)])


@pytest.fixture(scope="module")
def catalogue(folder):
    return catalogue_of(folder)


tensors = st.lists(
    st.tuples(
        st.sampled_from(["latents", "ids", "hidden", "more"]),
        st.sampled_from(["F32", "I64", "BF16", *SIZES]),
        st.sampled_from([(3, 8, 8), (5,), (5, 4), (6, 4), (), (0,), (3, 8, 0)]),
    ),
    max_size=3,
    unique_by=lambda tensor: tensor[0],
)


@st.composite
def contents(draw, metadata):
    """A spoiled file, or a sound one of any tensors, often with the fingerprint that is asked for."""
    found = draw(tensors)
    if draw(st.booleans()):
        return draw(spoiled(found))
    header, size = layout_of(found)
    if draw(st.integers(0, 3)):
        header["__metadata__"] = metadata
    pattern = draw(st.sampled_from([b"\0", b"\xff", b"\x01"]))
    return file_bytes(header, pattern * size)


@examples(100)
@given(st.data(), st.booleans())
def test_spoiled_latents_are_made_anew_or_have_the_right_shape(folder, catalogue, data, trusting):
    def make(skip_check=False):
        encoder = ShrinkingEncoder()
        return cache_latents(catalogue, encoder, Storing(to_disk=True, batch_size=1, skip_check=skip_check))

    make()
    (path,) = (folder / "_cache").glob("0.png*")
    with safe_open(path, "pt") as file:
        metadata = {"cache": file.metadata()["cache"].split()[0]}  # without the checksum
    path.write_bytes(data.draw(contents(metadata)))
    latents, _ = make(trusting).get(catalogue.images[0].key)
    assert latents.shape == (3, 8, 8) and latents.is_floating_point()


@examples(100)
@given(st.data())
def test_spoiled_text_is_made_anew_or_has_the_right_shape(folder, data):
    def make():
        return cache_text({"a tag": folder}, LetterEncoder(), to_disk=True)

    make()
    (path,) = (folder / "_cache").glob("text_*")
    with safe_open(path, "pt") as file:
        metadata = {"cache": file.metadata()["cache"].split()[0]}  # without the checksum
    path.write_bytes(data.draw(contents(metadata)))
    outputs = make().get("a tag")
    assert outputs["hidden"].shape == (len(outputs["ids"]), 4)
    assert not outputs["ids"].is_floating_point()
    assert bool((outputs["ids"] < 0x110000).all()) and bool((outputs["ids"] >= 0).all())


def test_a_folder_in_place_of_a_cache_file_is_told(tmp_path):
    cache_text({"b": tmp_path}, LetterEncoder(), to_disk=True)
    (path,) = (tmp_path / "_cache").glob("text_*")
    path.unlink()
    path.mkdir()
    with pytest.raises(OutputError, match=r"text_.*cannot be written"):
        cache_text({"b": tmp_path}, LetterEncoder(), to_disk=True)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_cache_file_that_is_a_dead_link_is_replaced(tmp_path):
    folder = tmp_path
    cache_text({"b": folder}, LetterEncoder(), to_disk=True)
    (path,) = (folder / "_cache").glob("text_*")
    path.unlink()
    path.symlink_to(folder / "nowhere")
    cache = cache_text({"b": folder}, LetterEncoder(), to_disk=True)
    assert torch.equal(cache.get("b")["ids"], torch.tensor([ord("b")]))
    assert not (folder / "nowhere").exists() and not path.is_symlink()
