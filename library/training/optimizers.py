"""Optimizers imported only when chosen; train and eval mode of schedule-free ones.

Names and classes are settings.optimizer_names'; any other class is reached by its dotted path. Adafactor follows sd-scripts: unless relative_step=False is
given it sets its own step size, and learning rate and schedule are only names.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

from library.errors import ConfigError, Problem
from library.settings.foreign_names import CLASSES
from library.settings.optimizer_names import (
    OPTIMIZERS,
    KnownOptimizer,
    chooses_step_size,
    optimizer_name,
)
from library.settings.user_classes import (
    check_keywords,
    import_class,
    missing_package,
    parse_assignments,
)
from library.utils import nearest_name

if TYPE_CHECKING:
    from library.settings.flags.optimizer import OptimizerOptions
    from library.settings.flags.schedule import ScheduleOptions

logger = logging.getLogger(__name__)

FLAG = "optimizer_type"
FUSED_DEVICES = ("cuda", "cpu")
UPDATES_BEFORE = "updates_before"  # key of a group, kept with its state


@runtime_checkable
class ChoosesStepSize(Protocol):
    """An optimizer that sets its own step size in each update: transformers' Adafactor."""

    _get_lr: Callable[[Mapping[str, Any], Mapping[str, Any]], float | Tensor]


@runtime_checkable
class ScheduleFree(Protocol):
    """An optimizer that swaps the weights it trains for their average, and back."""

    def train(self) -> None: ...

    def eval(self) -> None: ...


def is_schedule_free(options: OptimizerOptions) -> bool:
    """Whether the optimizer is of the schedule-free kind, which brings its own averaging."""
    return "schedulefree" in optimizer_name(options).rpartition(".")[2].lower().replace("_", "")


def class_path(options: OptimizerOptions) -> str:
    """The dotted path of the chosen optimizer's class, however it was named."""
    name = optimizer_name(options)
    return _class_path(name) or name


def _class_path(name: str) -> str | None:
    """The dotted path of a name: of the table, dotted already, or a class of torch.optim; else None."""
    if name in OPTIMIZERS:
        return OPTIMIZERS[name].path
    if "." in name:
        return name
    in_torch = {each.lower(): each for each in _torch_names()}.get(name.lower())
    return f"torch.optim.{in_torch}" if in_torch else None


def _torch_names() -> list[str]:
    def is_optimizer(name: str) -> bool:
        found = getattr(torch.optim, name)
        return isinstance(found, type) and issubclass(found, Optimizer) and found is not Optimizer

    return [name for name in dir(torch.optim) if not name.startswith("_") and is_optimizer(name)]


def check_optimizer(options: OptimizerOptions, schedule: ScheduleOptions) -> list[Problem]:
    """What is wrong with the choice of optimizer, found without importing its package."""
    name = optimizer_name(options)
    arguments, problems = parse_assignments(options.optimizer_args, "optimizer_args")
    path = _class_path(name)
    requirement = OPTIMIZERS[name].requirement if name in OPTIMIZERS else None
    if path is None:
        problems.append(Problem(_unknown_name(name), source=f"--{FLAG}"))
    elif message := missing_package(path, requirement):
        problems.append(Problem(f"{name}: {message}", source=f"--{FLAG}"))
    problems += _check_aliases(options)
    if is_schedule_free(options):
        problems += _check_schedule_of_schedule_free(name, schedule)
    follows = (schedule.lr_scheduler or "").lower().startswith("adafactor")
    if follows and not (name == "Adafactor" and chooses_step_size(arguments)):
        message = "the schedule adafactor needs optimizer_type = Adafactor with relative_step=True."
        problems.append(Problem(message, source="--lr_scheduler"))
    return problems


def _unknown_name(name: str) -> str:
    if path := CLASSES.get(name.lower()):
        pip = missing_package(path)
        missing = f" {pip[0].upper()}{pip[1:]}" if pip else ""
        return f'{name} is reached by its path. Write optimizer_type = "{path}".{missing}'
    near = nearest_name(name.lower(), [known.lower() for known in (*OPTIMIZERS, *_torch_names())])
    proper = {known.lower(): known for known in (*OPTIMIZERS, *_torch_names())}
    hint = f" Did you mean {proper[near]}?" if near else f" Known: {', '.join(OPTIMIZERS)}."
    return f"{name} is no known optimizer.{hint} Any class works by its path: package.module.Class."


def _check_aliases(options: OptimizerOptions) -> list[Problem]:
    flags = ("use_8bit_adam", "use_lion_optimizer", FLAG)
    given = [f"--{flag}" for flag in flags if getattr(options, flag)]
    if len(given) < 2:
        return []
    message = f"{' and '.join(given)} each choose an optimizer. Keep --{FLAG} only."
    return [Problem(message, source=f"--{FLAG}")]


def _check_schedule_of_schedule_free(name: str, schedule: ScheduleOptions) -> list[Problem]:
    found = []
    if schedule.lr_scheduler_type or schedule.lr_scheduler != "constant":
        chosen = schedule.lr_scheduler_type or schedule.lr_scheduler
        found.append(f"{name} replaces the schedule; lr_scheduler is {chosen}. Set it to constant.")
    if schedule.lr_warmup_steps:
        found.append(
            f"{name} takes no lr_warmup_steps (found {schedule.lr_warmup_steps:g}). Set it to 0; "
            f"AdamWScheduleFree and SGDScheduleFree take optimizer_args warmup_steps=N."
        )
    return [Problem(message, source="schedule") for message in found]


def create_optimizer(
    options: OptimizerOptions, parameter_groups: Sequence[Mapping[str, Any]]
) -> Optimizer:
    """The chosen optimizer over the groups ({"params": [...], "lr": ...}), which are not changed.

    A group without lr gets options.learning_rate. Raises ConfigError when the class, its package or an
    argument does not exist.
    """
    name = optimizer_name(options)
    arguments, problems = parse_assignments(options.optimizer_args, "optimizer_args")
    path = _class_path(name)
    if path is None:
        problems.append(Problem(_unknown_name(name), source=f"--{FLAG}"))
    if path is None or problems:
        raise ConfigError(problems)
    known = OPTIMIZERS.get(name, KnownOptimizer(path))
    optimizer_class = _import_optimizer(known)
    own = {"self": "the trainer", "params": "the trainer", "lr": "--learning_rate"}
    problems = check_keywords(optimizer_class, arguments, "optimizer_args", own)
    if problems:
        raise ConfigError(problems)
    groups = [{"lr": options.learning_rate, **group} for group in parameter_groups]
    arguments = {**known.defaults, **arguments}
    if name == "Adafactor":
        groups, arguments = _adafactor(groups, arguments)
    elif name == "AdamW":
        arguments = _fused_where_possible(groups, arguments)
    elif known.finds_own_lr:
        _check_free_learning_rate(name, groups)
    given = " ".join(options.optimizer_args or ())
    optimizer = _construct(optimizer_class, groups, arguments, given)
    if optimizer.defaults.get("relative_step") and isinstance(optimizer, ChoosesStepSize):
        optimizer._get_lr = partial(_own_step, optimizer_class)
    return optimizer


def describe_optimizer(optimizer: Optimizer, options: OptimizerOptions) -> str:
    """module.Class(key=value,...) of what was given and of what differs here, with what acts."""
    given, _ = parse_assignments(options.optimizer_args, "optimizer_args")
    known = OPTIMIZERS.get(optimizer_name(options))
    values = {**(known.defaults if known else {}), **given}
    if "relative_step" in optimizer.defaults:
        values["relative_step"] = None
    shown = ",".join(f"{key}={optimizer.defaults.get(key, v)}" for key, v in values.items())
    kind = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
    return f"{kind}({shown})" if shown else kind


def _import_optimizer(known: KnownOptimizer) -> type[Optimizer]:
    found = import_class(known.path, FLAG, known.requirement or None)
    if not issubclass(found, Optimizer):
        raise ConfigError(f"--{FLAG} {known.path}: is not a torch.optim.Optimizer.")
    return found


def _construct(
    optimizer_class: type[Optimizer],
    groups: list[dict[str, Any]],
    arguments: Mapping[str, Any],
    given: str,
) -> Optimizer:
    """given: the arguments as the user wrote them, for the class's own check of their values."""
    make: Callable[..., Optimizer] = optimizer_class  # torch's base class takes no keywords
    try:
        optimizer = make(groups, lr=groups[0]["lr"], **arguments)
    except (ValueError, TypeError) as error:
        flag = "optimizer_args" if given else FLAG
        message = f"{optimizer_class.__name__}: {error}.{_usual(optimizer_class, given)}"
        raise ConfigError(Problem(message, given, f"--{flag}")) from error
    shown = ", ".join(f"{key}={value}" for key, value in arguments.items())
    logger.info("optimizer: %s(%s)", optimizer_class.__name__, shown)
    return optimizer


def _usual(optimizer_class: type[Optimizer], given: str) -> str:
    """A sentence with the defaults of the arguments that were written; "" where there are none."""
    usual = [
        f"{name}={parameter.default}"
        for name, parameter in inspect.signature(optimizer_class).parameters.items()
        if f"{name}=" in given and parameter.default is not parameter.empty
    ]
    return f" The default is {', '.join(usual)}." if usual else ""


def _fused_where_possible(
    groups: list[dict[str, Any]], arguments: dict[str, Any]
) -> dict[str, Any]:
    """AdamW as one kernel for all tensors, unless the user chose an implementation."""
    if {"fused", "foreach", "differentiable"} & set(arguments):
        return arguments
    tensors = [tensor for group in groups for tensor in group["params"]]
    if all(t.device.type in FUSED_DEVICES and t.is_floating_point() for t in tensors):
        return {**arguments, "fused": True}
    return arguments


def _adafactor(
    groups: list[dict[str, Any]], arguments: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Groups and arguments as sd-scripts gives them to transformers' Adafactor.

    With relative_step there is no learning rate; the schedule only reports what Adafactor chose.
    """
    if not chooses_step_size(arguments):
        return groups, {**arguments, "relative_step": False}
    if arguments.get("relative_step") is False:
        logger.info("Adafactor: relative_step is set to True, since warmup_init needs it.")
    logger.warning(
        "Adafactor sets its own step size (relative_step=True, sd-scripts' default): learning_rate, "
        "unet_lr and the like have no effect. For your own: optimizer_args relative_step=False "
        "scale_parameter=False warmup_init=False"
    )
    return [{**group, "lr": None} for group in groups], {**arguments, "relative_step": True}


def _own_step(optimizer_class: Any, group: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    """Adafactor's step size, by the steps of the run: those that count as done are no updates of its."""
    before = group.get(UPDATES_BEFORE, 0)
    return optimizer_class._get_lr(group, {**state, "step": state["step"] + before})


def count_updates_before(optimizer: Optimizer, step: int) -> None:
    """Let Adafactor's own step size stand where it stands after `step` updates; others have none."""
    if not optimizer.defaults.get("relative_step"):
        return
    done = max((state.get("step", 0) for state in optimizer.state.values()), default=0)
    for group in optimizer.param_groups:
        group[UPDATES_BEFORE] = step - done


def _check_free_learning_rate(name: str, groups: list[dict[str, Any]]) -> None:
    """Optimizers that find their own step size want one learning rate, about 1."""
    rates = {group["lr"] for group in groups if group["lr"] != 0}
    if len(rates) > 1:
        raise ConfigError(
            f"{name} takes one learning rate for everything; found "
            f"{', '.join(f'{rate:g}' for rate in sorted(rates))}. Leave unet_lr and the rates of "
            f"single parts out, or set parts that shall not learn to 0."
        )
    if rates and not 0.1 < min(rates) <= 10:
        logger.warning(
            "%s finds its own step size; learning_rate = %g scales it. Set it to about 1.",
            name,
            min(rates),
        )


def optimizer_train_mode(optimizer: Optimizer) -> None:
    """Let a schedule-free optimizer hold the training weights; no effect on others."""
    inner = unwrapped(optimizer)
    if isinstance(inner, ScheduleFree):
        inner.train()


@contextmanager
def optimizer_eval_mode(optimizer: Optimizer) -> Iterator[None]:
    """While inside, the parameters hold a schedule-free optimizer's averaged weights.

    Going back is a copy of what was there, bit for bit: the optimizer's own way back is a second
    interpolation, whose rounding would make training depend on when it was saved. Others: no effect.
    """
    inner = unwrapped(optimizer)
    if not isinstance(inner, ScheduleFree) or not _holds_training_weights(inner):
        yield
        return
    parameters = [p for group in inner.param_groups for p in group["params"]]
    kept = [p.detach().clone() for p in parameters]
    inner.eval()
    try:
        yield
    finally:
        inner.train()
        with torch.no_grad():
            for parameter, value in zip(parameters, kept):
                parameter.copy_(value)


def _holds_training_weights(optimizer: Optimizer) -> bool:
    """Whether train() was the last mode set; yes for an optimizer that does not say."""
    mode = getattr(optimizer, "train_mode", True)
    return all(group.get("train_mode", mode) for group in optimizer.param_groups)


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside accelerate's wrapper, which has train() and eval() for every kind."""
    wrapped = type(optimizer).__name__ == "AcceleratedOptimizer"
    return getattr(optimizer, "optimizer", optimizer) if wrapped else optimizer
