"""Running the real trainer in this process on the demo, with settings a test changes."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from torch import Tensor

import anima_train_network
from anima_train_network import AnimaNetworkTrainer, load_run
from library.anima_doctor import report as anima_report
from library.data.data_types import Batch
from library.train_util import make_loader, windows
from library.watching.monitor import read_memory
from library.watching.progress import RunProgress
from tests.helpers.pictures import give_caches

STILL = 1e-300  # a learning rate that changes no float32; 0 is refused
BASE = {
    "output_name": "run",
    "network_module": "networks.lora_anima",
    "network_dim": 4,
    "network_alpha": 4,
    "max_train_steps": 4,
    "learning_rate": 1e-3,
    "mixed_precision": "no",
    "seed": 7,
    "cache_latents": True,
    "cache_text_encoder_outputs": True,
    "log_every_n_steps": 1,
}
CACHED = {"cache_latents_to_disk": True, "cache_text_encoder_outputs_to_disk": True}


def model_paths(demo: Path) -> dict[str, str]:
    models = demo / "models"
    return {
        "anima_transformer": str(models / "anima_dit.safetensors"),
        "vae": str(models / "qwen_image_vae.safetensors"),
        "qwen": str(models / "qwen_3_06b.safetensors"),
        "qwen_tokenizer_dir": str(models / "qwen_tokenizer"),
        "t5_tokenizer_dir": str(models / "t5_tokenizer"),
    }


def toml_value(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{toml_value(key)} = {toml_value(each)}" for key, each in value.items())
        return "{" + ", ".join(pairs) + "}"
    return json.dumps(value, ensure_ascii=False)  # texts, numbers, booleans and lists read alike


def write_toml(path: Path, settings: dict[str, Any]) -> Path:
    lines = [f"{key} = {toml_value(value)}" for key, value in settings.items() if value is not None]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_dataset(folder: Path, *, batch_size=2, resolution=64, dataset="", **subset: Any) -> Path:
    """dataset.toml for the pictures in folder/pictures; `subset` are keys of the subset."""
    subset = {"image_dir": str(folder / "pictures"), **subset}
    lines = [f"{key} = {toml_value(value)}" for key, value in subset.items()]
    text = (
        "[[datasets]]\n"
        f"resolution = {resolution}\nbatch_size = {batch_size}\n"
        f"enable_bucket = true\nmin_bucket_reso = 64\nmax_bucket_reso = 256\n{dataset}\n"
        "[[datasets.subsets]]\n" + "\n".join(lines) + "\n"
    )
    path = folder / "dataset.toml"
    path.write_text(text, encoding="utf-8")
    return path


def config_files(demo: Path, folder: Path, settings: dict[str, Any], **dataset: Any) -> list[str]:
    """The two files of a run, as command-line arguments.

    Where the settings say nothing of caches, the demo's pictures have theirs: encoding the pictures takes as
    long as training on them.
    """
    values = {**model_paths(demo), **BASE, "output_dir": str(folder / "out"), **settings}
    if not any(key.startswith("cache_") for key in settings) and give_caches(demo, folder):
        values |= CACHED
    train_args = write_toml(folder / "train_args.toml", values)
    files = write_dataset(folder, **dataset)
    return ["--config_file", str(train_args), "--dataset_config", str(files)]


def forget_accelerate() -> None:
    """Let accelerate's process-wide state start fresh."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def make_trainer(
    argv: list[str], trainer: type[AnimaNetworkTrainer] = AnimaNetworkTrainer
) -> AnimaNetworkTrainer:
    """The trainer main() would run, not yet started. Accelerate's process-wide state starts fresh."""
    forget_accelerate()
    return anima_train_network.make_trainer(argv, trainer)


def train(demo: Path, folder: Path, settings: dict[str, Any] | None = None, **dataset: Any):
    """Run to the end and return the trainer."""
    trainer = make_trainer(config_files(demo, folder, settings or {}, **dataset))
    trainer.train()
    return trainer


def trainer_at_its_first_step(argv: list[str]):
    """A prepared trainer with its progress, and its windows of the first epoch."""
    trainer = make_trainer(argv)
    trainer.prepare()
    trainer.progress = RunProgress(trainer.trackers, trainer.plan, False, trainer.monitor)
    return trainer, windows_of_first_epoch(trainer)


def windows_of_first_epoch(trainer) -> list[list[Batch]]:
    trainer.sampler.set_epoch(0)
    loader = make_loader(trainer.dataset, trainer.sampler, trainer.cfg.data)
    return list(windows(loader, trainer.cfg.loop.gradient_accumulation_steps))


def with_lost_latents(window: list[Batch]) -> list[Batch]:
    """The window, the latents of its last batch not finite."""
    *others, last = window
    return [*others, replace(last, latents=torch.full_like(last.latents, math.nan))]


def rows_of(trainer) -> list[dict[str, Any]]:
    """The values of each step, by log key, from the run's own record."""
    lines = (trainer.trackers.run_dir / "loss.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses_of(trainer) -> list[float]:
    """The loss of every step."""
    return [row["loss/current"] for row in rows_of(trainer) if "loss/current" in row]


def exported(folder: Path, name: str = "run") -> dict[str, Tensor]:
    """The adapter file of a run."""
    return load_file(folder / "out" / f"{name}.safetensors")


def report(
    argv: list[str], trainer: type[AnimaNetworkTrainer] = AnimaNetworkTrainer
) -> tuple[str, int]:
    """What --check_only, or tools/doctor.py, says and its exit code. Accelerate starts fresh."""
    forget_accelerate()
    return anima_report.report(argv, load_run, trainer)


def resident() -> int:
    """Bytes of this process; the test is skipped where the system does not tell."""
    found = read_memory(torch.device("cpu")).resident
    return pytest.skip("this system does not tell") if found is None else found
