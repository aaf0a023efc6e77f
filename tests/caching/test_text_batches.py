"""Captions of one length are encoded together where that is asked for, and each gets what it would get at any time."""

import pytest
import torch

from library.anima_runtime import text_rows
from library.caching.latents_cache import ONLY_PROCESS
from library.caching.text_batches import TextBatches, even_share
from library.caching.text_cache import TextCache
from library.caching.text_windows import TextWindows
from library.settings.flags.cache import CacheOptions
from tests.helpers.dataset_files import LetterEncoder, stored_files, together
from tests.helpers.run_texts import EPOCHS, folder_of_run, texts_of
from tests.helpers.tiny import rel_l2, tiny_qwen

TEXTS = ["aa", "b", "cc", "dd", "e", "fff", "gg", "hh", "ii"]


class RowEncoder(LetterEncoder):
    """Rounds, so to speak, by how many rows a batch has, as a real encoder does."""

    def __init__(self, *, uneven=(), room=99):
        super().__init__()
        self.uneven, self.room, self.rows = uneven, room, []

    def size_of(self, text):
        return len(text)

    def is_even(self, text, rows):
        return (len(text), rows) not in self.uneven

    def encode_together(self, captions):
        assert len({len(caption) for caption in captions}) == 1
        if len(captions) > self.room:
            raise torch.OutOfMemoryError("too many")
        self.rows.append(len(captions))
        made = [self.encode(caption) for caption in captions]
        return [{**outputs, "hidden": outputs["hidden"] + len(captions)} for outputs in made]


class AloneEncoder(LetterEncoder):
    def size_of(self, text):
        raise AssertionError("nobody asks how long a text is that is encoded alone")


def cache_of(encoder, most, *, to_disk=False):
    return TextCache(encoder, to_disk=to_disk, batches=TextBatches(encoder, most, lambda: TEXTS))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    return path


def test_things_are_shared_evenly():
    for count in range(1, 20):
        for most in range(1, 9):
            share = even_share(count, most)
            parts = -(-count // share)
            assert share <= most and parts == -(-count // most) and share * parts - count < parts
    assert even_share(0, 4) == 1


def test_up_to_so_many_of_one_length_are_encoded_together(folder):
    encoder = RowEncoder()
    cache = cache_of(encoder, 4)
    cache.hold(dict.fromkeys(TEXTS, folder))
    assert sorted(encoder.rows) == [1, 2, 3, 3]
    assert all(cache.get(text)["ids"].tolist() == [ord(letter) for letter in text] for text in TEXTS)
    assert cache.get("aa")["hidden"].untyped_storage().nbytes() == 2 * 4 * 2, "not a view of its batch"


def test_without_it_each_is_alone(folder):
    encoder = AloneEncoder()
    TextCache(encoder, to_disk=False).hold(dict.fromkeys(TEXTS, folder))
    assert encoder.captions == TEXTS


@pytest.mark.parametrize("kept", [["cc"], ["aa", "dd", "e"], TEXTS[1:]])
def test_what_a_text_gets_does_not_depend_on_what_else_is_missing(folder, kept):
    texts = dict.fromkeys(TEXTS, folder)
    cache_of(RowEncoder(), 4, to_disk=True).hold(texts)
    before = stored_files(folder)
    for path in (folder / "_cache").glob("text_*"):
        path.unlink()
    cache_of(RowEncoder(), 4, to_disk=True).hold(dict.fromkeys(kept, folder))
    encoder = RowEncoder()
    cache = cache_of(encoder, 4, to_disk=True)
    cache.hold(texts)
    assert stored_files(folder) == before and not set(encoder.captions) & set(kept)
    (damaged,) = [cache.stored["hh"].path]
    damaged.write_bytes(b"")
    cache.get("hh")
    assert stored_files(folder) == before, "made anew as it was"


def test_what_was_encoded_before_an_end_is_kept(folder):
    class Ending(RowEncoder):
        def encode_together(self, captions):
            if len(self.rows) == 2:
                raise KeyboardInterrupt
            return super().encode_together(captions)

    texts, ended = dict.fromkeys(TEXTS, folder), Ending()
    with pytest.raises(KeyboardInterrupt):
        cache_of(ended, 4, to_disk=True).hold(texts)
    kept = stored_files(folder)
    assert len(kept) == sum(ended.rows) == len(ended.captions)
    encoder = RowEncoder()
    cache_of(encoder, 4, to_disk=True).hold(texts)
    assert kept.items() <= stored_files(folder).items() and set(encoder.captions) == set(TEXTS) - set(ended.captions)


def test_lengths_whose_rows_depend_on_their_place_are_encoded_alone(folder):
    encoder = RowEncoder(uneven=[(2, 3)])
    cache_of(encoder, 4).hold(dict.fromkeys(TEXTS, folder))
    assert sorted(encoder.rows) == [1, 1, 1, 1, 1, 1, 1, 2]


def test_where_memory_is_too_short_fewer_are_encoded_together(folder, caplog):
    encoder = RowEncoder(room=2)
    cache = cache_of(encoder, 8)
    cache.hold(dict.fromkeys(TEXTS, folder))
    assert all(cache.get(text)["ids"].tolist() == [ord(letter) for letter in text] for text in TEXTS)
    assert sorted(encoder.rows) == [1, 2, 2, 2, 2, 2]
    assert [line[-60:].count("from its start") for line in caplog.messages if "too short" in line] == [1, 1]
    with pytest.raises(torch.OutOfMemoryError):
        cache_of(RowEncoder(room=0), 2).hold({"aa": folder})


def test_processes_share_the_batches(folder):
    texts = dict.fromkeys(TEXTS, folder)
    cache_of(RowEncoder(), 4, to_disk=True).hold(texts)
    before = stored_files(folder)
    for path in (folder / "_cache").glob("text_*"):
        path.unlink()

    def work(share):
        encoder = RowEncoder(uneven=[(2, 3)] if share.rank else [])
        cache_of(encoder, 4, to_disk=True).hold(texts, share=share)
        return len(encoder.rows)

    assert together(work) == [2, 4], "though the second one's device has uneven batches"
    assert stored_files(folder).keys() == before.keys()


@pytest.mark.parametrize("to_disk", [False, True])
def test_a_run_that_goes_on_encodes_as_it_did(tmp_path, to_disk):
    """In the middle of a window, and whatever was at hand before."""
    texts = texts_of(folder_of_run(tmp_path))
    options = CacheOptions(
        cache_text_encoder_outputs=True, cache_text_encoder_outputs_to_disk=to_disk,
        text_encoder_batch_size=3, text_cache_variants=20,
    )  # fmt: skip

    def held(start):
        encoder = RowEncoder()
        windows = TextWindows.make(texts, encoder, options, None, ONLY_PROCESS)
        for epoch in range(start, EPOCHS):
            windows.prepare_epoch(epoch)
            found = {text: windows.get(text)["hidden"] for text in texts.of_epoch(epoch)}
            yield epoch, found
        assert max(encoder.rows, default=3) == 3

    whole = dict(held(0))
    for start in (1, 3, EPOCHS - 1):
        for epoch, found in held(start):
            assert all(torch.equal(found[text], value) for text, value in whole[epoch].items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length, rows", [(1, 3), (2, 2), (5, 2), (17, 4)])
def test_in_an_even_batch_a_caption_has_the_same_bits_in_any_place_beside_any_others(dtype, length, rows):
    encoder = tiny_qwen(dtype)
    ids = torch.randint(0, 200, (2 * rows, length), generator=torch.Generator().manual_seed(1)).tolist()
    alone = text_rows.hidden_states(encoder, ids[:1])[0]
    found = [text_rows.hidden_states(encoder, [*ids[rows + 1 : rows + 1 + place], ids[0], *ids[rows + 1 + place :]])
             [place] for place in range(rows)]  # fmt: skip
    assert all(rel_l2(each, alone) < (1e-5 if dtype == torch.float32 else 2e-2) for each in found)
    same = all(torch.equal(each, found[0]) for each in found)
    assert same or not text_rows.is_even(encoder, length, rows)


def test_a_place_that_changes_a_bit_is_seen():
    encoder = tiny_qwen()
    assert text_rows.is_even(encoder, 5, 1)

    def change(layer, inputs, output):
        return output.index_add(0, torch.tensor([2]), torch.full_like(output[:1], 1e-6))

    with_change = encoder.layers[0].register_forward_hook(change)
    assert not text_rows.is_even(encoder, 5, 3)
    with_change.remove()
