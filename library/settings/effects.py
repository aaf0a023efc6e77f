"""When an option does nothing beside the others: declared with the option, told by doctor and run.

An option is idle when what it asks for does not happen. One that asks for what happens anyway is not:
`sdpa` where attention is torch's already, `no_half_vae` where everything is in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

Condition = Callable[[Any], object]
"""Of the options, which are its argument's attributes: all of them, or those of one group."""


@dataclass(frozen=True)
class Idle:
    """A case in which an option does nothing.

    when:    a condition over the other options, which are attributes of its argument
    reason:  why; true whenever `when` is. {o.name} stands for the value of an option
    loses:   another value stands in its place: told also of a value that equals the default
    of:      what the condition looks at beside options, and may not be known yet: "datasets" (the
             pictures' configuration) or "plan" (the length of the run)
    """

    when: Condition
    reason: str
    loses: bool = False
    of: str = ""


def needs(condition: Condition, reason: str) -> Idle:
    """Idle unless `condition` holds."""
    return Idle(lambda o: not condition(o), reason)


def needs_data(condition: Condition, reason: str) -> Idle:
    """Idle unless `condition`, which looks at the datasets, holds."""
    return Idle(lambda o: not condition(o), reason, of="datasets")


def needs_plan(condition: Condition, reason: str) -> Idle:
    """Idle unless `condition`, which looks at the length of the run, holds."""
    return Idle(lambda o: not condition(o), reason, of="plan")


def loses_to(condition: Condition, reason: str) -> Idle:
    """Idle where `condition` holds, since something else decides."""
    return Idle(condition, reason, loses=True)


def idle_reason(cases: Sequence[Idle], options: SimpleNamespace, *, asks: bool) -> str | None:
    """Why an option does nothing, by the first case that holds; None when it acts.

    asks: whether its value asks for anything; one that does not can still lose to another
    """
    for case in cases:
        known = not case.of or getattr(options, case.of) is not None
        if (asks or case.loses) and known and case.when(options):
            return case.reason.format(o=options)
    return None
