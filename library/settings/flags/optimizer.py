"""The flags of the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from library.settings.effects import loses_to, needs
from library.settings.optimizer_names import DEFAULT, OPTIMIZERS, chooses_step_size, optimizer_name
from library.settings.options import at_least, flag
from library.settings.user_classes import parse_assignments

OPTIMIZER_CHOICES = ", ".join(
    f"{name} (default)" if name == DEFAULT else name for name in OPTIMIZERS
) + ", or a dotted class path"


def sets_own_rate(o: SimpleNamespace) -> bool:
    """Whether the optimizer is Adafactor at its own step size, sd-scripts' default of it."""
    if optimizer_name(o) != "Adafactor":
        return False
    arguments, _ = parse_assignments(o.optimizer_args, "optimizer_args")
    return chooses_step_size(arguments)


OWN_RATE = loses_to(
    sets_own_rate,
    "Adafactor sets its own step size unless optimizer_args has relative_step=False "
    "scale_parameter=False warmup_init=False",
)


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Optimizer"""

    optimizer_type: str = flag("", OPTIMIZER_CHOICES)
    use_8bit_adam: bool = flag(False, "old form of optimizer_type = AdamW8bit")
    use_lion_optimizer: bool = flag(False, "old form of optimizer_type = Lion")
    learning_rate: float = flag(
        2e-6,
        "step size of the optimizer",
        check=at_least(0),
        idle=(
            OWN_RATE,
            loses_to(lambda o: o.unet_lr is not None, "unet_lr decides"),
        ),
    )
    max_grad_norm: float = flag(
        1.0, "clip gradients at this norm; 0 does not clip", check=at_least(0)
    )
    optimizer_args: tuple[str, ...] | None = flag(None, "key=value arguments of the optimizer")
    fused_backward_pass: bool = flag(
        False,
        "where the model itself trains: update each weight as soon as its gradient is there, and let that "
        "go; with AdamW and Adafactor, without max_grad_norm and gradient_accumulation_steps",
        idle=(
            needs(
                lambda o: o.whole,
                "the gradients of adapters are small, and their norm is clipped and checked for NaN as a "
                "whole before any weight moves",
            ),
        ),
    )
    blockwise_fused_optimizers: bool = flag(
        False,
        "one optimizer per block",
        ignored="fused_backward_pass of a model, weight by weight, saves more; adapters are small",
    )
