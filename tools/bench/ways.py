"""Ways of saving memory and time by name: those of measurements, so many blocks, and several together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from library.anima_doctor.anima_step import ALL, CHECKPOINT, INT8, MODES, NF4, SPEEDS, Saving
from library.errors import ConfigError
from library.settings.flags.loop import LoopOptions

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
    asked: dict[tuple[int, str], Any] = {}
    for name in text.split("+"):
        for place, value in options_of(name, text):
            if asked.setdefault(place, value) != value:
                raise ConfigError(f"{text}: {place[1]} is asked to be {asked[place]} and {value}.")
    loop, precision = (
        replace(group, **{name: value for (of, name), value in asked.items() if of == number})
        for number, group in enumerate(Saving())
    )
    return Saving(loop, precision)


def options_of(name: str, text: str) -> Iterator[tuple[tuple[int, str], Any]]:
    """(group and name, value) of each option that one name sets; text: for the message."""
    found = WAYS.get(name)
    if numbered := re.fullmatch(r"(swap|every)_([1-9]\d*)", name):
        kind, count = numbered[1], int(numbered[2])
        swaps, recomputes = LoopOptions(blocks_to_swap=count), replace(CHECKPOINT, checkpoint_every_n=count)
        found = Saving(swaps if kind == "swap" else recomputes)
    if found is None:
        raise ConfigError(f"{text}: no mode {name}; there are {HELP}.")
    for number, (group, usual) in enumerate(zip(found, Saving(), strict=True)):
        for field in fields(group):
            value = getattr(group, field.name)
            if value != getattr(usual, field.name):
                yield (number, field.name), value


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
