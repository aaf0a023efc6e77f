"""Optimizers by the names that a user may write, with the class and the package behind each.

One table: the flag's help, the checks, the trainer and what is said of usual rates come from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class KnownOptimizer:
    """One row of the table.

    path:         of the class
    requirement:  for pip, "" when it is always there
    defaults:     where ours differ
    finds_own_lr: the learning rate only scales what it finds
    usual_rates:  the optimizer whose usual learning rates are its own too; "" where none is known
    """

    path: str
    requirement: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    finds_own_lr: bool = False
    usual_rates: str = ""


def _bitsandbytes(name: str, usual_rates: str = "", **defaults: Any) -> KnownOptimizer:
    path = f"bitsandbytes.optim.{name}"
    return KnownOptimizer(path, "bitsandbytes>=0.50", defaults, usual_rates=usual_rates)


def _dadaptation(path: str) -> KnownOptimizer:
    return KnownOptimizer(f"dadaptation.{path}", "dadaptation", finds_own_lr=True)


def _schedulefree(name: str) -> KnownOptimizer:
    return KnownOptimizer(f"schedulefree.{name}", "schedulefree")


OPTIMIZERS: dict[str, KnownOptimizer] = {
    "AdamW": KnownOptimizer("torch.optim.AdamW", usual_rates="AdamW"),
    "AdamW8bit": _bitsandbytes("AdamW8bit", "AdamW"),
    "PagedAdamW": _bitsandbytes("PagedAdamW", "AdamW"),
    "PagedAdamW8bit": _bitsandbytes("PagedAdamW8bit", "AdamW"),
    "PagedAdamW32bit": _bitsandbytes("PagedAdamW32bit", "AdamW"),
    "Lion": KnownOptimizer("lion_pytorch.Lion", "lion-pytorch", usual_rates="Lion"),
    "Lion8bit": _bitsandbytes("Lion8bit", "Lion"),
    "PagedLion8bit": _bitsandbytes("PagedLion8bit", "Lion"),
    "SGDNesterov": KnownOptimizer("torch.optim.SGD", "", {"momentum": 0.9, "nesterov": True}),
    "SGDNesterov8bit": _bitsandbytes("SGD8bit", momentum=0.9, nesterov=True),
    "DAdaptation": _dadaptation("experimental.DAdaptAdamPreprint"),
    "DAdaptAdamPreprint": _dadaptation("experimental.DAdaptAdamPreprint"),
    "DAdaptAdaGrad": _dadaptation("DAdaptAdaGrad"),
    "DAdaptAdam": _dadaptation("DAdaptAdam"),
    "DAdaptAdan": _dadaptation("DAdaptAdan"),
    "DAdaptAdanIP": _dadaptation("experimental.DAdaptAdanIP"),
    "DAdaptLion": _dadaptation("DAdaptLion"),
    "DAdaptSGD": _dadaptation("DAdaptSGD"),
    "Prodigy": KnownOptimizer("prodigyopt.Prodigy", "prodigyopt", finds_own_lr=True),
    "Adafactor": KnownOptimizer("transformers.optimization.Adafactor", "transformers"),
    "RAdamScheduleFree": _schedulefree("RAdamScheduleFree"),
    "AdamWScheduleFree": _schedulefree("AdamWScheduleFree"),
    "SGDScheduleFree": _schedulefree("SGDScheduleFree"),
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


def chooses_step_size(arguments: Mapping[str, Any]) -> bool:
    """Adafactor's relative_step: sd-scripts' default is True, and warmup_init implies it."""
    return bool(arguments.get("relative_step", True) or arguments.get("warmup_init", False))
