"""Optimizer and schedule tried on small tensors before anything heavy is done.

Their classes check little when they are made: a wrong setting shows at the first update, or when the
schedule passes its end. A trial makes the very objects of the run over stand-ins and takes those steps;
whatever is raised becomes a problem that names the setting. It draws no random number of the run's.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from library.errors import Problem, UserError
from library.settings.optimizer_names import optimizer_name
from library.training.optimizers import (
    create_optimizer,
    optimizer_eval_mode,
    optimizer_train_mode,
)
from library.training.random_states import random_states, restore_random_states
from library.training.schedulers import create_scheduler

if TYPE_CHECKING:
    from library.settings.flags.optimizer import OptimizerOptions
    from library.settings.flags.schedule import ScheduleOptions

logger = logging.getLogger(__name__)

SIDE = 64  # 4096 elements a matrix: from there on bitsandbytes keeps its state in 8 bits
STEPS_TRIED = 100_000  # half a second; a longer schedule is tried so far, and at its end
LONGEST_MESSAGE = 300
BELOW_ZERO = -1e-9  # what is nearer to 0 is rounding

Groups = Sequence[Mapping[str, Any]]
ORDINARY = torch.empty(0)  # float32 on the CPU
ONE_MATRIX: Groups = ({"params": [torch.empty(SIDE, SIDE, device="meta")]},)
"""What every network has; more is not known before the network is."""


def try_optimizer(
    options: OptimizerOptions,
    groups: Groups = ONE_MATRIX,
    like: Tensor = ORDINARY,
) -> list[Problem]:
    """What is wrong with the optimizer's settings, found by making two updates.

    groups: of the run, or the like; of their tensors only the shapes are looked at
    like:   on the device and in the dtype of the run's parameters
    """
    moments = _updates(options, _small(groups, like))
    name, arguments = optimizer_name(options), options.optimizer_args
    return _attempt(moments, ("optimizer_type", name), ("optimizer_args", arguments))


def try_schedule(
    options: OptimizerOptions,
    schedule: ScheduleOptions,
    groups: Groups,
    total_steps: int,
    like: Tensor = ORDINARY,
) -> list[Problem]:
    """What is wrong with the schedule over this optimizer, found by going through all its steps."""
    moments = _whole_run(options, schedule, _small(groups, like), total_steps)
    chosen = "lr_scheduler_type" if schedule.lr_scheduler_type else "lr_scheduler"
    arguments = schedule.lr_scheduler_args
    return _attempt(
        moments, (chosen, getattr(schedule, chosen)), ("lr_scheduler_args", arguments)
    )


def _small(groups: Groups, like: Tensor) -> list[dict[str, Any]]:
    """Groups like these of few small parameters: one of each shape, no side above SIDE."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for group in groups:
        shapes = {tuple(min(side, SIDE) for side in p.shape): None for p in group["params"]}
        values = [(0.1 * torch.randn(shape, generator=draw)).to(like) for shape in shapes]
        made.append({**group, "params": [nn.Parameter(value) for value in values]})
    return made


def _updates(options: OptimizerOptions, groups: list[dict[str, Any]]) -> Iterator[str]:
    """Do what the run does with an optimizer; what comes next is told before it is done."""
    yield "when it is made"
    optimizer = create_optimizer(options, groups)
    optimizer.load_state_dict(optimizer.state_dict())  # as accelerate does
    optimizer_train_mode(optimizer)
    for which in ("first", "second"):
        yield f"at its {which} update"
        _update(optimizer)
    yield "when its weights and its state are saved"
    with optimizer_eval_mode(optimizer):
        optimizer.state_dict()


def _update(optimizer: Optimizer) -> None:
    draw = torch.Generator().manual_seed(0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=draw).to(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _whole_run(
    options: OptimizerOptions,
    schedule: ScheduleOptions,
    groups: list[dict[str, Any]],
    total_steps: int,
) -> Iterator[str]:
    yield "when it is made"
    optimizer = create_optimizer(options, groups)
    scheduler = create_scheduler(schedule, optimizer, total_steps=total_steps)
    optimizer_train_mode(optimizer)
    _update(optimizer)
    for step in range(1, min(total_steps, STEPS_TRIED) + 1):
        yield f"after step {step} of {total_steps}"
        scheduler.step()
        _check_rates(optimizer)
    if total_steps > STEPS_TRIED and isinstance(scheduler, lr_scheduler.LRScheduler):
        yield f"after step {total_steps} of {total_steps}"
        scheduler.last_epoch = total_steps - 1
        scheduler.step()
        _check_rates(optimizer)
    yield "at an update with its last rate"
    _update(optimizer)
    yield "when its state is saved"
    scheduler.state_dict()


def _check_rates(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        rate = group["lr"].item() if isinstance(group["lr"], Tensor) else group["lr"]
        if isinstance(rate, complex) or not math.isfinite(rate) or rate < BELOW_ZERO:
            raise ValueError(f"the learning rate would be {rate}, expected a number from 0 on")


def _attempt(
    moments: Iterator[str], choice: tuple[str, str], arguments: tuple[str, Sequence[str] | None]
) -> list[Problem]:
    """Go through the moments; what is raised at one of them as the problem of a flag.

    choice, arguments: a flag's name and its value, of what is tried and of its settings
    """
    moment = ""
    with unnoticed() as said:
        try:
            for moment in moments:
                pass
        except UserError as error:
            return list(error.problems)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  a library may even end the program
            flag, value = choice
            given = " ".join(arguments[1] or ())
            cure = f"Change {arguments[0]}, or choose" if given else "Choose"
            message = f"{value} fails {moment}: {_tell(error, said)} {cure} another {flag}."
            return [Problem(message, given, f"--{arguments[0] if given else flag}")]
    return []


def _tell(error: BaseException, said: io.StringIO) -> str:
    """What was raised, on one line that ends with a full stop."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SystemExit):
        printed = said.getvalue().strip()
        text = "its library ended the program" + (f", saying: {printed}" if printed else "")
    return " ".join(text.split())[:LONGEST_MESSAGE].rstrip(".: ") + "."


@contextlib.contextmanager
def unnoticed() -> Iterator[io.StringIO]:
    """Within: nothing is shown, what is printed is kept, and the random generators end as they were.

    What the classes have to say comes again when the run makes them in earnest.
    """
    states, said = random_states(), io.StringIO()
    parent = logging.getLogger("library")
    level = parent.level
    parent.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield said
    finally:
        parent.setLevel(level)
        restore_random_states(states)
