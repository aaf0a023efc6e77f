"""Running the real trainer in this process on the demo, with settings a test changes."""

import json
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState

import anima_train_network

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
    return json.dumps(value, ensure_ascii=False)  # texts, numbers, booleans and lists read alike


def write_toml(path: Path, settings: dict[str, Any]) -> Path:
    lines = [f"{key} = {toml_value(value)}" for key, value in settings.items() if value is not None]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_dataset(folder: Path, *, batch_size=2, resolution=128, dataset="", **subset: Any) -> Path:
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
    """The two files of a run, as command-line arguments."""
    values = {**model_paths(demo), **BASE, "output_dir": str(folder / "out"), **settings}
    train_args = write_toml(folder / "train_args.toml", values)
    files = write_dataset(folder, **dataset)
    return ["--config_file", str(train_args), "--dataset_config", str(files)]


def make_trainer(argv: list[str]) -> "anima_train_network.AnimaNetworkTrainer":
    """The trainer main() would run, not yet started. Accelerate's process-wide state starts fresh."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return anima_train_network.make_trainer(argv)


def train(demo: Path, folder: Path, settings: dict[str, Any] | None = None, **dataset: Any):
    """Run to the end and return the trainer."""
    trainer = make_trainer(config_files(demo, folder, settings or {}, **dataset))
    trainer.train()
    return trainer
