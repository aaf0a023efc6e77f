"""How an option is written down in effects_table.py and effects_of_keys.py."""

from dataclasses import dataclass, field
from typing import Any

ADAFACTOR = {"optimizer_type": "Adafactor", "lr_scheduler": "cosine"}
STEP_LR = {"lr_scheduler_type": "StepLR", "lr_scheduler_args": ["step_size=2"]}


@dataclass(frozen=True)
class Case:
    """How one option acts.

    value:  one that asks for something
    by:     the observer (tests/helpers/observed.py) that sees the difference it makes
    beside: the other options it needs for that
    shown:  the test that sees it act, where no observer does
    idle:   settings beside which it does nothing: told, and seen by the observer if there is one
    """

    value: Any = None
    by: str = ""
    beside: dict[str, Any] = field(default_factory=dict)
    shown: str = ""
    idle: tuple[dict[str, Any], ...] = ()


def noise(value: Any, *idle: dict[str, Any], **beside: Any) -> Case:
    return Case(value, "noise", beside, idle=idle)


def huber(value: Any) -> Case:
    return Case(value, "loss", {"loss_type": "huber"}, idle=({"loss_type": "l1"},))


def schedule(value: Any, name: str, *idle: Any, **beside: Any) -> Case:
    """An option that schedule `name` reads and the schedules of `idle` do not."""
    others = [other if isinstance(other, dict) else {"lr_scheduler": other} for other in idle]
    beside = {"lr_scheduler": name, "learning_rate": 1e-2, **beside}
    return Case(value, "updates", beside, idle=(*others, ADAFACTOR, STEP_LR))


def shown(test: str, value: Any = None, *idle: dict[str, Any]) -> Case:
    return Case(value, shown=test, idle=idle)


def fetched(value: Any, *idle: dict[str, Any], **beside: Any) -> Case:
    idle = (*idle, {"auto_download_t5_tokenizer": False})
    return Case(value, "sources", beside, idle=idle)
