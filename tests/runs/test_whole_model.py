"""Full fine-tuning: anima_train.py's runs, their files and states."""

import json
import shutil
import signal
import time

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from library.anima_models import load_anima_transformer
from library.errors import ConfigError
from tests.helpers import warm
from tests.helpers.pictures import SIX, give_pictures
from tests.helpers.processes import plain_environment
from tests.helpers.running import make_trainer
from tests.helpers.whole import AnimaTrainer, model_argv, spelling, train_model

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


FILES = ("run.safetensors", "run-ema.safetensors")
KEPT = ("adapters.safetensors", "optimizer.pt")


@pytest.fixture(scope="module")
def folder(demo, tmp_path_factory):
    """Of the pictures, whose latents and texts all runs here share."""
    folder = tmp_path_factory.mktemp("whole")
    give_pictures(demo, folder, SIX)
    return folder


@pytest.fixture(scope="module")
def done(demo, folder):
    """A run of four steps, uninterrupted, that draws a picture at its end."""
    prompts = folder / "prompts.txt"
    prompts.write_text("a --w 64 --h 64 --s 1 --l 1\n")
    here = {"output_dir": str(folder / "out"), "sample_prompts": str(prompts)}
    train_model(demo, folder, {**SETTINGS, **here})
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


def test_blocks_that_wait_in_ram_go_on_to_the_same_bytes(demo, folder, done):
    """With masters, gradients that are added up and clipped together, and an average."""
    state = done / "run-step00000002-state"
    here = {"output_dir": str(folder / "swapped-on"), "resume": str(state), "blocks_to_swap": 2}
    trainer = train_model(demo, folder, {**SETTINGS, **here})
    assert len(trainer.optimization.single.away) > 10
    for name in (*FILES, *(f"run-state/{kept}" for kept in KEPT)):
        assert (folder / "swapped-on" / name).read_bytes() == (done / name).read_bytes(), name


def test_a_picture_names_the_file_that_draws_it_again(done):
    (picture,) = (done / "sample").glob("*.png")
    with Image.open(picture) as opened:
        graph = json.loads(opened.text["prompt"])
    assert [n["inputs"]["unet_name"] for n in graph.values() if "unet_name" in n["inputs"]] == [
        "run.safetensors"
    ]
    assert not [node for node in graph.values() if "lora_name" in node["inputs"]]


REFUSED = {
    "network_dim": 8, "unet_lr": 1e-4, "network_args": ["lokr_factor=8"], "int8_base": True,
    "evaluate_every_n_steps": 2, "train_norm": False, "cuda_graphs": True,
}  # fmt: skip
UPDATES_REFUSE = {
    "fused_backward_pass": True, "gradient_accumulation_steps": 2, "max_grad_norm": 1.0,
    "optimizer_type": "Lion", "blocks_to_swap": 4, "mixed_precision": "fp16",
}  # fmt: skip


def test_what_makes_no_sense_is_told_all_at_once(demo, run_folder):
    argv = model_argv(demo, run_folder, {**REFUSED, **UPDATES_REFUSE})
    with pytest.raises(ConfigError) as error:
        make_trainer(argv, AnimaTrainer)
    told = "\n".join(f"{each.where} {each.message}" for each in error.value.problems)
    names = [name for name in {**REFUSED, **UPDATES_REFUSE} if name not in told]
    assert names == ["optimizer_type"] and "Use AdamW or Adafactor" in told, told


def test_a_strength_of_adapters_is_refused(demo, run_folder):
    argv = model_argv(demo, run_folder, {}, dataset="network_multiplier = 0.5")
    trainer = make_trainer(argv, AnimaTrainer)
    trainer.prepare_process()
    with pytest.raises(ConfigError, match=r"network_multiplier = 0.5 +is a strength of adapters"):
        trainer.check()


def test_no_metadata_of_adapters_is_in_a_models_file(demo, folder, by_chance):
    with safe_open(folder / "fused/run.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "anima"
    assert metadata["ss_fused_backward_pass"] == metadata["ss_stochastic_rounding"] == "True"
    assert json.loads(metadata["ss_component_rates"]) == {"mod": 0, "mlp": 1e-4}
    assert "mod" not in json.loads(metadata["ss_trained_parts"])
    assert not [key for key in metadata if key.startswith("ss_network")]


BF16 = {
    **SETTINGS, "full_bf16": True, "stochastic_rounding": True, "optimizer_type": "Adafactor",
    "optimizer_args": ["relative_step=False", "scale_parameter=False", "warmup_init=False"],
    "gradient_checkpointing": False, "ema_decay": None, "max_train_steps": 3, "no_metadata": False,
}  # fmt: skip
FUSED = {"fused_backward_pass": True, "max_grad_norm": 0}


@pytest.fixture(scope="module")
def by_chance(demo, folder):
    """Runs in bf16, rounded by chance: updated together, and in the backward pass."""
    settings = {name: {**BF16, **more, "output_dir": str(folder / name)} for name, more in {
        "together": {"max_grad_norm": 0}, "fused": {**FUSED, "recompute": "cheap"},
        "swapped": {**FUSED, "blocks_to_swap": 2},
    }.items()}  # fmt: skip
    for each in settings.values():
        train_model(demo, folder, each)
    return settings


def final_states(folder, *names):
    return [load_file(folder / name / "run-state/adapters.safetensors") for name in names]


def test_a_fused_backward_pass_changes_no_bit_nor_do_blocks_that_wait_in_ram(folder, by_chance):
    together, fused, swapped = final_states(folder, "together", "fused", "swapped")
    assert together.keys() == fused.keys() == swapped.keys()
    assert all(torch.equal(together[name], fused[name]) for name in fused)
    assert all(torch.equal(together[name], swapped[name]) for name in swapped)
    assert {tensor.dtype for tensor in fused.values()} == {torch.bfloat16}


def test_chance_and_fused_updates_go_on_to_the_same_bits(demo, folder, by_chance):
    state = folder / "swapped/run-step00000002-state"
    train_model(demo, folder, {
        **by_chance["fused"], "output_dir": str(folder / "again"), "resume": str(state),
    })  # fmt: skip
    for name in KEPT:
        kept = [folder / each / "run-state" / name for each in ("again", "fused")]
        assert kept[0].read_bytes() == kept[1].read_bytes()


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
    for name in FILES:
        assert (out / name).read_bytes() == (done / name).read_bytes()
    for name in KEPT:
        kept = [each / "run-state" / name for each in (out, done)]
        assert kept[0].read_bytes() == kept[1].read_bytes()
    shutil.rmtree(out)
