"""Full fine-tuning: anima_train.py's runs, their files and states."""

import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from library.anima_models import load_anima_transformer
from tests.helpers import warm
from tests.helpers.pictures import SIX, give_pictures
from tests.helpers.processes import plain_environment
from tests.helpers.whole import model_argv, spelling, train_model

SETTINGS = {
    "mixed_precision": "bf16",
    "max_train_steps": 4,
    "save_every_n_steps": 2,
    "save_state": True,
    "no_metadata": True,
    "gradient_checkpointing": True,
    "ema_decay": 0.9,
    "mod_lr": 0,
    "mlp_lr": 1e-4,
    "lr_scheduler": "cosine",
}


@pytest.fixture(scope="module")
def folder(demo, tmp_path_factory):
    """Of the pictures, whose latents and texts all runs here share."""
    folder = tmp_path_factory.mktemp("whole")
    give_pictures(demo, folder, SIX)
    return folder


@pytest.fixture(scope="module")
def done(demo, folder):
    """A run of four steps, uninterrupted."""
    train_model(demo, folder, {**SETTINGS, "output_dir": str(folder / "out")})
    return folder / "out"


def base_file(demo):
    return demo / "models/anima_dit.safetensors"


def test_a_file_is_spelled_as_the_base_and_loads_in_its_place(demo, done, base):
    assert spelling(done / "run.safetensors") == spelling(base_file(demo))
    model = load_anima_transformer(done / "run.safetensors", dtype=torch.float32).state_dict()
    assert model.keys() == base.keys()
    moved = {name for name in base if not torch.equal(base[name], model[name])}
    assert moved == {name for name in base if "adaln_modulation" not in name}


def test_the_average_is_a_file_of_its_own_between_the_weights(demo, done):
    averaged, last = (load_file(done / f"run{end}.safetensors") for end in ("-ema", ""))
    first, key = load_file(base_file(demo)), "net.blocks.0.mlp.layer1.weight"
    key = key if key in last else key.removeprefix("net.")
    distance = [(each[key].float() - first[key].float()).norm() for each in (averaged, last)]
    assert 0 < distance[0] < distance[1]


BF16 = {
    **SETTINGS, "full_bf16": True, "stochastic_rounding": True, "optimizer_type": "Adafactor",
    "optimizer_args": ["relative_step=False", "scale_parameter=False", "warmup_init=False"],
    "gradient_checkpointing": False, "ema_decay": None, "max_train_steps": 3,
}  # fmt: skip
FUSED = {"fused_backward_pass": True, "max_grad_norm": 0}


@pytest.fixture(scope="module")
def by_chance(demo, folder):
    """Runs in bf16, rounded by chance: updated together, and in the backward pass."""
    settings = {name: {**BF16, **more, "output_dir": str(folder / name)} for name, more in {
        "together": {"max_grad_norm": 0}, "fused": {**FUSED, "recompute": "cheap"},
    }.items()}  # fmt: skip
    for each in settings.values():
        train_model(demo, folder, each)
    return settings


def final_states(folder, *names):
    return [load_file(folder / name / "run-state/adapters.safetensors") for name in names]


def test_a_fused_backward_pass_changes_no_bit(folder, by_chance):
    together, fused = final_states(folder, "together", "fused")
    assert together.keys() == fused.keys()
    assert all(torch.equal(together[name], fused[name]) for name in fused)
    assert {tensor.dtype for tensor in fused.values()} == {torch.bfloat16}


def test_chance_and_fused_updates_go_on_to_the_same_bits(demo, folder, by_chance):
    state = folder / "fused/run-step00000002-state"
    train_model(demo, folder, {
        **by_chance["fused"], "output_dir": str(folder / "again"), "resume": str(state),
    })  # fmt: skip
    for name in ("run.safetensors", "run-state/adapters.safetensors", "run-state/optimizer.pt"):
        assert (folder / "again" / name).read_bytes() == (folder / "fused" / name).read_bytes()


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(demo, folder, done):
    """Killed while the third step is on its way, by SIGKILL, in a process of its own."""
    out = folder / "killed"
    argv = model_argv(demo, folder, {**SETTINGS, "output_dir": str(out)})
    process = warm.start(["anima_train.py", *argv], env=plain_environment())
    state = out / "run-step00000002-state"
    while not state.exists():
        assert process.poll() is None, "it ended before its state was there"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = warm.run(["anima_train.py", *argv, "--resume", str(state)], env=plain_environment())
    assert again.returncode == 0, again.stderr
    for name in ("run.safetensors", "run-ema.safetensors"):
        assert (out / name).read_bytes() == (done / name).read_bytes()
    for name in ("adapters.safetensors", "optimizer.pt"):
        kept = [each / "run-state" / name for each in (out, done)]
        assert kept[0].read_bytes() == kept[1].read_bytes()
    shutil.rmtree(out)
