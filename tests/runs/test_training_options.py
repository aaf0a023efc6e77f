"""Optimizers, schedules and noise settings through the real trainer: each trains and exports."""

import math

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.running import losses_of, train

SETTINGS = {
    "adamw": {},
    "adamw8bit": {"optimizer_type": "AdamW8bit", "lr_scheduler": "linear", "lr_warmup_steps": 0.25},
    "8bit, old flag": {"use_8bit_adam": True},
    "lion": {
        "optimizer_type": "Lion",
        "lr_scheduler": "cosine_with_restarts",
        "lr_scheduler_num_cycles": 1.5,
    },
    "adafactor": {"optimizer_type": "Adafactor"},
    "adafactor, own rate": {
        "optimizer_type": "adafactor",
        "optimizer_args": ["relative_step=False", "scale_parameter=False", "warmup_init=False"],
    },
    "prodigy": {"optimizer_type": "Prodigy", "learning_rate": 1.0},
    "schedule-free": {  # RAdam moves nothing in its first five steps
        "optimizer_type": "radam_schedulefree",
        "save_every_n_steps": 4,
        "max_train_steps": 12,
    },
    "adamw schedule-free": {"optimizer_type": "AdamWScheduleFree"},
    "dotted path": {
        "optimizer_type": "torch.optim.NAdam",
        "lr_scheduler": "cosine_with_min_lr",
        "lr_scheduler_min_lr_ratio": 0.1,
    },
    "full bf16": {"mixed_precision": "bf16", "full_bf16": True},
    "noise": {
        "loss_type": "huber",
        "timestep_sampling": "flux_shift",
        "noise_offset": 0.05,
        "ip_noise_gamma": 0.1,
        "min_timestep": 200,
        "max_timestep": 800,
        "weighting_scheme": "cosmap",
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_it_trains_and_exports(demo, run_folder, name):
    trainer = train(demo, run_folder, SETTINGS[name])
    losses = losses_of(trainer)
    assert len(losses) == trainer.plan.total_steps and all(map(math.isfinite, losses))
    exported = load_file(run_folder / "out" / "run.safetensors")
    moved = [value for key, value in exported.items() if key.endswith(".lora_up.weight")]
    assert moved and all(torch.any(value != 0) for value in moved)
    assert all(value.isfinite().all() for value in exported.values())


def test_saving_does_not_change_a_schedule_free_run(demo, run_folder):
    """Exports hold averaged weights; going back to the training weights is exact."""
    settings = {"optimizer_type": "AdamWScheduleFree", "learning_rate": 1e-2}
    plain = losses_of(train(demo, run_folder, settings))
    assert losses_of(train(demo, run_folder, {**settings, "save_every_n_steps": 1})) == plain
