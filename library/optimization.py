"""The part of a trainer that updates: optimizer, schedule and the rates that act, tried beforehand."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from torch import Tensor

from library.learning_rates import LearningRates
from library.monitor import Monitor
from library.optimizers import create_optimizer
from library.schedulers import count_as_done, create_scheduler

if TYPE_CHECKING:
    from library.run_config import TrainConfig
    from networks.network import AdapterNetwork


class OptimizedRun:
    """Stages for a trainer with the attributes that train_network.py's has."""

    cfg: TrainConfig

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
        if self.cfg.resume.given_step:
            count_as_done(self.scheduler, self.state.step)
        self.rates = LearningRates(optimizer, names)
        self.model, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.network.check_trainables()
        self.monitor = Monitor(self.cfg.monitor, self.optimizer, self.accelerator.device)

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
