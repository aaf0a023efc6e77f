"""The shipped smoke configuration under the plain launcher, as a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import warm
from tests.helpers.paths import ROOT
from tests.helpers.pictures import has_caches_as_given
from tests.helpers.processes import TRAINER
from tests.helpers.running import config_files, model_paths
from tools import _environment as environment
from tools import _quickstart as quickstart

CONFIG = ROOT / "configs/smoke/anima_10steps_train_args.toml"
DATASET = ROOT / "configs/smoke/anima_dataset.toml"
NAME = "anima_smoke"


@pytest.mark.all_pictures
def test_ten_steps_end_with_a_file_comfyui_reads(demo, run_folder):
    dataset = DATASET.read_text(encoding="utf-8")
    dataset_file = run_folder / "dataset.toml"
    dataset_file.write_text(dataset.replace("demo/pictures", str(run_folder / "pictures")))
    here = {**model_paths(demo), "output_dir": str(run_folder / "out")}
    arguments = [word for name, value in here.items() for word in (f"--{name}", value)]
    done = subprocess.run(
        [*map(str, environment.accelerate(Path(sys.executable))), "launch", TRAINER,
         "--config_file", str(CONFIG), "--dataset_config", str(dataset_file), *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = run_folder / "out"
    final = out / f"{NAME}.safetensors"
    summary = quickstart.check_result(final, out / f"{NAME}-step00000010.safetensors")
    assert "all 40 layers have learned" in summary
    for word in ("epoch 1/1", "10/10", "loss=", "mean=", "lr=", "s/step"):
        assert word in done.stderr
    (events,) = (out / "logs").glob(f"{NAME}_*/network_train")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    assert {"loss/current", "loss/average", "norm/grad", "lr/unet"} <= set(
        accumulator.Tags()["scalars"]
    )
    assert [event.step for event in accumulator.Scalars("loss/current")] == list(range(1, 11))


def test_the_family_agnostic_file_explains_itself():
    done = warm.run(["train_network.py"])
    assert done.returncode == 2 and "anima_train_network.py" in done.stdout


def test_check_only_reports_and_makes_nothing(demo, run_folder):
    argv = [*config_files(demo, run_folder, {}), "--check_only"]
    done = warm.run(["anima_train_network.py", *argv])
    assert done.returncode == 0 and "The run would start." in done.stdout
    assert not (run_folder / "out").exists() and has_caches_as_given(demo, run_folder)
