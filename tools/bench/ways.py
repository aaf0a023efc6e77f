"""Ways of saving memory and time by name: those of measurements, so many blocks, and several together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from library.anima_doctor.anima_step import ALL, CHECKPOINT, INT8, MODES, NF4, SPEEDS, Saving
from library.errors import ConfigError
from library.settings.flags.loop import LoopOptions
from library.settings.flags.precision import PrecisionOptions

Options = TypeVar("Options", LoopOptions, PrecisionOptions)

WAYS = {
    **MODES,
    "int8": Saving(precision=INT8),
    "nf4": Saving(precision=NF4),
    **{name: SPEEDS[name] for name in ("compile", "compile_checkpoint")},
}
NUMBERED = "swap_N, every_N"
HELP = f"{', '.join(WAYS)}; {NUMBERED} with a number; and several joined by +"


def way_of(text: str) -> Saving:
    """What the names in the text, with + between them, ask for together. Raises ConfigError."""
    ways = [way_named(name, text) for name in text.split("+")]
    loop = together([way.loop for way in ways], text)
    return Saving(loop, together([way.precision for way in ways], text))


def together(groups: Sequence[Options], text: str) -> Options:
    """What each of the groups sets that is not usual, in one."""
    usual = type(groups[0])()
    asked: dict[str, Any] = {}
    for group in groups:
        for field in fields(group):
            value = getattr(group, field.name)
            if value != getattr(usual, field.name) and asked.setdefault(field.name, value) != value:
                found = f"{field.name} is asked to be {asked[field.name]} and {value}"
                raise ConfigError(f"{text}: {found}.")
    return replace(usual, **asked)


def way_named(name: str, text: str) -> Saving:
    """What one name asks for. text: for the message"""
    found = WAYS.get(name)
    if numbered := re.fullmatch(r"(swap|every)_([1-9]\d*)", name):
        kind, count = numbered[1], int(numbered[2])
        swaps, recomputes = LoopOptions(blocks_to_swap=count), replace(CHECKPOINT, checkpoint_every_n=count)
        found = Saving(swaps if kind == "swap" else recomputes)
    if found is None:
        raise ConfigError(f"{text}: no mode {name}; there are {HELP}.")
    return found


def name_of(way: Saving) -> str:
    """The text that asks for it."""
    for name, known in WAYS.items():
        if known == way:
            return name
    loop, every, blocks = way.loop, way.loop.checkpoint_every_n, way.loop.blocks_to_swap
    form = way.precision.stored_form or ""
    acting = {
        "offload": loop.offloads,
        f"every_{every}": loop.checkpoints and every > 1,
        "checkpoint": loop.checkpoints and every == 1 and not loop.offloads,
        "cheap": loop.recompute == "cheap",
        f"swap_{'all' if blocks == ALL else blocks}": bool(blocks),
        form.replace("rotated", "compute"): bool(form),
        "compile": way.precision.compile,
    }
    return "+".join(name for name, is_so in acting.items() if is_so)
