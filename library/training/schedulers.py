"""Learning-rate schedules by sd-scripts' names, stepped once per update by the trainer.

The curves are transformers'; what is ours is the reading of the options. Warm-up and decay are steps, or
a fraction of the run when below 1.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

from library.errors import ConfigError, Problem
from library.settings.schedule_names import SCHEDULES
from library.settings.user_classes import (
    check_keywords,
    import_class,
    missing_package,
    parse_assignments,
)

if TYPE_CHECKING:
    from library.settings.flags.schedule import ScheduleOptions

logger = logging.getLogger(__name__)

NOT_ASKED_FOR = {
    "lr_warmup_steps": 0,
    "lr_decay_steps": 0,
    "lr_scheduler_num_cycles": 1,
    "lr_scheduler_power": 1,
    "lr_scheduler_timescale": None,
    "lr_scheduler_min_lr_ratio": None,
}
"""The values that mean "not asked for"."""


def check_schedule(options: ScheduleOptions) -> list[Problem]:
    """What is wrong with the choice of schedule, found without importing a library."""
    arguments, problems = parse_assignments(options.lr_scheduler_args, "lr_scheduler_args")
    problems += [
        Problem(f"expected a number not below 0, found {value:g}.", source=f"--{option}")
        for option in NOT_ASKED_FOR
        if (value := getattr(options, option)) is not None and value < 0
    ]
    if not options.lr_scheduler_type:
        messages = _check_named(options, arguments)
        problems += [Problem(message, source="--lr_scheduler") for message in messages]
    elif "." in options.lr_scheduler_type and (
        message := missing_package(options.lr_scheduler_type)
    ):
        problems.append(Problem(message, source="--lr_scheduler_type"))
    return problems


def _check_named(options: ScheduleOptions, arguments: dict[str, Any]) -> list[str]:
    name, _, value = options.lr_scheduler.partition(":")
    if name not in SCHEDULES or (value and name != "adafactor"):
        known = ", ".join(SCHEDULES)
        return [
            f"{options.lr_scheduler} is no known schedule. Known: {known}; others by lr_scheduler_type."
        ]
    if name == "constant" and options.lr_warmup_steps:
        return ["constant has no warm-up. Use constant_with_warmup, or set lr_warmup_steps to 0."]
    if name == "warmup_stable_decay" and not options.lr_decay_steps:
        return ["warmup_stable_decay needs lr_decay_steps: steps, or a fraction of the run."]
    given = options.lr_scheduler_min_lr_ratio is not None or {"min_lr", "min_lr_rate"} & set(
        arguments
    )
    if name == "cosine_with_min_lr" and not given:
        return ["cosine_with_min_lr needs lr_scheduler_min_lr_ratio, e.g. 0.1."]
    if name == "piecewise_constant":
        try:
            piecewise_factor(arguments.get("step_rules"))
        except ValueError as error:
            return [str(error)]
    if name == "adafactor" and value:
        try:
            float(value)
        except ValueError:
            return [f"{options.lr_scheduler}: expected adafactor or adafactor:<initial rate>."]
    return []


def create_scheduler(
    options: ScheduleOptions, optimizer: Optimizer, *, total_steps: int
) -> lr_scheduler.LRScheduler:
    """The schedule over `optimizer` (not accelerate's wrapper of it); step() it once per update.

    Adafactor with relative_step sets its own rate, whatever the options say. Raises ConfigError.
    """
    problems = check_schedule(options)
    if problems:
        raise ConfigError(problems)
    arguments, _ = parse_assignments(options.lr_scheduler_args, "lr_scheduler_args")
    name, _, value = options.lr_scheduler.partition(":")
    if optimizer.defaults.get("relative_step"):
        return _follow_adafactor(options, optimizer, float(value) if value else 0.0)
    if name == "adafactor" and not options.lr_scheduler_type:
        raise ConfigError(
            "--lr_scheduler adafactor needs optimizer_type = Adafactor with relative_step=True."
        )
    if options.lr_scheduler_type:
        return _of_class(options, optimizer, arguments)
    if name == "piecewise_constant":
        rules = arguments.pop("step_rules")
        _refuse_unknown(lr_scheduler.LambdaLR, arguments)
        return lr_scheduler.LambdaLR(optimizer, piecewise_factor(rules))
    return _named(name, options, optimizer, arguments, total_steps)


def _follow_adafactor(
    options: ScheduleOptions, optimizer: Optimizer, initial_lr: float
) -> lr_scheduler.LRScheduler:
    """Reports the rates that Adafactor chose; changes nothing. initial_lr: shown before step 1."""
    from transformers.optimization import AdafactorSchedule

    class Follower(AdafactorSchedule):
        """Also before an update was made: the first one is left out when its gradient is not finite."""

        def get_lr(self) -> list[float | Tensor]:
            groups = self.optimizer.param_groups
            states = [self.optimizer.state.get(group["params"][0], {}) for group in groups]
            ready = all("step" in state for state in states)
            return super().get_lr() if ready else list(self.base_lrs)

    chosen = options.lr_scheduler_type or options.lr_scheduler
    if chosen.partition(":")[0] != "adafactor":
        logger.warning("Adafactor sets its own step size: the schedule %s has no effect", chosen)
    return Follower(optimizer, initial_lr)


def count_as_done(scheduler: lr_scheduler.LRScheduler, steps: int) -> None:
    """Bring a fresh schedule, and the rates in its optimizer, to where they stand after `steps` updates.

    It takes the steps, so that one that is no function of the step stands where it would stand too.
    What a state has put into the optimizer's groups since the schedule was made does not count.
    """
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_last_lr()):
        group["lr"] = rate
    for _ in range(steps):
        scheduler.step()


def _of_class(
    options: ScheduleOptions, optimizer: Optimizer, arguments: dict[str, Any]
) -> lr_scheduler.LRScheduler:
    """A schedule class by its dotted path, or by its name in torch.optim.lr_scheduler."""
    path = options.lr_scheduler_type
    path = path if "." in path else f"torch.optim.lr_scheduler.{path}"
    schedule = import_class(path, "lr_scheduler_type")
    if "metrics" in inspect.signature(getattr(schedule, "step", len)).parameters:
        raise ConfigError(f"--lr_scheduler_type {path}: needs a measurement at every step.")
    if not hasattr(schedule, "step") or not hasattr(schedule, "get_last_lr"):
        raise ConfigError(f"--lr_scheduler_type {path}: is not a learning-rate schedule.")
    _refuse_unknown(schedule, arguments)
    with _refusals(path, options, "lr_scheduler_type"):
        return schedule(optimizer, **arguments)


def _named(
    name: str,
    options: ScheduleOptions,
    optimizer: Optimizer,
    arguments: dict[str, Any],
    total_steps: int,
) -> lr_scheduler.LRScheduler:
    """One of transformers' schedules, with the arguments that sd-scripts gives it."""
    from transformers import optimization

    possible = _curve_arguments(name, options, total_steps)
    make = getattr(optimization, SCHEDULES[name].function)
    _refuse_unknown(make, arguments)
    takes = inspect.signature(make).parameters
    chosen = {key: value for key, value in possible.items() if key in takes}
    with _refusals(name, options, "lr_scheduler"):
        return make(optimizer, **{**chosen, **arguments})


@contextlib.contextmanager
def _refusals(name: str, options: ScheduleOptions, flag: str) -> Iterator[None]:
    """Within: what a class's own check says of the user's values, as a ConfigError that names them."""
    try:
        yield
    except (ValueError, TypeError) as error:
        given = " ".join(options.lr_scheduler_args or ())
        source = f"--{'lr_scheduler_args' if given else flag}"
        raise ConfigError(Problem(f"{name}: {error}", given, source)) from error


def _curve_arguments(name: str, options: ScheduleOptions, total_steps: int) -> dict[str, Any]:
    """What the options say, by transformers' argument names; each schedule takes some of them."""
    warmup = in_steps(options.lr_warmup_steps, total_steps, "lr_warmup_steps")
    decay = in_steps(options.lr_decay_steps, total_steps, "lr_decay_steps")
    if name == "warmup_stable_decay" and warmup + decay > total_steps:
        raise ConfigError(
            f"--lr_scheduler {name}: lr_warmup_steps {warmup} and lr_decay_steps {decay} are more "
            f"than the {total_steps} steps of the run."
        )
    if warmup >= total_steps:
        logger.warning(
            "lr_warmup_steps is %d and the run has %d steps: the full rate is never reached",
            warmup,
            total_steps,
        )
    possible = {
        "num_warmup_steps": warmup,
        "num_decay_steps": decay,
        "num_training_steps": max(total_steps, warmup + 1),  # polynomial divides by the difference
        "num_cycles": options.lr_scheduler_num_cycles,
        "power": options.lr_scheduler_power,
        "timescale": options.lr_scheduler_timescale,
    }
    if name in ("cosine_with_min_lr", "warmup_stable_decay"):
        possible["num_cycles"] = options.lr_scheduler_num_cycles / 2  # as sd-scripts: 1 falls once
    elif name == "cosine":
        del possible["num_cycles"]  # as sd-scripts: always falls once
    ratio = options.lr_scheduler_min_lr_ratio
    return possible if ratio is None else {**possible, "min_lr_rate": ratio, "min_lr_ratio": ratio}


def _refuse_unknown(function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    own = {"self": "the trainer", "optimizer": "the trainer", "last_epoch": "the trainer"}
    problems = check_keywords(function, arguments, "lr_scheduler_args", own)
    if problems:
        raise ConfigError(problems)


def in_steps(value: float, total_steps: int, option: str) -> int:
    """Steps from an option: a fraction of the run when below 1 (rounded; sd-scripts cuts off).

    Raises ConfigError for a number of steps that is not whole.
    """
    if 0 < value < 1:
        return round(value * total_steps)
    if value != int(value):
        raise ConfigError(
            f"--{option} {value:g}: expected whole steps, or a fraction of the run below 1."
        )
    return int(value)


def piecewise_factor(step_rules: str | None) -> Callable[[int], float]:
    """Step -> factor, from "1:10,0.1:20,0.005": 1 below step 10, 0.1 below step 20, then 0.005.

    Raises ValueError saying what was expected.
    """
    expected = (
        "piecewise_constant needs lr_scheduler_args step_rules='1:10,0.1:20,0.005' (factor 1 until "
        "step 10, 0.1 until step 20, then 0.005)"
    )
    *rules, last = str(step_rules).split(",")
    try:
        pieces = [(int(step), float(factor)) for factor, step in (r.split(":") for r in rules)]
        final = float(last)
    except ValueError:
        raise ValueError(f"{expected}; found {step_rules}.") from None
    if sorted({step for step, _ in pieces}) != [step for step, _ in pieces]:
        raise ValueError(f"{expected}; the steps of {step_rules} do not increase.")

    def factor_at(step: int) -> float:
        return next((factor for until, factor in pieces if step < until), final)

    return factor_at
