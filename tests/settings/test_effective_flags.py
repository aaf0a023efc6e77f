"""Flags whose effect only a run, or the machinery of one, can show; see tests/helpers/effects_table.py."""

import json
import logging
from dataclasses import fields

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from anima_train_network import load_run
from library import train_util
from library.data.bucket_sampler import BucketBatchSampler
from library.data.datasets import TrainDataset
from library.settings.flags.metadata import MetadataOptions
from library.settings.flags.validation import ValidationOptions
from library.watching.validation import Validation
from tests.helpers.dataset_files import catalogue_of, folder_of, picture_url
from tests.helpers.running import config_files, make_trainer, train


def options(demo, run_folder, **settings):
    return load_run(config_files(demo, run_folder, settings))[0]


def test_settings_of_the_process_reach_torch(demo, run_folder, monkeypatch):
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        cuda.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = False
        train_util.prepare_torch(options(demo, run_folder))
        assert not (cuda.allow_tf32 or cudnn.benchmark)
        assert not torch.are_deterministic_algorithms_enabled()
        train_util.prepare_torch(options(demo, run_folder, cuda_allow_tf32=True))
        assert cuda.allow_tf32 and cudnn.allow_tf32 and not cudnn.benchmark
        train_util.prepare_torch(options(demo, run_folder, cuda_cudnn_benchmark=True))
        assert cudnn.benchmark
        train_util.prepare_torch(options(demo, run_folder, deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
        cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def test_settings_of_the_loader_reach_it(demo, run_folder, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    catalogue = catalogue_of(folder_of(run_folder / "few", [(64, 64)]))
    dataset, sampler = TrainDataset(catalogue, seed=1), BucketBatchSampler(catalogue, seed=1)
    for asked in (0, 2):
        data = options(demo, run_folder, max_data_loader_n_workers=asked).data
        assert train_util.make_loader(dataset, sampler, data).threads == asked


def encoded(demo, run_folder, **settings) -> list[int]:
    """How many pictures the VAE got at a time."""
    cached = {"cache_latents_to_disk": True, "cache_text_encoder_outputs": False, **settings}
    trainer = make_trainer(config_files(demo, run_folder, cached))
    trainer.prepare_process()
    trainer.open_state()
    trainer.check()
    trainer.prepare_data()
    strategy, sizes = trainer.get_latents_caching_strategy(), []
    encode = strategy.encode

    def counting(pixels):
        sizes.append(len(pixels))
        return encode(pixels)

    strategy.encode = counting
    trainer.get_latents_caching_strategy = lambda: strategy
    trainer.prepare_strategies()
    trainer.cache_inputs()
    return sizes


def test_settings_of_caches_reach_them(demo, run_folder):
    half = {"mixed_precision": "bf16"}
    assert max(encoded(demo, run_folder, vae_batch_size=3)) == 3
    assert not encoded(demo, run_folder, **half, no_half_vae=True)  # in float32, as before
    assert not encoded(demo, run_folder, **half, skip_cache_check=True)
    assert set(encoded(demo, run_folder, **half)) == {1}


def test_a_run_is_as_its_flags_say(demo, run_folder):
    """Clipping, precision, offloading and every word of the user, in one update."""
    names = [f.name for f in fields(MetadataOptions) if f.name != "metadata_thumbnail"]
    said = {name: f"what {name} says" for name in names}
    said["metadata_thumbnail"] = picture_url()
    trainer = train(demo, run_folder, {
        **said, "optimizer_type": "torch.optim.SGD", "learning_rate": 1.0, "max_grad_norm": 0.01,
        "save_precision": "bf16", "unsloth_offload_checkpointing": True, "max_train_steps": 1,
        "network_train_unet_only": True, "log_with": "none",
    })  # fmt: skip
    assert trainer.accelerator.unwrap_model(trainer.model).keep_input is not None
    written = run_folder / "out" / "run.safetensors"
    with safe_open(written, "pt") as file:
        metadata = json.dumps(file.metadata())
    factors = {key: t for key, t in load_file(written).items() if not key.endswith(".alpha")}
    assert {factor.dtype for factor in factors.values()} == {torch.bfloat16}
    starts_at_zero = ("lora_up.weight", "w_norm", "b_norm")
    moved = [t.float().norm() for key, t in factors.items() if key.endswith(starts_at_zero)]
    assert torch.stack(moved).norm() == pytest.approx(0.01, rel=0.01)
    assert not [name for name, text in said.items() if text not in metadata]


def test_validation_is_due_and_as_long_as_asked(tmp_path):
    catalogue = catalogue_of(folder_of(tmp_path / "few", [(64, 64)] * 6))
    validation = Validation(catalogue, ValidationOptions(max_validation_steps=3))
    assert len(list(validation.batches())) == 3
    assert len(list(Validation(catalogue, ValidationOptions()).batches())) > 3
    due = Validation(catalogue, ValidationOptions(validate_every_n_epochs=2))
    assert [due.is_due_after_epoch(epoch) for epoch in (1, 2, 3, 4)] == [False, True, False, True]


def test_messages_look_as_asked(demo, run_folder):
    file = run_folder / "log.txt"
    settings = {"console_log_file": str(file), "console_log_simple": True, "v2": True}
    make_trainer(config_files(demo, run_folder, settings))
    logging.getLogger("train_network").info("just this")
    text = file.read_text(encoding="utf-8").splitlines()
    assert "just this" in text and any(line.startswith("v2 has no effect") for line in text)
    make_trainer(config_files(demo, run_folder, {**settings, "console_log_level": "ERROR"}))
    logging.getLogger("train_network").info("not this")
    assert "not this" not in file.read_text(encoding="utf-8")


def test_a_rate_of_the_text_encoder_counts_unless_it_is_left_alone(demo, run_folder):
    rate = {"text_encoder_lr": [1e-5], "cache_text_encoder_outputs": False}
    assert options(demo, run_folder, **rate).network.text_encoder_rate == 1e-5
    argv = config_files(demo, run_folder, {**rate, "network_train_unet_only": True})
    train, _, _, notes = load_run(argv)
    assert train.network.text_encoder_rate is None
    told = "--text_encoder_lr has no effect: network_train_unet_only leaves the text encoder alone."
    assert notes == [told]
