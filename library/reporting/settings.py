"""The configuration of a run for its page: what counts, where it is not the default, and what came of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from library.settings.options import Flag, flags_of
from library.watching.trackers import SECRETS

if TYPE_CHECKING:
    from accelerate import Accelerator

    from library.settings.run_config import TrainConfig
    from networks.trained import Trained

Row = tuple[str, str, str, bool]
"""name, value, default, whether they differ"""
LONGEST = 2000


def rows_of(groups: Sequence[Any]) -> list[Row]:
    """Every option that can have an effect, as the run has it. Secrets are left out.

    groups: of options, those of the family among them
    """
    flags = [(group, flag) for group in groups for flag in flags_of(type(group))]
    return [
        row(flag, getattr(group, flag.dest))
        for group, flag in flags
        if not (flag.ignored or flag.refused or flag.dest in SECRETS)
    ]


def row(flag: Flag, value: object) -> Row:
    name = flag.names[0].removeprefix("--")
    return name, text(value), text(flag.default), value != flag.default


def text(value: object) -> str:
    """As TOML has it, roughly; the folder of the user is ~."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(map(text, value))
    home = os.path.expanduser("~")
    shown = str(value)
    if len(home) > 1 and shown.startswith((home + os.sep, home + "/")):
        shown = "~" + shown[len(home) :]
    return shown[:LONGEST]


def run_words(
    cfg: TrainConfig, accelerator: Accelerator, network: Trained, optimizer: str, seed: int
) -> dict[str, str]:
    """What the options came to, in words, by what it is about."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {
        "device": f"{accelerator.num_processes} x {name}",
        "precision": cfg.precision.mixed_precision,
        "adapters": network.in_short(),
        "optimizer": optimizer,
        "seed": str(seed),
        "torch": torch.__version__,
    }
