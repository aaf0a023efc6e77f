"""Several processes: what they share, what only the first does, and what happens when one is gone."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from library.errors import ConfigError
from library.train_util import check_cards
from tests.helpers import documented, warm
from tests.helpers.paths import ROOT
from tests.helpers.processes import (
    ended,
    free_port,
    plain_environment,
    processes_in,
    start_ranks,
)
from tests.helpers.running import config_files, make_trainer
from tests.helpers.workers import forking_program

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and signals as on Linux")


def run(script, *arguments, processes=2):
    ranks = start_ranks(processes, [str(ROOT / script), *arguments], CUDA_VISIBLE_DEVICES="")
    return ended(ranks)


def same_bucket(trainer, count):
    return next(i for i in trainer.catalogue.buckets().values() if len(i) >= count)[:count]


@pytest.fixture(scope="module")
def seen(demo, tmp_path_factory):
    """What one process with two samples, and two processes with one each, saw of the same run.

    The two also keep their weights in RAM and recompute, which changes nothing.
    """
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "pictures").symlink_to(demo / "pictures")
    settings = {"max_grad_norm": 1.0, "noise_offset": 0.1, "log_with": "none"}
    settings |= {"optimizer_type": "torch.optim.SGD"}  # Adam turns rounding into signs
    settings |= {"ddp_timeout": 7, "ddp_gradient_as_bucket_view": True, "ddp_static_graph": True}
    argv = config_files(demo, folder, settings, batch_size=1, num_repeats=2, flip_aug=True)
    trainer = make_trainer(argv)
    trainer.prepare()
    indices = ",".join(map(str, same_bucket(trainer, 2)))
    for processes, modes in ((1, []), (2, ["--blocks_to_swap", "2", "--recompute", "cheap"])):
        words = [str(folder / f"{processes}"), indices, *argv, *modes]
        run("tests/helpers/ranks.py", *words, processes=processes)
    trainer.sampler.world_size = 1
    return folder, trainer


def tensors(folder, name):
    return load_file(folder / f"{name}.safetensors")


def facts(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_settings_of_ddp_reach_torch(seen):
    assert facts(seen[0], "2/rank1")["ddp"] == [7.0, True, True]


def test_gradients_and_weights_are_equal_on_all_ranks(seen):
    folder, _ = seen
    first, second = tensors(folder, "2/rank0"), tensors(folder, "2/rank1")
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_two_processes_with_one_sample_each_update_as_one_with_two(seen):
    folder, _ = seen
    one, two = tensors(folder, "1/rank0"), tensors(folder, "2/rank0")
    moved = 0
    for name, value in one.items():
        assert torch.allclose(value, two[name], rtol=1e-4, atol=1e-7), name
        moved += name.startswith("gradient") and bool(value.abs().max() > 0)
    assert moved > 30


def test_samples_have_the_same_noise_wherever_they_are_and_no_two_the_same(seen):
    folder, _ = seen
    together = facts(folder, "1/rank0")
    apart = [facts(folder, f"2/rank{rank}") for rank in range(2)]
    for key in ("seeds", "sigma"):
        values = [value for each in apart for value in each[key]]
        assert values == together[key] and len(set(values)) == 2


def test_an_epoch_is_split_without_loss_or_mixing(seen):
    folder, trainer = seen
    apart = [facts(folder, f"2/rank{rank}")["epochs"] for rank in range(2)]
    for epoch in range(2):
        whole = trainer.sampler.batches(epoch)
        wanted = sorted((r.index, r.repeat) for batch in whole for r in batch)
        halves = [apart[rank][epoch] for rank in range(2)]
        assert len(halves[0]) == len(halves[1]) == -(-len(whole) // 2)
        found = sorted({(r["index"], r["repeat"]) for half in halves for b in half for r in b})
        assert found == wanted
        images = trainer.catalogue.images
        for batch in (batch for half in halves for batch in half):
            assert len({images[r["index"]].plan.bucket for r in batch}) == 1


def test_latents_in_memory_are_encoded_by_one_and_held_by_all(seen):
    folder, _ = seen
    alone = facts(folder, "1/rank0")
    apart = [facts(folder, f"2/rank{rank}") for rank in range(2)]
    assert alone["encoded"] == len(alone["latents"]) == 24  # twelve pictures, plain and mirrored
    assert sorted(each["encoded"] for each in apart) == [12, 12]
    assert apart[0]["latents"] == apart[1]["latents"] == alone["latents"]


def files_below(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_run_of_two_writes_once_and_logs_the_loss_of_both(demo, run_folder, on_disk):
    settings = {"cache_latents_to_disk": on_disk, "cache_text_encoder_outputs_to_disk": on_disk,
                "max_train_epochs": 1, "max_train_steps": None,
                "evaluate_every_n_epochs": 1, "drift_prompts": "builtin"}  # fmt: skip
    argv = config_files(demo, run_folder, settings, batch_size=2, dataset="validation_split = 0.2")
    told = run("anima_train_network.py", *argv)
    assert told.count("done: ") == told.count("steps in all") == 1
    written = files_below(run_folder / "out")
    assert [name for name in written if not name.startswith("logs/")] == [
        "run.safetensors",
        "run_ledger.csv",
        "run_report.html",
    ]
    assert sum(name.endswith("loss.jsonl") for name in written) == 1
    (log,) = (run_folder / "out").rglob("loss.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum("loss/validation/average" in row for row in rows) == 1
    losses = [row["loss/current"] for row in rows if "loss/current" in row]
    alone = make_trainer(argv)
    alone.prepare()
    alone.sampler.set_epoch(0)
    first = alone.sampler.batches(0)[:2]
    from library.data.datasets import collate

    results = [alone.process_batch(collate([alone.dataset[r] for r in batch])) for batch in first]
    assert losses[0] == pytest.approx(sum(r.loss.item() for r in results) / 2, rel=1e-5)
    (evaluated,) = [row for row in rows if "eval/auc" in row]
    base = alone.evaluation.losses(alone.process_batch, alone.accelerator, without_adapters=True)
    expected = base[alone.evaluation.trained :].mean().item()
    assert evaluated["eval/loss/base"] == pytest.approx(expected, rel=1e-5)
    assert evaluated["drift/without_subject"] > 0


def trainers(launcher, folder):
    """The numbers of the processes in a folder that train: what torchrun started, or what it is there for."""
    there = [psutil.Process(each) for each in processes_in(folder) - {launcher}]
    return {each.pid for each in there if not (warm.can_fork() and each.ppid() == launcher)}


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="reads /proc")
@documented.runs(f"torchrun --nproc_per_node 2 {documented.LAUNCH}")
def test_a_rank_that_dies_ends_the_run_with_a_message(demo, run_folder, command):
    settings = {"save_every_n_steps": 2, "max_train_steps": 5000, "log_with": "none"}
    config_files(demo, run_folder, settings)
    environment = plain_environment(CUDA_VISIBLE_DEVICES="", PET_MASTER_PORT=free_port())
    python = forking_program(run_folder)
    started = documented.start(command, run_folder, env=environment, python=python)
    try:
        first = run_folder / "out" / "run-step00000002.safetensors"
        while not first.exists() and started.poll() is None:
            time.sleep(0.05)
        assert first.exists(), started.stderr.read()[-2000:]
        lock = json.loads((run_folder / "out" / ".run.lock").read_text())
        holder, (other,) = {lock["process"]}, trainers(started.pid, run_folder) - {lock["process"]}
        assert holder < trainers(started.pid, run_folder)  # one of them holds it for all
        os.kill(other, signal.SIGKILL)
        told = started.stderr.read()
        started.wait()
    finally:
        started.kill()
    assert started.returncode != 0
    assert "SIGKILL" in told or "Signal 9" in told
    assert load_file(first)


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"])
def test_what_splits_a_model_is_refused_with_the_reason(demo, run_folder, monkeypatch, variable):
    trainer = make_trainer(config_files(demo, run_folder, {}))
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigError, match="every process holds the whole"):
        trainer.train()


def test_a_launcher_whose_processes_do_not_meet_is_told(demo, run_folder, monkeypatch):
    trainer = make_trainer(config_files(demo, run_folder, {}))
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 1)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    with pytest.raises(ConfigError, match="started 3 processes, and 1 of them found each other"):
        trainer.train()


def test_more_processes_than_cards_are_refused_before_they_meet():
    check_cards(2, 2)
    check_cards(2, 0)  # they train on the CPU
    with pytest.raises(ConfigError, match="2 processes .* 1 CUDA device, .* Start 1:"):
        check_cards(2, 1)


def test_processes_step_down_together_where_one_runs_out_of_memory(demo, run_folder):
    """And the file is that of a run which began so, which is that of a plain one."""
    settings = {
        "max_train_steps": 3, "network_dropout": 0.2, "gradient_accumulation_steps": 2,
        "no_metadata": True, "log_with": "none",
    }  # fmt: skip
    written = {}
    for name, more in (("plain", {}), ("short", {"vram_target": 6})):
        out = run_folder / name
        argv = config_files(demo, run_folder, {**settings, **more, "output_dir": str(out)})
        words = ["tests/helpers/short_ranks.py", "1", "1"] if more else ["anima_train_network.py"]
        told = run(*words, *argv)
        written[name] = (out / "run.safetensors").read_bytes()
    seen = [json.loads(each) for each in re.findall(r"^seen: (.*)", told, re.MULTILINE)]
    assert seen == [{"recomputing": ["cheap", "cheap"], "taken": True}] * 2
    assert told.count("step 2: the device's memory was too short for no memory option") == 1
    assert written["short"] == written["plain"]
