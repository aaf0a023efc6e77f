"""The part of a trainer that updates: optimizer, schedule and the rates that act, tried beforehand."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from library.errors import ConfigError, Problem
from library.settings.run_config import OptimizerOptions
from library.training.learning_rates import LearningRates
from library.training.optimizer_trial import try_optimizer, try_schedule
from library.training.optimizers import create_optimizer
from library.training.schedulers import create_scheduler

if TYPE_CHECKING:
    from library.settings.run_config import TrainConfig
    from networks.network import AdapterNetwork


class OptimizedRun:
    """Stages for a trainer with the attributes that train_network.py's has."""

    cfg: TrainConfig

    def optimizer_problems(self) -> list[Problem]:
        """What is wrong with the optimizer's settings, to be told where no network can be made."""
        known = hasattr(self, "accelerator")  # not in a report on a run that finds no device
        return try_optimizer(
            self.cfg.optimizer, device=self.accelerator.device if known else "cpu"
        )

    def check_optimization(self, network: AdapterNetwork) -> None:
        """Establish that optimizer and schedule work, from the first step to the last."""
        options, (groups, _) = self.cfg.optimizer, self.optimizer_groups(network)
        schedule, total = self.cfg.schedule, self.plan.total_steps
        dtype = torch.bfloat16 if self.cfg.precision.full_bf16 else torch.float32
        place = {"device": self.accelerator.device, "dtype": dtype}
        problems = try_optimizer(options, groups, **place)
        if problems:  # told together: the schedule over an optimizer that works
            options = OptimizerOptions(learning_rate=options.learning_rate)
        if not (problems and schedule.lr_scheduler.startswith("adafactor")):
            problems += try_schedule(options, schedule, groups, total, **place)
        if problems:
            raise ConfigError(problems)

    def optimizer_groups(self, network: AdapterNetwork) -> tuple[list[dict[str, Any]], list[str]]:
        """What is trained, one group for each learning rate, and the groups' names in the logs."""
        rate = self.cfg.optimizer.learning_rate
        return network.prepare_optimizer_params(None, self.cfg.network.unet_lr, rate)

    def prepare_optimization(self) -> None:
        """Establish optimizer and schedule over the trainables, wrapped by accelerate."""
        groups, names = self.optimizer_groups(self.network)
        optimizer = create_optimizer(self.cfg.optimizer, groups)
        self.scheduler = create_scheduler(
            self.cfg.schedule, optimizer, total_steps=self.plan.total_steps
        )
        # torch's advice where the first updates are left out (fp16 looking for its scale)
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before")
        self.rates = LearningRates(optimizer, names)
        self.model, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.network.check_trainables()

    def update(self) -> Tensor:
        """Clip, step, advance the schedule once; returns the gradient norm, on the device.

        The schedule counts every step of the run, also one whose update was left out because its
        gradient was not finite: whether it was is known on the device only, and the same steps have the
        same rates in any precision and with any optimizer. (In sd-scripts the schedule waits while fp16
        looks for its scale, so that it never reaches its end.)
        """
        limit = self.cfg.optimizer.max_grad_norm or float("inf")
        norm = self.accelerator.clip_grad_norm_(self.network.get_trainable_params(), limit)
        with self.rates.of_update():
            self.monitor.guard.step(norm)  # never with a gradient that is not finite
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm
