"""The flags of the learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass

from library.settings.effects import Idle, loses_to, needs
from library.settings.flags.optimizer import OWN_RATE, sets_own_rate
from library.settings.options import at_least, between, flag, steps_or_fraction
from library.settings.schedule_names import SCHEDULES

SCHEDULE_CHOICES = ", ".join(name + known.value for name, known in SCHEDULES.items())


def _reads(schedule: str, option: str) -> bool:
    """Whether a schedule reads an option; of one that is not known, nobody knows that it does not."""
    known = SCHEDULES.get(schedule.partition(":")[0])
    return known is None or option in known.reads


def read_by_schedule(name: str) -> tuple[Idle, Idle, Idle]:
    """When an option of the schedule has no effect: the schedule does not read it."""
    return (
        loses_to(sets_own_rate, OWN_RATE.reason),
        Idle(
            lambda o: o.lr_scheduler_type,
            "lr_scheduler_type takes its numbers from lr_scheduler_args",
        ),
        needs(
            lambda o: _reads(o.lr_scheduler, name),
            "lr_scheduler = {o.lr_scheduler} does not read it",
        ),
    )


OWN_RATE_SCHEDULE = loses_to(
    lambda o: sets_own_rate(o) and not o.lr_scheduler.startswith("adafactor"), OWN_RATE.reason
)


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Learning-rate schedule"""

    lr_scheduler: str = flag(
        "constant",
        SCHEDULE_CHOICES,
        idle=(
            loses_to(lambda o: o.lr_scheduler_type, "lr_scheduler_type decides"),
            OWN_RATE_SCHEDULE,
        ),
    )
    lr_scheduler_type: str = flag("", "class path of a schedule of your own", idle=(OWN_RATE,))
    lr_scheduler_args: tuple[str, ...] | None = flag(
        None, "key=value arguments of the schedule", idle=(OWN_RATE,)
    )
    lr_warmup_steps: float = flag(
        0,
        "warm-up: steps, fraction of the run, or percentage",
        read=steps_or_fraction,
        idle=(*read_by_schedule("lr_warmup_steps"),),
    )
    lr_decay_steps: float = flag(
        0,
        "decay: steps, fraction of the run, or percentage",
        read=steps_or_fraction,
        idle=(*read_by_schedule("lr_decay_steps"),),
    )
    lr_scheduler_num_cycles: float = flag(
        1,
        "cycles or restarts, also halves",
        check=at_least(0),
        idle=(*read_by_schedule("lr_scheduler_num_cycles"),),
    )
    lr_scheduler_power: float = flag(
        1.0, "power of polynomial", idle=(*read_by_schedule("lr_scheduler_power"),)
    )
    lr_scheduler_timescale: int | None = flag(
        None,
        "time scale of inverse_sqrt",
        check=at_least(1),
        off=(0,),
        idle=(*read_by_schedule("lr_scheduler_timescale"),),
    )
    lr_scheduler_min_lr_ratio: float | None = flag(
        None,
        "floor, as a share of the learning rate",
        check=between(0, 1),
        idle=(*read_by_schedule("lr_scheduler_min_lr_ratio"),),
    )
