"""Command lines of the documents, run as they stand there in a folder with the files that they name."""

import shlex
import subprocess
from pathlib import Path

import pytest

from tests.helpers import warm
from tests.helpers.paths import ROOT

PAIR = "--config_file train_args.toml --dataset_config dataset.toml"
LAUNCH = f"anima_train_network.py {PAIR}"
PROGRAMS = {
    "accelerate": "accelerate.commands.accelerate_cli",
    "tensorboard": "tensorboard.main",
    "torchrun": "torch.distributed.run",
}


def runs(command: str) -> pytest.MarkDecorator:
    """Marks a test that starts its argument `command`; tests/house/test_documents.py looks for it."""
    return pytest.mark.parametrize("command", [pytest.param(command, id="as documented")])


def commands_of(test) -> list[str]:
    """What a test that is marked so starts."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.args[:1] == ("command",)]
    return [value.values[0] for mark in marks for value in mark.args[1]]


def argv_of(command: str) -> list[str]:
    """The words after `python`; a tool by its module, as it starts itself again."""
    program, *words = shlex.split(command)
    if program in PROGRAMS:
        return ["-m", PROGRAMS[program], *words]
    assert program == "python", command
    script = Path(words[0])
    return ["-m", f"tools.{script.stem}", *words[1:]] if script.parent.name == "tools" else words


def run(command: str, folder: Path, *more: str, **keywords) -> subprocess.CompletedProcess:
    """The command in `folder` until its end, with `more` words behind it; keywords: as those of warm.run."""
    return warm.run([*argv_of(command), *more], cwd=folder, **keywords)


def start(command: str, folder: Path, **keywords) -> subprocess.Popen:
    """The command, running in `folder`; keywords: as those of warm.start."""
    trainer = folder / "anima_train_network.py"
    if not trainer.exists():
        trainer.symlink_to(ROOT / trainer.name)
    return warm.start(argv_of(command), cwd=folder, stderr=subprocess.PIPE, **keywords)
