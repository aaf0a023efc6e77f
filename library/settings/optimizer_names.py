"""Optimizers by the names that a user may write, with the class and the package behind each.

One table: the flag's help, the checks, the trainer and what is said of sizes and usual rates come from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class KnownOptimizer:
    """One row of the table.

    path:         of the class
    state_bytes:  of its state per trained parameter, about; as AdamW's where nothing is known
    requirement:  for pip, "" when it is always there
    defaults:     where ours differ
    finds_own_lr: the learning rate only scales what it finds
    usual_rates:  the optimizer whose usual learning rates are its own too; "" where none is known
    elementwise:  each element is updated by its own gradient and state alone, wherever a tensor ends
    undoable:     an update changes parameters, tensors beside them and numbers of its groups alone
    single:       each tensor is updated by its own gradient and state alone, in calls of its own
    """

    path: str
    state_bytes: float = 8
    requirement: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    finds_own_lr: bool = False
    usual_rates: str = ""
    elementwise: bool = False
    undoable: bool = False
    single: bool = False


def _bitsandbytes(
    name: str, state_bytes: float, usual_rates: str = "", **defaults: Any
) -> KnownOptimizer:
    path = f"bitsandbytes.optim.{name}"
    return KnownOptimizer(
        path, state_bytes, "bitsandbytes>=0.50", defaults, usual_rates=usual_rates
    )


def _dadaptation(path: str, state_bytes: float) -> KnownOptimizer:
    return KnownOptimizer(f"dadaptation.{path}", state_bytes, "dadaptation", finds_own_lr=True)


def _schedulefree(name: str, state_bytes: float) -> KnownOptimizer:
    path = f"schedulefree.{name}"
    return KnownOptimizer(path, state_bytes, "schedulefree", elementwise=True, undoable=True)


OPTIMIZERS: dict[str, KnownOptimizer] = {
    "AdamW": KnownOptimizer(
        "torch.optim.AdamW", 8, usual_rates="AdamW", elementwise=True, single=True
    ),
    "AdamW8bit": _bitsandbytes("AdamW8bit", 2, "AdamW"),
    "PagedAdamW": _bitsandbytes("PagedAdamW", 8, "AdamW"),
    "PagedAdamW8bit": _bitsandbytes("PagedAdamW8bit", 2, "AdamW"),
    "PagedAdamW32bit": _bitsandbytes("PagedAdamW32bit", 8, "AdamW"),
    "Lion": KnownOptimizer(
        "lion_pytorch.Lion",
        4,
        "lion-pytorch",
        usual_rates="Lion",
        elementwise=True,
        undoable=True,
    ),
    "Lion8bit": _bitsandbytes("Lion8bit", 1, "Lion"),
    "PagedLion8bit": _bitsandbytes("PagedLion8bit", 1, "Lion"),
    "SGDNesterov": KnownOptimizer(
        "torch.optim.SGD",
        4,
        "",
        {"momentum": 0.9, "nesterov": True},
        elementwise=True,
        undoable=True,
    ),
    "SGDNesterov8bit": _bitsandbytes("SGD8bit", 1, momentum=0.9, nesterov=True),
    "DAdaptation": _dadaptation("experimental.DAdaptAdamPreprint", 12),
    "DAdaptAdamPreprint": _dadaptation("experimental.DAdaptAdamPreprint", 12),
    "DAdaptAdaGrad": _dadaptation("DAdaptAdaGrad", 12),
    "DAdaptAdam": _dadaptation("DAdaptAdam", 12),
    "DAdaptAdan": _dadaptation("DAdaptAdan", 20),
    "DAdaptAdanIP": _dadaptation("experimental.DAdaptAdanIP", 20),
    "DAdaptLion": _dadaptation("DAdaptLion", 8),
    "DAdaptSGD": _dadaptation("DAdaptSGD", 12),
    "Prodigy": KnownOptimizer("prodigyopt.Prodigy", 16, "prodigyopt", finds_own_lr=True),
    "Adafactor": KnownOptimizer(
        "transformers.optimization.Adafactor", 1, "transformers", single=True
    ),
    "RAdamScheduleFree": _schedulefree("RAdamScheduleFree", 8),
    "AdamWScheduleFree": _schedulefree("AdamWScheduleFree", 8),
    "SGDScheduleFree": _schedulefree("SGDScheduleFree", 4),
}
DEFAULT = "AdamW"
ALIASES = {
    "": DEFAULT,
    "radam_schedulefree": "RAdamScheduleFree",
    "adamw_schedulefree": "AdamWScheduleFree",
    "sgd_schedulefree": "SGDScheduleFree",
}


class OptimizerChoice(Protocol):
    """What is read of the options, which are never set again."""

    @property
    def optimizer_type(self) -> str: ...
    @property
    def use_8bit_adam(self) -> bool: ...
    @property
    def use_lion_optimizer(self) -> bool: ...


def optimizer_name(options: OptimizerChoice) -> str:
    """The table's name of the chosen optimizer, or what was written when it is not in the table."""
    if options.use_8bit_adam:
        return "AdamW8bit"
    if options.use_lion_optimizer:
        return "Lion"
    written = (options.optimizer_type or "").strip()
    folded = {name.lower(): name for name in OPTIMIZERS} | ALIASES
    return folded.get(written.lower(), written)


def is_elementwise(options: OptimizerChoice) -> bool:
    """Whether the table says so of the chosen optimizer."""
    known = OPTIMIZERS.get(optimizer_name(options))
    return known is not None and known.elementwise


def is_undoable(options: OptimizerChoice) -> bool:
    """The same of `undoable`."""
    known = OPTIMIZERS.get(optimizer_name(options))
    return known is not None and known.undoable


def takes_single_updates(options: OptimizerChoice) -> bool:
    """The same of `single`."""
    known = OPTIMIZERS.get(optimizer_name(options))
    return known is not None and known.single


def chooses_step_size(arguments: Mapping[str, Any]) -> bool:
    """Adafactor's relative_step: sd-scripts' default is True, and warmup_init implies it."""
    return bool(arguments.get("relative_step", True) or arguments.get("warmup_init", False))
