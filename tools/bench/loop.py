"""Count the CPU time of the trainer's own loop, apart from the model: what no faster card saves.

python -m tools.bench.loop [--steps 60] [--live] [--json loop.json]

The real trainer on the demo's tiny models and pictures, on the CPU with one thread. `model` is forward
and backward; conditioning, update and the work after a step are named, the rest is `other`: noise, loss,
moving batches; `threads` is what all other threads of the process take meanwhile. With more adapters than
the demo's the update takes longer. With --live it is run twice: without page and report, and with a live
page that a reader follows.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import anima_train_network
from library.errors import UserError
from library.reporting.reporter import Reporter
from library.system.program import run_main
from tools.bench.measuring import Figures, make_parser, quartiles, report, settle, whole_number

MODELS = {
    "anima_transformer": "anima_dit.safetensors",
    "vae": "qwen_image_vae.safetensors",
    "qwen": "qwen_3_06b.safetensors",
    "qwen_tokenizer_dir": "qwen_tokenizer",
    "t5_tokenizer_dir": "t5_tokenizer",
}
PARTS = ("model", "conditioning", "update", "after step", "other", "threads")
PAGES = {"none": ("report = 'none'",), "live": ("live = true",)}
READER = """
import sys, urllib.request
for line in urllib.request.urlopen(sys.argv[1] + "events?after=" + sys.argv[2]): pass
"""
WARM = 3  # steps that do not count


class Stopwatch:
    """The main thread's CPU time by part, of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def around(self, owner: object, name: str, part: str) -> None:
        """Time calls of a method of one object."""
        method: Callable[..., object] = getattr(owner, name)

        def timed(*args: object, **kwargs: object) -> object:
            start = time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                now = self.steps[-1]
                now[part] = now.get(part, 0.0) + time.thread_time() - start

        setattr(owner, name, timed)

    def around_step(self, owner: object, name: str) -> None:
        """Begin a step at each call of this method, which counts as a whole."""
        self.around(owner, name, "whole")
        inner: Callable[..., object] = getattr(owner, name)
        before = time.process_time() - time.thread_time()

        def begun(*args: object, **kwargs: object) -> object:
            nonlocal before
            beside = time.process_time() - time.thread_time()
            self.steps.append({"threads": beside - before})  # since the last step began
            before = beside
            return inner(*args, **kwargs)

        setattr(owner, name, begun)


def command_line(folder: Path, steps: int, page: Sequence[str] = ()) -> list[str]:
    """Of a run on the demo in `folder`. page: lines about page and report"""
    models = [f"{key} = '{folder / 'demo' / 'models' / name}'" for key, name in MODELS.items()]
    settings = [
        *(f"output_dir = '{folder / 'out'}'", "output_name = 'run'", "log_with = 'none'"),
        *("network_module = 'networks.lora_anima'", "network_dim = 4", "network_alpha = 4"),
        *(f"max_train_steps = {steps}", "learning_rate = 1e-4", "mixed_precision = 'no'"),
        *("cache_latents = true", "cache_text_encoder_outputs = true", "seed = 1", *page),
    ]
    dataset = [
        *("[[datasets]]", "resolution = 64", "batch_size = 2", "[[datasets.subsets]]"),
        f"image_dir = '{folder / 'demo' / 'pictures'}'",
    ]
    files = {"train_args.toml": [*models, *settings], "dataset.toml": dataset}
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    config, pictures = (str(folder / name) for name in files)
    return ["--config_file", config, "--dataset_config", pictures]


def make_demo(folder: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "tools.make_demo", "--output", str(folder)],
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    if made.returncode:
        raise UserError(f"The demo could not be made: {made.stderr.strip()}")


def measure(argv: Sequence[str]) -> list[dict[str, float]]:
    """Train; seconds of each part, of every step that counts."""
    trainer = anima_train_network.make_trainer(argv)
    watch, run_epochs = Stopwatch(), trainer.run_epochs

    def watched() -> None:  # everything is there by now
        follow(trainer.reporter)
        watch.around(trainer, "call_unet", "model")
        watch.around(trainer.accelerator, "backward", "model")
        watch.around(trainer, "get_conditioning", "conditioning")
        watch.around(trainer, "update", "update")
        watch.around(trainer, "after_step", "after step")
        watch.around_step(trainer, "train_step")
        run_epochs()

    setattr(trainer, "run_epochs", watched)  # noqa: B010  an object's own, past its class
    trainer.train()
    for step in watch.steps:
        inside = step["model"] + step["conditioning"] + step["update"]
        step["other"] = step["whole"] - inside
    return watch.steps[WARM:]


def follow(reporter: Reporter) -> None:
    """Read the live page's events in another process, if there is one."""
    if reporter.server:
        words = [reporter.server.address, str(reporter.record.version)]
        subprocess.Popen([sys.executable, "-c", READER, *words])
        while not reporter.server.open_readers:
            time.sleep(0.01)


def rows_of(steps: Sequence[dict[str, float]]) -> list[Figures]:
    """Of each part and of the loop without the model: ms a step."""
    parts = {part: [step[part] for step in steps] for part in PARTS}
    own = [step["whole"] - step["model"] + step["after step"] for step in steps]
    rows: list[Figures] = []
    for name, seconds in {"loop without the model": own, **parts}.items():
        lower, middle, upper = (round(1e3 * value, 3) for value in quartiles(seconds))
        mean = round(1e3 * statistics.fmean(seconds), 3)
        rows.append({"part": name, "ms": middle, "lower": lower, "upper": upper, "mean": mean})
    return rows


def main() -> None:
    assert __doc__
    parser = make_parser(__doc__, rounds=1)
    parser.add_argument("--steps", type=whole_number, default=60)
    parser.add_argument("--live", action="store_true", help="with and without the live page")
    parser.add_argument("--demo", type=Path, help="the demo's folder, made where none is given")
    options: argparse.Namespace = settle(parser)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.demo is None:
            make_demo(folder / "demo")
        else:
            (folder / "demo").symlink_to(options.demo.resolve())
        rows: list[Figures] = []
        for name, lines in PAGES.items() if options.live else [("", ())]:
            steps = measure(command_line(folder, options.steps + WARM, lines))
            rows += [{"page": name, **row} if name else row for row in rows_of(steps)]
    report(options, rows, f"{options.steps} steps, {torch.get_num_threads()} thread(s)")


if __name__ == "__main__":
    run_main(main)
