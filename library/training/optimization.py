"""What updates the trainables: optimizer, schedule and the rates that act, tried beforehand."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from library.errors import ConfigError
from library.settings.flags.optimizer import OptimizerOptions
from library.training.flat_updates import FlatUpdates, clip_norm
from library.training.learning_rates import LearningRates
from library.training.optimizer_trial import try_optimizer, try_schedule
from library.training.optimizers import create_optimizer, optimizer_eval_mode
from library.training.parted_updates import PartedUpdates
from library.training.schedulers import create_scheduler
from library.training.swapped_updates import single_updates

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    from library.settings.run_config import TrainConfig
    from networks.trained import Trained


def optimizer_groups(
    cfg: TrainConfig, network: Trained
) -> tuple[list[dict[str, Any]], list[str]]:
    """What is trained, one group for each learning rate, and the groups' names in the logs."""
    rate = cfg.optimizer.learning_rate
    return network.prepare_optimizer_params(None, cfg.network.unet_lr, rate)


def check_optimization(
    cfg: TrainConfig, network: Trained, total_steps: int, device: torch.device
) -> None:
    """Raise ConfigError unless optimizer and schedule work, from the first step to the last."""
    options, (groups, _) = cfg.optimizer, optimizer_groups(cfg, network)
    dtype = torch.bfloat16 if cfg.precision.full_bf16 else torch.float32
    like = torch.empty(0, device=device, dtype=dtype)
    problems = try_optimizer(options, groups, like)
    if problems:  # told together: the schedule over an optimizer that works
        options = OptimizerOptions(learning_rate=options.learning_rate)
    if not (problems and cfg.schedule.lr_scheduler.startswith("adafactor")):
        problems += try_schedule(options, cfg.schedule, groups, total_steps, like)
    if problems:
        raise ConfigError(problems)


@contextmanager
def saved_weights(optimizer: Optimizer, network: Trained) -> Iterator[None]:
    """While inside: a schedule-free optimizer's averages, in a model that holds copies too."""
    with optimizer_eval_mode(optimizer):
        network.show()
        yield
    network.show()


class Optimization:
    """Makes the updates of a run.

    inner:      torch's optimizer; optimizer: accelerate's around it
    trainables: whose gradients are clipped together
    flat:       the same as one tensor for each group; None where the optimizer is not elementwise
    single:     updates of one weight after another, where the options ask for them
    parted:     updates of a part of the masters after another, where they are to be
    """

    def __init__(
        self,
        cfg: TrainConfig,
        network: Trained,
        total_steps: int,
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        """As the flags ask, over the network's trainables; `wrap` comes before the first update."""
        groups, names = optimizer_groups(cfg, network)
        self.accelerator = accelerator
        self.inner = create_optimizer(cfg.optimizer, groups)
        self.network, self.seed = network, seed
        self.single = single_updates(cfg, self.inner, network)
        self.parted = None if self.single else PartedUpdates.of(cfg, self.inner, network)
        together = not (network.is_whole or self.single)
        self.flat = FlatUpdates.of(self.inner, cfg.optimizer) if together else None
        self.scheduler = create_scheduler(cfg.schedule, self.inner, total_steps=total_steps)
        # torch's advice where the first updates are left out (fp16 looking for its scale)
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before")
        self.rates = LearningRates(self.inner, names)
        self.trainables = network.get_trainable_params()
        self.max_norm = cfg.optimizer.max_grad_norm or float("inf")

    def wrap(self, model: nn.Module) -> nn.Module:
        """Hand model and optimizer to accelerate together; returns what is called in a step."""
        self.optimizer: AcceleratedOptimizer
        model, self.optimizer = self.accelerator.prepare(
            model, self.inner, device_placement=[False, True]
        )  # the model is where it should be: weights that are swapped in RAM
        return model

    def begin(self, step: int) -> None:
        """Before the first backward pass of an update; step: updates before it."""
        if self.single is not None:
            self.single.begin(self.seed, step)

    @property
    def is_fused(self) -> bool:
        """Whether weights change in the backward pass already."""
        return self.single is not None and self.single.is_fused

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """While inside: the model computes with the weights that a file would have."""
        if self.single is not None:  # no such optimizer keeps others to save
            yield
            return
        with saved_weights(self.inner, self.network):
            yield

    def update(self, step: Callable[[Tensor], None]) -> Tensor:
        """Clip, step, advance the schedule once; returns the gradient norm, on the device.

        step: the optimizer's, which is told the norm and leaves out an update that is not finite.
        The schedule counts every step of the run, also one whose update was left out because its
        gradient was not finite: whether it was is known on the device only, and the same steps have the
        same rates in any precision and with any optimizer. (In sd-scripts the schedule waits while fp16
        looks for its scale, so that it never reaches its end.)
        """
        if self.single is not None:
            norm = self.single.norm()
            self._step(step, norm)
            self.scheduler.step()
            return norm
        if self.parted is not None:
            norm = self.parted.norm()
            self._step(partial(self.parted.step, max_norm=self.max_norm, step=step), norm)
            self.network.show()
            self.scheduler.step()
            return norm
        self.network.gather_gradients()
        if self.flat is not None and self.flat.gather():
            with self.flat.as_one():
                self.accelerator.unscale_gradients()
                norm = clip_norm(self.flat.gradients, self.max_norm)
                self._step(step, norm)
        else:
            norm = self.accelerator.clip_grad_norm_(self.trainables, self.max_norm)
            self._step(step, norm)
            self.optimizer.zero_grad(set_to_none=True)
        self.network.show()
        self.scheduler.step()
        return norm

    def _step(self, step: Callable[[Tensor], None], norm: Tensor) -> None:
        with self.rates.of_update():
            step(norm)
