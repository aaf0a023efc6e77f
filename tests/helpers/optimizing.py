"""Optimizers and schedules over small parameters."""

import io
from types import SimpleNamespace

import torch

from library.saving.state_contents import class_name, on_cpu
from library.settings.flags.schedule import ScheduleOptions
from library.settings.optimizer_names import OPTIMIZERS
from library.training.schedulers import create_scheduler

SCHEDULES = {
    "constant": {},
    "cosine": {"lr_warmup_steps": 3},
    "cosine_with_restarts": {"lr_scheduler_num_cycles": 2},
    "cosine_with_min_lr": {"lr_scheduler_min_lr_ratio": 0.1},
    "polynomial": {"lr_scheduler_power": 2.0},
    "warmup_stable_decay": {"lr_decay_steps": 5},
    "piecewise_constant": {"lr_scheduler_args": ("step_rules='1:4,0.1:9,0.01'",)},
    "torch.optim.lr_scheduler.CosineAnnealingLR": {"lr_scheduler_args": ("T_max=20",)},
    "torch.optim.lr_scheduler.OneCycleLR": {"lr_scheduler_args": ("max_lr=0.1", "total_steps=24")},
}


def options(optimizer_type="", args=None, lr=1e-2, **flags):
    return SimpleNamespace(
        optimizer_type=optimizer_type,
        optimizer_args=args,
        learning_rate=lr,
        use_8bit_adam=flags.get("use_8bit_adam", False),
        use_lion_optimizer=flags.get("use_lion_optimizer", False),
    )


def make_parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(64, 80)), torch.nn.Parameter(torch.randn(7))]


def needs(name):
    if "bitsandbytes" in OPTIMIZERS[name].path and name.startswith("Paged"):
        return not torch.cuda.is_available()
    return False


def saved_optimizer(optimizer, arguments=()):
    state = optimizer.state_dict()
    kept = {"class": class_name(optimizer), "arguments": list(arguments), "state": state}
    return through_a_file(kept)


def through_a_file(value):
    file = io.BytesIO()
    torch.save(on_cpu(value), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def schedule_over(name, total=20, lr=1e-2):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=lr)
    kind = "lr_scheduler_type" if "." in name else "lr_scheduler"
    made = ScheduleOptions(**{kind: name, **SCHEDULES[name]})
    return optimizer, create_scheduler(made, optimizer, total_steps=total)


def rates(optimizer, scheduler, steps):
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen
