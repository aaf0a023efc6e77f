"""Running anima_train.py's trainer in this process on the demo."""

from pathlib import Path
from typing import Any

from safetensors import safe_open

from anima_train import AnimaTrainer
from tests.helpers.running import config_files, make_trainer

WITHOUT_ADAPTERS = {"network_module": None, "network_dim": None, "network_alpha": None}


def model_argv(demo: Path, folder: Path, settings: dict[str, Any], **dataset: Any) -> list[str]:
    """The two files of a run that trains the model itself, as command-line arguments."""
    return config_files(demo, folder, {**WITHOUT_ADAPTERS, **settings}, **dataset)


def train_model(demo: Path, folder: Path, settings: dict[str, Any]) -> AnimaTrainer:
    """Run to the end and return the trainer."""
    trainer = make_trainer(model_argv(demo, folder, settings), AnimaTrainer)
    trainer.train()
    return trainer


def spelling(path: Path) -> dict[str, tuple]:
    """Key -> dtype and shape of a file's tensors."""
    with safe_open(path, "pt") as file:
        return {
            key: (file.get_slice(key).get_dtype(), tuple(file.get_slice(key).get_shape()))
            for key in file.keys()  # noqa: SIM118  no mapping
        }
