"""The monitor in the real trainer: a NaN, a spike and a memory limit that really happen."""


import pytest
import torch
from safetensors.torch import load_file

from library.caching.cache_files import CacheFile, read_cache_header
from library.saving.state_folder import open_state
from library.watching.monitor import AlertError, LossHistory, MemoryReading
from tests.helpers.reads import CountReads
from tests.helpers.running import (
    config_files,
    make_trainer,
    resident,
    rows_of,
    trainer_at_its_first_step,
    with_lost_latents,
)


def weights_of(trainer):
    return [p.detach().clone() for p in trainer.network.get_trainable_params()]


def equal(ours, others):
    return all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


@pytest.mark.all_pictures
@pytest.mark.parametrize("optimizer, reads", [("AdamW", 0), ("AdamWScheduleFree", 0)])
def test_a_batch_without_finite_latents_moves_nothing_and_training_goes_on(
    demo, run_folder, optimizer, reads
):
    settings = {"optimizer_type": optimizer, "gradient_accumulation_steps": 2}
    trainer, batches = trainer_at_its_first_step(config_files(demo, run_folder, settings))
    trainer.train_step(batches[0])
    before = weights_of(trainer)
    with CountReads() as counter:
        trainer.train_step(with_lost_latents(batches[1]))
    assert counter.reads == reads
    assert equal(weights_of(trainer), before)
    trainer.train_step(batches[2])
    after = weights_of(trainer)
    assert not equal(after, before) and all(weight.isfinite().all() for weight in after)
    trainer.progress.write()
    logged = rows_of(trainer)
    assert [row["alert/nonfinite_loss"] for row in logged] == [0.0, 1.0, 0.0]
    assert [row["alert/any"] for row in logged] == [0.0, 1.0, 0.0]
    assert logged[-1].keys() >= {"alert/memory_near_limit", "alert/loss_spike", "norm/grad"}


def cached_run(demo, folder, **settings):
    """The arguments of a run whose caches are on disk already, and its batches in their order."""
    disk = {"cache_latents_to_disk": True, "cache_text_encoder_outputs_to_disk": True}
    argv = config_files(demo, folder, {**disk, **settings})
    _, batches = trainer_at_its_first_step(argv)
    return argv, [batch.keys for window in batches for batch in window]


def spoil_cached_latents(folder, key, factor):
    """Multiply a picture's latents in its cache file, which stays a valid one of its fingerprint."""
    name = key.rpartition("/")[2]
    (path,) = (folder / "pictures" / "_cache").glob(f"{name}_*x*.safetensors")
    with open(path, "rb") as file:
        owner = read_cache_header(file, path.stat().st_size, path).fingerprint
    CacheFile(path, owner, {}).write({"latents": load_file(path)["latents"] * factor})


def test_policy_raise_ends_a_run_at_the_lost_picture_with_what_was_learned_before(demo, run_folder):
    settings = {"anima_monitor_alert_policy": "raise", "log_every_n_steps": 1000}
    argv, batches = cached_run(demo, run_folder, **settings)
    key = batches[2][0]
    spoil_cached_latents(run_folder, key, 1e30)
    trainer = make_trainer(argv)
    with pytest.raises(AlertError) as stopped:
        trainer.train()
    file = run_folder / "out" / "run-step00000003.safetensors"
    assert "step 3: the loss is not finite" in str(stopped.value)
    assert key in str(stopped.value) and str(file) in str(stopped.value)
    state = run_folder / "out" / "run-step00000003-state"
    assert str(stopped.value).endswith(f"go on with --resume {state}")
    assert open_state(state, trainer.snapshot_schema).position.step == 3
    assert [row["alert/nonfinite_loss"] for row in rows_of(trainer)] == [0.0, 0.0, 1.0]
    make_trainer([*argv, "--max_train_steps", "2", "--output_name", "two"]).train()
    expected = load_file(run_folder / "out" / "two.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in load_file(file).items())
    assert not (run_folder / "out" / "run.safetensors").exists()


def test_a_picture_that_jumps_out_is_named_as_a_spike(demo, run_folder, caplog):
    settings = {"max_train_steps": 72, "log_every_n_steps": 12}
    argv, batches = cached_run(demo, run_folder, **settings)
    key = batches[0][0]
    spoil_cached_latents(run_folder, key, 20)
    trainer = make_trainer(argv)
    trainer.train()
    judged = rows_of(trainer)[LossHistory.ENOUGH // 2 :]
    per_epoch = len(batches)
    assert sum(row["alert/loss_spike"] for row in judged) == pytest.approx(
        len(judged) / per_epoch, abs=1
    )
    told = [r.getMessage() for r in caplog.records if "usual at like sigma" in r.getMessage()]
    assert told and all(f"Pictures: {key}." in line for line in told)


def test_a_run_near_the_limit_of_its_memory_is_told_and_ended(demo, run_folder):
    settings = {"anima_monitor_alert_policy": "raise", "anima_monitor_memory_warn_ratio": 0.9}
    trainer = make_trainer(config_files(demo, run_folder, settings))
    trainer.prepare()
    declared = resident()
    trainer.monitor.probe = lambda: MemoryReading(limit=declared, in_use=resident())
    with pytest.raises(AlertError, match="step 1: .* MiB of memory are needed, over 90%"):
        trainer.run_epochs()
    (row,) = rows_of(trainer)
    assert row["alert/memory_near_limit"] == row["alert/any"] == 1.0
