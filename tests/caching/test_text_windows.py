"""Cached text keeps captions alive: the texts of a run are known ahead and encoded in windows."""

import gc
import itertools
import logging
import weakref
from dataclasses import fields, replace

import pytest
import torch

from library.caching.text_cache import TextCache
from library.caching.text_windows import (
    SAME_EVERY_EPOCH,
    TextWindows,
    is_steady,
)
from library.data.captions import CaptionRecipe
from tests.helpers.dataset_files import LetterEncoder, folder_of
from tests.helpers.run_texts import ALIVE, EPOCHS, folder_of_run, texts_of


class WatchedEncoder(LetterEncoder):
    """Says when it is put away."""

    def __init__(self):
        super().__init__()
        self.log = []

    def encode(self, caption):
        self.log.append("encode")
        return super().encode(caption)

    def rest(self):
        self.log.append("rest")

    def free(self):
        self.log.append("free")


@pytest.fixture
def folder(tmp_path):
    return folder_of_run(tmp_path)


def windows_over(texts, limit, *, to_disk=False):
    encoder = WatchedEncoder()
    return TextWindows(texts, TextCache(encoder, to_disk=to_disk), limit), encoder


def used_in(texts, epoch):
    """The captions that training really asks for, in order."""
    texts.sampler.set_epoch(epoch)
    return [texts.dataset.caption_of(request) for batch in texts.sampler for request in batch]


def stored_texts(folder):
    return sorted((folder / "_cache").glob("text_*"))


def test_the_texts_of_an_epoch_are_those_that_training_asks_for(folder):
    texts = texts_of(folder)
    assert texts.vary
    for epoch in range(EPOCHS):
        assert set(texts.of_epoch(epoch)) == set(used_in(texts, epoch))


def test_each_rank_knows_its_share(folder):
    ranks = [texts_of(folder, rank=rank, world_size=2) for rank in (0, 1)]
    for epoch in range(EPOCHS):
        shares = [set(texts.of_epoch(epoch, own=True)) for texts in ranks]
        assert shares == [set(used_in(texts, epoch)) for texts in ranks]
        assert shares[0] | shares[1] == set(ranks[0].of_epoch(epoch))


def test_a_run_that_ends_inside_an_epoch_needs_no_more_than_it_uses(folder):
    whole = texts_of(folder)
    texts = replace(whole, epochs=2, last_batches=2)
    assert texts.of_epoch(0) == whole.of_epoch(0)
    whole.sampler.set_epoch(1)
    used = {whole.dataset.caption_of(r) for batch in list(whole.sampler)[:2] for r in batch}
    assert set(texts.of_epoch(1)) == set(texts.of_epoch(1, own=True)) == used


@pytest.mark.parametrize("limit", [1, 12, 25, 10_000])
def test_windows_are_whole_epochs_within_the_limit(folder, limit):
    texts, start = texts_of(folder), 0
    while start < EPOCHS:
        window, captions = texts.window(start, limit)
        assert window.start == start and len(window) >= 1
        assert set(captions) == {c for epoch in window for c in texts.of_epoch(epoch)}
        if len(window) > 1:
            assert len(captions) <= limit
        if window.stop < EPOCHS:
            assert len(captions | texts.of_epoch(window.stop)) > limit
        start = window.stop


def test_unchanging_captions_are_one_window_whatever_the_limit(folder):
    window, captions = texts_of(folder, subset="caption_prefix = 'x'").window(0, 1)
    assert window == range(EPOCHS) and len(captions) == 5


@pytest.mark.parametrize("part", [f.name for f in fields(CaptionRecipe)])
def test_only_parts_known_to_be_steady_leave_captions_unchanged(part):
    value = getattr(CaptionRecipe(), part)
    other = {bool: True, int: 2, float: 0.5, str: "|", type(None): "join"}[type(value)]
    other = (0.0, 1.0, 0.0, 0.0) if part == "caption_shares" else other
    assert is_steady(CaptionRecipe())
    assert is_steady(CaptionRecipe(**{part: other})) == (part in SAME_EVERY_EPOCH)
    assert not is_steady(CaptionRecipe(caption_lines="each"))
    assert not is_steady(CaptionRecipe(caption_shares=(1.0, 0.0, 0.0, 0.5)))


@pytest.mark.parametrize("use, count", [("first", 5), ("join", 5), ("each", 6)])
def test_lines_are_variants_that_are_cached_like_any_other(folder, use, count):
    texts = texts_of(folder, subset=f"caption_lines = '{use}'\nnum_repeats = 2")
    windows, encoder = windows_over(texts, 10_000)
    windows.prepare_epoch(0)
    used = {caption for epoch in range(EPOCHS) for caption in used_in(texts, epoch)}
    assert set(encoder.captions) == used and len(used) == count
    assert ("second line, dog" in used) == (use == "each")
    assert ("{red|blue}, cat, second line, dog" in used) == (use == "join")


def test_forms_with_sentences_are_variants_and_other_trainers_files_are_not_taken_for_them(folder):
    (folder / "0_nl.txt").write_text("A picture, and more.", encoding="utf-8")
    shares = "caption_shares = {tags = 1, sentences = 1, tags_sentences = 1, sentences_tags = 1}"
    texts = texts_of(folder, subset=f"{shares}\nnum_repeats = 9")
    windows, encoder = windows_over(texts, 10_000)
    windows.prepare_epoch(0)
    used = {caption for epoch in range(EPOCHS) for caption in used_in(texts, epoch)}
    assert set(encoder.captions) == used and len([text for text in used if "tag0" in text]) == 3
    assert "A picture, and more." in used and len(used) == 8
    alone = texts_of(folder, subset="caption_shares = {sentences = 1}")
    assert not alone.vary and len(alone.of_epoch(0)) == 5
    assert "A picture, and more." not in alone.steady and len(alone.steady) == 4


@pytest.mark.parametrize("to_disk", [False, True])
@pytest.mark.parametrize("limit", [1, 25, 10_000])
def test_every_caption_is_there_in_its_epoch_as_encoded_and_made_once_per_window(
    folder, to_disk, limit, caplog
):
    texts = texts_of(folder)
    windows, encoder = windows_over(texts, limit, to_disk=to_disk)
    for epoch in range(EPOCHS):
        seen, before = windows.window, set(windows.cache.held) if not to_disk else set()
        encoder.captions.clear()
        windows.prepare_epoch(epoch)
        if windows.window == seen:
            assert encoder.captions == []
        assert len(encoder.captions) == len(set(encoder.captions))
        assert not before & set(encoder.captions)  # shared with the window before: carried over
        for caption in used_in(texts, epoch):
            expected = LetterEncoder().encode(caption)
            for name, value in windows.get(caption).items():
                assert torch.equal(value, expected[name]) and value.dtype == expected[name].dtype
    assert "not foreseen" not in caplog.text


@pytest.mark.parametrize("to_disk", [False, True])
@pytest.mark.parametrize("limit", [1, 10_000])
@pytest.mark.parametrize("subset", [ALIVE, "num_repeats = 2"], ids=["changing", "unchanging"])
def test_every_rank_has_its_texts_in_every_epoch(folder, subset, limit, to_disk, caplog):
    ranks = [texts_of(folder, subset, rank=rank, world_size=2, epochs=3) for rank in (0, 1)]
    ranks = [replace(texts, last_batches=2) for texts in ranks]
    windows = [windows_over(texts, limit, to_disk=to_disk)[0] for texts in ranks]
    for epoch in range(3):
        for texts, own in zip(ranks, windows):
            own.prepare_epoch(epoch)
            texts.sampler.set_epoch(epoch)
            for batch in itertools.islice(texts.sampler, 2 if epoch == 2 else None):
                for request in batch:
                    assert own.get(texts.dataset.caption_of(request))
    assert "not foreseen" not in caplog.text


def test_a_run_that_fits_encodes_each_text_once_and_frees_the_encoder(folder):
    texts = texts_of(folder)
    windows, encoder = windows_over(texts, 10_000)
    for epoch in range(EPOCHS):
        windows.prepare_epoch(epoch)
    everything = {caption for epoch in range(EPOCHS) for caption in texts.of_epoch(epoch)}
    assert sorted(encoder.captions) == sorted(everything)
    assert encoder.log == ["encode"] * len(everything) + ["free"]


def test_between_windows_the_encoder_rests_and_past_texts_are_let_go(folder):
    texts = texts_of(folder)
    windows, encoder = windows_over(texts, 1)
    windows.prepare_epoch(0)
    gone = texts.of_epoch(0).keys() - texts.of_epoch(1).keys()
    tensors = [weakref.ref(windows.get(caption)["hidden"]) for caption in gone]
    assert encoder.log[-1] == "rest" and all(ref() is not None for ref in tensors)
    windows.prepare_epoch(1)
    gc.collect()
    assert len(windows.cache.held) == len(texts.of_epoch(1))
    assert all(ref() is None for ref in tensors)
    for epoch in range(2, EPOCHS):
        windows.prepare_epoch(epoch)
    assert [word for word in encoder.log if word != "encode"] == ["rest"] * (EPOCHS - 1) + ["free"]


@pytest.mark.parametrize("to_disk", [False, True])
@pytest.mark.parametrize("limit", [25, 10_000])
def test_a_run_may_start_at_any_epoch(folder, to_disk, limit):
    texts = texts_of(folder)
    windows, encoder = windows_over(texts, limit, to_disk=to_disk)
    windows.prepare_epoch(4)
    needed = {caption for epoch in windows.window for caption in texts.of_epoch(epoch)}
    assert windows.window.start == 4 and set(encoder.captions) == needed
    assert all(windows.get(caption) for caption in used_in(texts, 4))
    windows.prepare_epoch(1)  # also backwards
    assert all(windows.get(caption) for caption in used_in(texts, 1))


def test_on_disk_only_the_first_window_is_kept(folder):
    limit = 25
    texts = texts_of(folder)
    first = texts.window(0, limit)[1]
    for _ in range(2):
        windows, encoder = windows_over(texts, limit, to_disk=True)
        for epoch in range(EPOCHS):
            windows.prepare_epoch(epoch)
        assert len(stored_texts(folder)) == len(first) <= limit
        names = {path.name for path in (folder / "_cache").iterdir()}
        assert all(name.startswith("text_") for name in names)  # no scratch file is left
    assert not set(encoder.captions) & set(first)  # the second run found them


def test_a_run_resumed_later_keeps_no_more_on_disk(folder):
    texts = texts_of(folder)
    windows, _ = windows_over(texts, 25, to_disk=True)
    for epoch in range(3, EPOCHS):
        windows.prepare_epoch(epoch)
    kept = {path.name for path in stored_texts(folder)}
    windows, _ = windows_over(texts, 25, to_disk=True)
    windows.prepare_epoch(0)
    assert kept <= {path.name for path in stored_texts(folder)}


def test_a_text_stored_in_another_folder_is_not_made_again(tmp_path):
    folders = [folder_of(tmp_path / name, [(64, 64)], captions=False) for name in "ab"]
    for order in (folders, folders[::-1]):
        encoder = LetterEncoder()
        captions = {"shared": order[0], "own": order[1]}
        TextCache(encoder, to_disk=True).hold(captions)
    assert encoder.captions == []
    assert sum(len(stored_texts(folder)) for folder in folders) == 2


def test_of_two_files_of_a_text_the_valid_one_is_used_whichever_it_is(tmp_path):
    folders = [folder_of(tmp_path / name, [(64, 64)], captions=False) for name in "ab"]
    for order in (folders, folders[::-1]):
        for number, folder in enumerate(order):
            encoder = LetterEncoder(identity=f"letters {number}")
            TextCache(encoder, to_disk=True).hold({"shared": folder})
        encoder = LetterEncoder(identity="letters 1")
        TextCache(encoder, to_disk=True).hold({"shared": folders[0], "own": folders[1]})
        assert "shared" not in encoder.captions


@pytest.mark.parametrize("to_disk", [False, True])
def test_a_text_that_was_not_foreseen_is_encoded_late_and_told(folder, to_disk, caplog):
    windows, encoder = windows_over(texts_of(folder), 1, to_disk=to_disk)
    windows.prepare_epoch(0)
    expected = LetterEncoder().encode("a surprise")
    for _ in range(2):
        found = windows.get("a surprise")
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert encoder.captions.count("a surprise") == 1 and encoder.log[-1] == "rest"
    assert sum("not foreseen" in line for line in caplog.messages) == 1


def test_windows_are_told(folder, caplog):
    windows, _ = windows_over(texts_of(folder), 25)
    with caplog.at_level(logging.INFO):
        windows.prepare_epoch(0)
    assert "of epochs 1 to" in caplog.text and "--text_cache_variants 25" in caplog.text
