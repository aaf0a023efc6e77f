"""Learning-rate schedules by sd-scripts' names: the curve behind each, and the options that it reads.

One table: the flag's help, the checks, and what is said of options without effect come from it.
"""

from __future__ import annotations

from dataclasses import dataclass

WARMUP, CYCLES, FLOOR = "lr_warmup_steps", "lr_scheduler_num_cycles", "lr_scheduler_min_lr_ratio"


@dataclass(frozen=True)
class KnownSchedule:
    """One row of the table.

    reads:    the options of the group of schedules that change it
    function: in transformers.optimization; "" where it is made in another way
    value:    what may stand behind its name
    """

    reads: tuple[str, ...]
    function: str = ""
    value: str = ""


SCHEDULES = {
    "linear": KnownSchedule((WARMUP,), "get_linear_schedule_with_warmup"),
    "cosine": KnownSchedule((WARMUP,), "get_cosine_schedule_with_warmup"),
    "cosine_with_restarts": KnownSchedule(
        (WARMUP, CYCLES), "get_cosine_with_hard_restarts_schedule_with_warmup"
    ),
    "polynomial": KnownSchedule(
        (WARMUP, "lr_scheduler_power"), "get_polynomial_decay_schedule_with_warmup"
    ),
    "constant": KnownSchedule((), "get_constant_schedule"),
    "constant_with_warmup": KnownSchedule((WARMUP,), "get_constant_schedule_with_warmup"),
    "inverse_sqrt": KnownSchedule((WARMUP, "lr_scheduler_timescale"), "get_inverse_sqrt_schedule"),
    "cosine_with_min_lr": KnownSchedule(
        (WARMUP, CYCLES, FLOOR), "get_cosine_with_min_lr_schedule_with_warmup"
    ),
    "warmup_stable_decay": KnownSchedule(
        (WARMUP, "lr_decay_steps", CYCLES, FLOOR), "get_wsd_schedule"
    ),
    "piecewise_constant": KnownSchedule(()),
    "adafactor": KnownSchedule((), value="[:lr]"),
}
