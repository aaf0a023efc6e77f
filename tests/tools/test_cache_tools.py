"""Caching ahead of time, and what of a cache is made anew when one thing changes."""

import logging
import os
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file, save_file

from library.errors import ConfigError
from tests.helpers import warm
from tests.helpers.dataset_files import draw
from tests.helpers.running import config_files, make_trainer, model_paths
from tools._ahead import trainer_before_its_caches
from tools.cache_latents import cache_latents
from tools.cache_text_encoder_outputs import cache_text

DISK = {"cache_latents_to_disk": True, "cache_text_encoder_outputs_to_disk": True}
CHANGING = {"shuffle_caption": True, "caption_dropout_rate": 0.2, "flip_aug": True}


@pytest.fixture(autouse=True)
def told(caplog):
    """What is encoded is told. The tools are called as in processes of their own: accelerate starts fresh."""
    caplog.set_level(logging.INFO)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def counts(caplog):
    """(latents, captions) encoded, as the log says."""
    found = {}
    for line in caplog.messages:
        for what in ("latents", "captions"):
            if line.startswith(f"{what}: ") and " encoded" in line:
                found[what] = int(line.split(", ")[1].split()[0])
    caplog.clear()
    return found.get("latents"), found.get("captions")


@pytest.mark.all_pictures
def test_a_run_encodes_nothing_after_both_tools(demo, run_folder, caplog):
    settings = {**DISK, "max_train_steps": None, "max_train_epochs": 2}
    argv = config_files(demo, run_folder, settings, **CHANGING)
    cache_latents(argv)
    cache_text(argv)
    assert counts(caplog)[0] == 24
    cache = run_folder / "pictures/_cache"
    files = {path: path.stat().st_mtime_ns for path in cache.glob("*.safetensors")}
    make_trainer(argv).train()
    assert counts(caplog) == (0, 0)
    assert {p: p.stat().st_mtime_ns for p in cache.glob("*.safetensors")} == files


def test_the_tools_run_as_programs_with_any_flag_of_the_trainer(demo, run_folder, caplog):
    argv = config_files(demo, run_folder, {"cache_latents": True}, **CHANGING)
    for tool, kind in (("cache_latents", "latents"), ("cache_text_encoder_outputs", "captions")):
        done = warm.run(["-m", f"tools.{tool}", *argv, "--max_train_steps", "1"], cwd=run_folder)
        assert done.returncode == 0, done.stderr
        assert f"{kind}: 0 reused" in done.stderr
        assert f"{tool}_to_disk = true: set it there too" in done.stderr
    make_trainer([*argv, *(f"--{flag}" for flag in DISK), "--max_train_steps", "1"]).train()
    assert counts(caplog) == (0, 0)


@pytest.mark.all_pictures
def test_more_texts_than_are_held_at_once_are_left_to_the_training(demo, run_folder, caplog):
    settings = {**DISK, "max_train_steps": None, "max_train_epochs": 4, "text_cache_variants": 24}
    argv = config_files(demo, run_folder, settings, shuffle_caption=True)
    cache_text(argv)
    assert "24 captions are ready, of epochs 1 to 2 of 4" in caplog.text
    assert counts(caplog)[1] == 24
    make_trainer(argv).train()
    first, second = (line for line in caplog.messages if line.startswith("captions: "))
    assert (first, second) == ("captions: 24 reused, 0 encoded", "captions: 0 reused, 24 encoded")


def test_changing_captions_without_a_seed_are_refused(demo, run_folder):
    argv = config_files(demo, run_folder, {**DISK, "seed": None}, **CHANGING)
    with pytest.raises(ConfigError, match="seed"):
        cache_text(argv)
    cache_text(config_files(demo, run_folder, {**DISK, "seed": None}))


@pytest.fixture(scope="module")
def models(demo, tmp_path_factory):
    """A copy of the demo's models, whose files a test may touch."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(demo / "models", folder / "models")
    return folder


@pytest.fixture(scope="module")
def filled(models, demo, tmp_path_factory):
    """Three pictures whose caches are complete."""
    folder = tmp_path_factory.mktemp("filled")
    (folder / "pictures").mkdir()
    for path in (demo / "pictures").glob("0[123]_*"):
        shutil.copy2(path, folder / "pictures")
    cache_both(models, folder)
    return folder


def cache_both(models, folder, settings=None, **dataset):
    settings = {**DISK, "mixed_precision": "bf16", **(settings or {})}
    argv = config_files(models, folder, settings, **dataset)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    trainer = trainer_before_its_caches(argv, "cache_latents_to_disk")
    trainer.cache_latents()
    trainer.cache_text()


def touch(path):
    """Another time, nothing else."""
    path = (
        next(file for file in sorted(path.iterdir()) if file.is_file()) if path.is_dir() else path
    )
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def change(path):
    """Another content that means the same."""
    if path.is_dir():
        path = min(path.glob("*.json"))
        path.write_bytes(path.read_bytes() + b"\n")
    else:
        save_file(load_file(path), path, metadata={"changed": "yes"})


def first(folder, pattern):
    return min((folder / "pictures").glob(pattern))


CAUSES = {  # name -> (what is done to the folder and the models, flags, dataset, encoded)
    "nothing": (None, {}, {}, (0, 0)),
    "a picture's content": (lambda f, m: draw(first(f, "*.png"), (160, 128), 5), {}, {}, (1, 0)),
    "a picture's time": (lambda f, m: touch(first(f, "*.png")), {}, {}, (0, 0)),
    "a caption": (lambda f, m: first(f, "*.txt").write_text("new"), {}, {}, (0, 1)),
    "two captions become one": (
        lambda f, m: [path.write_text("same") for path in (f / "pictures").glob("0[12]_*.txt")],
        {}, {}, (0, 1)),
    "the models' times": (lambda f, m: [touch(Path(path)) for path in m.values()], {}, {}, (0, 0)),
    "the VAE's file": (lambda f, m: change(Path(m["vae"])), {}, {}, (3, 0)),
    "the encoder's file": (lambda f, m: change(Path(m["qwen"])), {}, {}, (0, 3)),
    "Qwen's tokenizer": (lambda f, m: change(Path(m["qwen_tokenizer_dir"])), {}, {}, (0, 3)),
    "T5's tokenizer": (lambda f, m: change(Path(m["t5_tokenizer_dir"])), {}, {}, (0, 3)),
    "the DiT's file": (lambda f, m: change(Path(m["anima_transformer"])), {}, {}, (0, 0)),
    "no_half_vae": (None, {"no_half_vae": True}, {}, (3, 0)),
    "precision": (None, {"mixed_precision": "no"}, {}, (3, 3)),
    "Qwen's length": (None, {"qwen3_max_token_length": 500}, {}, (0, 3)),
    "T5's length": (None, {"t5_max_token_length": 500}, {}, (0, 3)),
    "empty_caption": (None, {"empty_caption": "zeros"}, {}, (0, 3)),
    "resolution": (None, {}, {"resolution": 128}, (3, 0)),
    "flips": (None, {}, {"flip_aug": True}, (3, 0)),
    "kernel": (None, {}, {"resize_interpolation": "nearest"}, (3, 0)),
    "what is no part of it": (
        None, {"learning_rate": 1e-5, "seed": 1, "vae_batch_size": 2, "text_cache_variants": 2},
        {"num_repeats": 3, "batch_size": 1}, (0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES)
def test_only_what_a_cause_concerns_is_made_anew(filled, models, tmp_path, cause, caplog):
    act, settings, dataset, expected = CAUSES[cause]
    shutil.copytree(filled / "pictures", tmp_path / "pictures")  # with its times
    paths = model_paths(models)
    before = {p: p.read_bytes() for p in (models / "models").rglob("*") if p.is_file()}
    if act:
        act(tmp_path, paths)
    caplog.clear()
    try:
        cache_both(models, tmp_path, settings, **dataset)
        assert counts(caplog) == expected
    finally:
        for path, content in before.items():
            path.write_bytes(content)
