"""What flags of several groups are declared with."""

from __future__ import annotations

from typing import Any

from library.settings.dataset_keys import default_of
from library.settings.effects import Idle, needs_plan
from library.settings.options import flag

NOT_SD = "it belongs to Stable Diffusion models and means nothing here"
FLOW = "it is defined for noise-predicting models with a beta schedule; this is rectified flow"


def key_flag(key: str, help: str, **declared: Any) -> Any:
    """A flag for a key of the dataset file: its value counts where the file is silent."""
    return flag(default_of(key), help, **declared)


def fits_steps(name: str) -> Idle:
    """Idle where the run ends before."""
    return needs_plan(
        lambda o: getattr(o, name) <= o.plan.total_steps, "the run has {o.plan.total_steps} steps"
    )


def fits_epochs(name: str) -> Idle:
    """Idle where the run ends before."""
    return needs_plan(
        lambda o: getattr(o, name) <= o.plan.epochs, "the run has {o.plan.epochs} epochs"
    )
