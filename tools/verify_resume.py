"""Show on your own configuration that a run that was killed goes on as if nothing had happened.

python tools/verify_resume.py --config_file train_args.toml --dataset_config dataset.toml [trainer flags]

Trains a few steps three times in a folder for temporary files: once to the end; once until the process
is killed at a random moment; and once from the last state that the killed one left. The two results
have to be the same file, byte for byte. On a GPU without --deterministic two undisturbed runs differ
already: then it is measured first by how much, and the resumed run may differ by no more.
用你自己的配置验证：训练中途被强制结束后继续，结果与不中断时逐字节相同。

  --verify_steps N      steps of each run, 8 unless given
  --verify_every N      steps between states, 2 unless given
  --verify_processes N  train with N processes, as torchrun starts them
  --verify_folder DIR   where to work and leave everything for a look
Exit code 0 when resuming is exact, 1 when it is not, 2 for a configuration that does not train.
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

import argparse
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from anima_train_network import AnimaNetworkTrainer, load_run
from library.errors import UserError
from library.saving.checkpoints import EXTENSION
from library.system.program import run_main
from library.system.system_errors import output_errors
from library.utils import setup_logging

ROOT = Path(__file__).resolve().parent.parent
AS_CHILD = "--verify_child"
NAME = "run"
SPREAD_ALLOWED = 3.0
"""How many times further than two undisturbed runs a resumed one may be from the first."""


@dataclass(frozen=True)
class Job:
    """The runs to make. argv: the trainer's; every: steps between states."""

    argv: Sequence[str]
    folder: Path
    steps: int = 8
    every: int = 2
    processes: int = 1

    def start(self, name: str, resume: Path | None = None) -> subprocess.Popen:
        """One run as a process of its own, in folder/name; its messages go to folder/name.log."""
        orders = {
            "folder": str(self.folder / name),
            "steps": self.steps,
            "every": self.every,
            "resume": resume and str(resume),
        }
        command = ["-m"]
        if self.processes > 1:
            command += ["torch.distributed.run", "--nproc_per_node", str(self.processes), "-m"]
        command += ["tools.verify_resume", AS_CHILD, json.dumps(orders), *self.argv]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
        if self.processes > 1 and not torch.cuda.is_available():
            environment["ACCELERATE_USE_CPU"] = "true"
        file = self.folder / f"{name}.log"
        with output_errors(file):
            self.folder.mkdir(parents=True, exist_ok=True)
            log = open(file, "w", encoding="utf-8")  # noqa: SIM115  closed below
        with log:
            return self.spawn(command, env=environment, stdout=log, stderr=log)

    def spawn(self, arguments: Sequence[str], **keywords: Any) -> subprocess.Popen:
        """Python with these arguments, as a process of its own."""
        return subprocess.Popen([sys.executable, *arguments], **keywords)

    def finish(self, process: subprocess.Popen, name: str) -> Path:
        """Wait for a run and return its last file. Raises UserError with its last words if it failed."""
        if code := process.wait():
            log = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
            raise UserError(f"the run ended with code {code}:\n{log[-2000:]}", source=name)
        final = self.folder / name / f"{NAME}{EXTENSION}"
        return final if final.exists() else max(final.parent.glob(f"{NAME}-step*{EXTENSION}"))

    def states(self, name: str) -> list[Path]:
        return sorted((self.folder / name).glob(f"{NAME}-step*-state"))


class ShortRun(AnimaNetworkTrainer):
    """The user's run, as long and with the schedule that it has, left after `last_step`."""

    last_step = 0

    def after_step(self) -> None:
        super().after_step()
        self.stops.quits |= self.state.step >= self.last_step


def child(orders: dict, argv: Sequence[str]) -> int:
    """One of the runs, in a process of its own."""
    train, datasets, anima, _ = load_run(argv)
    setup_logging()
    save = replace(
        train.save,
        output_dir=orders["folder"],
        output_name=NAME,
        save_precision=None,
        save_every_n_steps=orders["every"],
        save_last_n_steps=None,
        save_every_n_epochs=None,
        save_n_epoch_ratio=None,
        no_metadata=True,
    )
    resume = replace(
        train.resume, save_state=True, save_last_n_steps_state=None, resume=orders["resume"]
    )
    logs = replace(train.logging, log_with="none", auto_start_tensorboard=False)
    loop = replace(train.loop, seed=1 if train.loop.seed is None else train.loop.seed)
    train = replace(train, save=save, resume=resume, logging=logs, loop=loop)
    trainer = ShortRun(train, datasets, anima)
    trainer.last_step = orders["steps"]
    trainer.train()
    return 0


def kill_at_random(job: Job, process: subprocess.Popen, name: str, rng: random.Random) -> bool:
    """SIGKILL the run's processes some time after one of its states; False: it was done before."""
    count = job.steps // job.every
    wanted = rng.randint(1, max(1, count - 2))  # so that there is time before the end
    seen, moment, interval = 0, time.monotonic(), 0.3
    while seen < wanted:
        if process.poll() is not None:
            return False
        if (now := len(job.states(name))) > seen:
            seen, interval, moment = now, time.monotonic() - moment, time.monotonic()
        time.sleep(0.005)
    with suppress(subprocess.TimeoutExpired):
        process.wait(rng.uniform(0, interval if wanted > 1 else 0.3))
        return False
    launcher = psutil.Process(process.pid)
    for each in [launcher, *launcher.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
    return True


def distance(file: Path, other: Path) -> float:
    """0 for the same bytes, else the largest |a - b| / |a| of a tensor; infinite for other tensors."""
    if file.read_bytes() == other.read_bytes():
        return 0.0
    first, second = load_file(file), load_file(other)
    if first.keys() != second.keys():
        return float("inf")
    apart = [
        (first[key].double() - second[key].double()).norm().item()
        / max(first[key].double().norm().item(), 1e-30)
        for key in first
    ]
    return max(max(apart), 1e-30)


def verify(job: Job, rng: random.Random, *, together: bool = False) -> tuple[bool, str]:
    """Whether resuming is exact, and the sentences that tell it.

    together: the undisturbed and the killed run train at the same time
    """
    tell(f"Training {job.steps} steps undisturbed (messages: {job.folder / 'whole.log'})")
    reference = job.start("whole")
    whole = None if together else job.finish(reference, "whole")
    for attempt in range(5):
        name = f"killed-{attempt}"
        tell("The same again, killed at a random moment")
        process = job.start(name)
        if kill_at_random(job, process, name, rng):
            break
        job.finish(process, name)
    else:
        return False, "The run was over before it could be killed. Use more --verify_steps."
    whole = whole or job.finish(reference, "whole")
    state, beyond = job.states(name)[-1], (job.folder / name / whole.name).exists()
    tell(f"The same again, from {state.name}")
    resumed = job.finish(job.start(name, resume=state), name)
    told = f"Killed {'at its end' if beyond else 'in the middle'}, resumed from {state.name}: "
    apart = distance(whole, resumed)
    if apart == 0:
        return True, f"{told}the same {whole.stat().st_size} bytes."
    if not torch.cuda.is_available() or is_deterministic(job.argv):
        return False, f"{told}not the same; tensors differ by up to {apart:.2e}."
    tell("Not the same bytes: measuring how far two undisturbed runs differ")
    spread = distance(whole, job.finish(job.start("again"), "again"))
    told += f"differs by {apart:.2e}; two undisturbed runs differ by {spread:.2e}."
    return apart <= SPREAD_ALLOWED * spread, f"{told} With --deterministic it can be exact."


def tell(text: str) -> None:
    print(f"{text} ...", flush=True)


def is_deterministic(argv: Sequence[str]) -> bool:
    return load_run(argv)[0].precision.deterministic


def main() -> int:
    if sys.argv[1:2] == [AS_CHILD]:
        return child(json.loads(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(prog="tools/verify_resume.py", add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--verify_steps", type=int, default=8)
    parser.add_argument("--verify_every", type=int, default=2)
    parser.add_argument("--verify_processes", type=int, default=1)
    parser.add_argument("--verify_folder", type=Path)
    own, argv = parser.parse_known_args()
    if own.help:
        print(__doc__, end="")
        return 0
    if own.verify_every < 1 or own.verify_steps < 2 * own.verify_every:
        raise UserError("--verify_steps: expected at least twice --verify_every.")
    load_run(argv)  # what is wrong with the configuration is told before anything is started
    with tempfile.TemporaryDirectory(prefix="verify-resume-") as temporary:
        folder = own.verify_folder or Path(temporary)
        job = Job(argv, folder, own.verify_steps, own.verify_every, own.verify_processes)
        exact, text = verify(job, random.Random())
    print(f"{text}\n{'Resuming is exact.' if exact else 'RESUMING IS NOT EXACT.'}")
    return 0 if exact else 1


if __name__ == "__main__":
    run_main(main)
