"""sd-scripts' .npz caches are read after a check, and told once to carry no fingerprint."""

import io
import logging

import numpy as np
import pytest
import torch

from library.caching.latents_cache import Storing, cache_latents
from library.strategy_anima import AnimaLatentsCachingStrategy
from tests.helpers.dataset_files import catalogue_of, folder_of
from tests.helpers.running import config_files, losses_of, make_trainer
from tests.helpers.tiny import tiny_vae

SIZE = (128, 32)  # of the pictures; their latents are 4 x 16


class Counting(AnimaLatentsCachingStrategy):
    """The real strategy over a real small VAE; counts what it encodes."""

    def __init__(self):
        super().__init__(tiny_vae(), "tiny")
        self.encoded = self.unpacked = 0

    def encode(self, pixels):
        self.encoded += len(pixels)
        return super().encode(pixels)

    def read_foreign(self, image, flipped):
        self.unpacked += 1
        return super().read_foreign(image, flipped)


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path / "set", [SIZE] * 2)


def made(folder, subset=""):
    """What the VAE makes of each picture, by key and flip."""
    return cache_latents(
        catalogue_of(folder, subset=subset), AnimaLatentsCachingStrategy(tiny_vae(), "tiny"),
        Storing(to_disk=False, batch_size=1),
    )  # fmt: skip


def read(folder, subset="", to_disk=True):
    """The caches of a run, and how many pictures it encoded."""
    strategy = Counting()
    catalogue = catalogue_of(folder, subset=subset)
    return cache_latents(catalogue, strategy, Storing(to_disk=to_disk, batch_size=1)), strategy.encoded


def latents_of(cache, key, flipped=False):
    latents, mask = cache.get(key, flipped)
    assert mask is None
    return latents


def save(folder, number, latents, *, name="{:04d}x{:04d}", ending="_4x16", **changed):
    """A file as sd-scripts writes it; `changed` replaces or adds arrays."""
    arrays = {
        f"latents{ending}": None if latents is None else np.asarray(latents),
        f"original_size{ending}": np.array(SIZE),
        f"crop_ltrb{ending}": np.array([0, 0, *SIZE]),
        **{f"{key}{ending}": value for key, value in changed.items()},
    }
    path = folder / f"{number}_{name.format(*SIZE)}_anima.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


@pytest.mark.parametrize("ending", ["_4x16", ""], ids=["sizes in keys", "plain keys"])
@pytest.mark.parametrize("name", ["{:04d}x{:04d}", "{}x{}"], ids=["padded", "unpadded"])
def test_latents_of_either_trainer_are_used_and_told_once(folder, name, ending, caplog):
    for number in (0, 1):
        save(folder, number, torch.full((16, 4, 16), float(number)), name=name, ending=ending)
    with caplog.at_level(logging.INFO):
        cache, encoded = read(folder)
    assert encoded == 0
    for number in (0, 1):
        assert torch.equal(
            latents_of(cache, f"0.0/{number}.png"), torch.full((16, 4, 16), float(number))
        )
    assert "latents: 2 reused, 0 encoded" in caplog.messages
    (warning,) = [line for line in caplog.messages if "no fingerprint" in line]
    assert warning.startswith("latents: 2 ")


def test_their_files_are_unpacked_once_and_stay(folder, caplog):
    paths = [save(folder, number, GOOD + number + 1) for number in (0, 1)]
    contents = [path.read_bytes() for path in paths]
    for unpacked in (True, False):
        cache, encoded = read(folder)
        assert encoded == 0 and bool(cache.strategy.unpacked) == unpacked
        before = cache.strategy.unpacked
        assert latents_of(cache, "0.0/1.png").unique().item() == 2
        assert cache.strategy.unpacked == before
        assert any("latents: 2 are taken from another" in line for line in caplog.messages)
        caplog.clear()
    assert [path.read_bytes() for path in paths] == contents


def test_a_copy_lives_no_longer_than_their_file(folder):
    paths = [save(folder, number, GOOD + number + 1) for number in (0, 1)]
    read(folder)
    paths[0].unlink()
    save(folder, 1, GOOD + 7)
    cache, encoded = read(folder)
    assert encoded == 1
    assert torch.equal(latents_of(cache, "0.0/0.png"), latents_of(made(folder), "0.0/0.png"))
    assert latents_of(cache, "0.0/1.png").unique().item() == 7


def test_their_files_are_read_where_no_copy_can_be_written(folder, caplog):
    for number in (0, 1):
        save(folder, number, GOOD + 1)
    (folder / "_cache").write_text("in the way")
    cache, encoded = read(folder)
    assert encoded == 0 and latents_of(cache, "0.0/0.png").unique().item() == 1
    assert "unpacked each time" in caplog.text


def pickled():
    file = io.BytesIO()
    np.savez(file, latents=np.array([{"a": 1}], dtype=object))
    return file.getvalue()


GOOD = np.zeros((16, 4, 16), np.float32)
NAN = np.where(np.arange(16) == 3, np.nan, GOOD).astype(np.float32)
UNFIT = {
    "another shape": ({"latents": np.zeros((16, 16, 4), np.float32)}, "(16, 16, 4), expected"),
    "a batch axis": ({"latents": GOOD[None]}, "(1, 16, 4, 16), expected"),
    "NaN": ({"latents": NAN}, "NaN"),
    "infinity": ({"latents": GOOD + np.inf}, "NaN or infinite"),
    "whole numbers": ({"latents": GOOD.astype(np.int64)}, "int64"),
    "another picture's size": ({"original_size": np.array([32, 128])}, "picture of [32, 128]"),
    "no latents": ({"latents": None}, "has no latents"),
    "objects": (pickled(), "cannot be read"),
    "cut short": (None, "cannot be read"),
    "empty": (b"", "cannot be read"),
    "text": (b"version https://git-lfs.github.com/spec/v1", "cannot be read"),
    "one array": (b"\x93NUMPY\x01\x00" + b"\x00" * 80, "cannot be read"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_file_that_does_not_fit_is_not_used_and_told_why(folder, kind, caplog):
    changed, reason = UNFIT[kind]
    expected = latents_of(made(folder), "0.0/0.png")
    path = save(folder, 0, **{"latents": GOOD, **(changed if isinstance(changed, dict) else {})})
    if not isinstance(changed, dict):
        path.write_bytes(path.read_bytes()[:-200] if changed is None else changed)
    cache, encoded = read(folder)
    assert encoded == 2
    assert torch.equal(latents_of(cache, "0.0/0.png"), expected)
    (told,) = [line for line in caplog.messages if "not used" in line]
    assert str(path) in told and reason in told


def test_a_changed_bit_in_the_data_is_found(folder):
    path = save(folder, 0, GOOD)
    content = bytearray(path.read_bytes())
    content[content.index(b"latents") + 2000] ^= 4
    path.write_bytes(content)
    assert read(folder)[1] == 2


def test_a_file_damaged_during_the_run_is_replaced_by_the_vae(folder, caplog):
    path = save(folder, 0, GOOD)
    cache, encoded = read(folder)
    assert encoded == 1
    path.write_bytes(path.read_bytes()[:1000])
    copy = folder / "_cache" / "0.png_0128x0032.safetensors"
    assert torch.equal(latents_of(cache, "0.0/0.png"), torch.from_numpy(GOOD))
    copy.write_bytes(copy.read_bytes()[:1000])
    assert torch.equal(latents_of(cache, "0.0/0.png"), latents_of(made(folder), "0.0/0.png"))
    assert "made anew" in caplog.text
    assert read(folder)[1] == 0


def test_only_what_a_file_lacks_is_encoded(folder):
    save(folder, 0, GOOD + 1)
    save(folder, 1, GOOD + 1, latents_flipped=GOOD + 2)
    cache, encoded = read(folder, subset="flip_aug = true")
    assert encoded == 1
    assert latents_of(cache, "0.0/1.png", True).unique().item() == 2
    expected = latents_of(made(folder, subset="flip_aug = true"), "0.0/0.png", True)
    assert torch.equal(latents_of(cache, "0.0/0.png", True), expected)


def test_our_own_valid_files_come_first(folder):
    read(folder)
    save(folder, 0, GOOD)
    cache, encoded = read(folder)
    assert encoded == 0 and torch.equal(
        latents_of(cache, "0.0/0.png"), latents_of(made(folder), "0.0/0.png")
    )


def test_a_cache_in_memory_reads_no_files(folder):
    save(folder, 0, GOOD)
    assert read(folder, to_disk=False)[1] == 2


LENGTH = {"max_train_steps": None, "max_train_epochs": 1}


def texts_cached(demo, folder, settings=None, **dataset):
    """A trainer whose texts are cached on disk, and how many it found there."""
    settings = {"cache_text_encoder_outputs_to_disk": True, **LENGTH, **(settings or {})}
    trainer = make_trainer(config_files(demo, folder, settings, **dataset))
    for stage in ("prepare_process", "open_state", "check", "prepare_data", "prepare_strategies"):
        getattr(trainer, stage)()
    trainer.texts = trainer.cache_text()
    return trainer


def reused(caplog):
    (line,) = [
        line for line in caplog.messages if line.startswith("captions: ") and "reused" in line
    ]
    return int(line.split()[1])


def sd_scripts_arrays(outputs):
    """A caption's outputs as sd-scripts stores them, padded to 512."""
    real, t5_real = len(outputs["qwen_hidden"]), len(outputs["t5_ids"])
    arrays = {
        "prompt_embeds": np.zeros((512, outputs["qwen_hidden"].shape[1]), np.float32),
        "attn_mask": (np.arange(512) < real).astype(np.int64),
        "t5_input_ids": np.zeros(512, np.int32),
        "t5_attn_mask": (np.arange(512) < t5_real).astype(np.int32),
        "caption_dropout_rate": np.float32(0.1),
    }
    arrays["prompt_embeds"][:real] = outputs["qwen_hidden"]
    arrays["t5_input_ids"][:t5_real] = outputs["t5_ids"]
    return arrays


def save_texts(trainer, *changes):
    """A file beside each picture; `changes` are made to those of the first pictures, one each."""
    changes = [*changes, *[{}] * len(trainer.catalogue.images)]
    for image, changed in zip(trainer.catalogue.images, changes):
        arrays = sd_scripts_arrays(trainer.texts.get(image.caption.strip()))
        np.savez(image.path.with_name(f"{image.path.stem}_anima_te.npz"), **{**arrays, **changed})


def forget(folder):
    for path in (folder / "pictures" / "_cache").glob("text_*"):
        path.unlink()


@pytest.fixture(scope="module")
def saved(demo, tmp_path_factory):
    """A folder with sd-scripts' text files beside the demo's pictures."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "pictures").mkdir()
    for picture in (demo / "pictures").iterdir():
        (folder / "pictures" / picture.name).write_bytes(picture.read_bytes())
    save_texts(texts_cached(demo, folder))
    return folder


@pytest.fixture
def with_texts(saved):
    """The same; files of ours are removed."""
    forget(saved)
    return saved


def test_texts_are_used_and_train_as_ours_do(demo, with_texts, caplog):
    losses = []
    for to_disk in (False, True):
        settings = {"cache_text_encoder_outputs_to_disk": to_disk, **LENGTH}
        trainer = make_trainer(config_files(demo, with_texts, settings))
        trainer.prepare()
        trainer.run_epochs()
        losses.append(losses_of(trainer))
    assert losses[0] == losses[1]
    assert "captions: 12 reused, 0 encoded" in caplog.messages
    assert len(list((with_texts / "pictures" / "_cache").glob("text_*"))) == 12
    outputs = trainer.texts.get(trainer.catalogue.images[0].caption.strip())
    assert {name: value.dtype for name, value in outputs.items()} == {
        "qwen_hidden": torch.float32, "t5_ids": torch.int64, "t5_mask": torch.int64
    }  # fmt: skip


@pytest.mark.parametrize(
    "settings, dataset, count",
    [
        ({"mixed_precision": "bf16"}, {}, 12),
        ({}, {"shuffle_caption": True}, 0),
        ({}, {"caption_dropout_rate": 0.1}, 0),
        ({}, {"caption_prefix": "new"}, 0),
        ({"t5_max_token_length": 8}, {}, 0),
        ({"qwen3_max_token_length": 8}, {}, 0),
    ],
)
def test_texts_are_used_only_for_the_caption_they_were_made_of(
    demo, with_texts, settings, dataset, count, caplog
):
    texts_cached(demo, with_texts, settings, **dataset)
    assert reused(caplog) == count


@pytest.mark.all_pictures
def test_of_changed_captions_only_those_are_encoded(demo, run_folder, caplog):
    save_texts(texts_cached(demo, run_folder))
    forget(run_folder)
    for number in ("01", "02"):
        (path,) = (run_folder / "pictures").glob(f"{number}_*.txt")
        path.write_text("another caption", encoding="utf-8")
    caplog.clear()
    texts_cached(demo, run_folder)
    assert reused(caplog) == 10


@pytest.mark.all_pictures
def test_texts_that_do_not_fit_are_not_used(demo, run_folder, caplog):
    changes = [
        {"prompt_embeds": np.full((512, 64), np.nan, np.float32)},
        {"prompt_embeds": np.zeros((512, 63), np.float32)},
        {"prompt_embeds": np.zeros((1, 512, 64), np.float32)},
        {"attn_mask": np.ones(512, np.int64)},
        {"attn_mask": np.arange(512) % 2},
        {"t5_attn_mask": np.zeros((512, 1), np.int32)},
        {"t5_input_ids": np.zeros(512, np.float32)},
    ]
    save_texts(texts_cached(demo, run_folder), *changes)
    forget(run_folder)
    caplog.clear()
    texts_cached(demo, run_folder)
    assert reused(caplog) == 12 - len(changes)
    assert any(f"captions: {len(changes)} files are not used" in line for line in caplog.messages)
