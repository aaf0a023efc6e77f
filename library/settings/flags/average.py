"""The flags of the average of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from library.settings.effects import needs
from library.settings.flags.shared import fits_steps
from library.settings.options import at_least, flag


def share_below_1(value: Any) -> str | None:
    return None if 0 < value < 1 else "expected more than 0 and less than 1."


@dataclass(frozen=True, kw_only=True)
class AverageOptions:
    """Average of the weights (EMA)"""

    ema_decay: float | None = flag(
        None,
        "keep a moving average of the adapters, saved as <name>-ema beside each file: the share that "
        "stays at each update, such as 0.999",
        check=share_below_1,
        off=(0,),
    )
    ema_start_step: int = flag(
        0,
        "the first step whose weights count",
        check=at_least(0),
        idle=(
            needs(lambda o: o.ema_decay, "ema_decay is not set"),
            fits_steps("ema_start_step"),
        ),
    )
