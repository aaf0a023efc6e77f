"""Presets: configurations to begin with, by name, and for how many looks at each picture they are meant.

The files in configs/presets/ are made by tools/make_presets.py.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from library.utils import nearest_name

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "presets"
CARDS = (6, 8, 12, 16, 24)
KINDS = ("lora", "lokr")


class Purpose(NamedTuple):
    """What is taught. low, usual, high: times that each picture is seen; pictures: how many are usual."""

    low: int
    usual: int
    high: int
    pictures: tuple[int, int]


PURPOSES = {
    "character": Purpose(30, 100, 300, (15, 50)),
    "style": Purpose(10, 30, 100, (50, 300)),
    "concept": Purpose(20, 60, 200, (20, 100)),
}
"""Starting points after published recipes, which differ widely; none was tuned here."""

YIELDING = {
    "max_train_epochs": ("max_train_steps",),
}
"""Options of a preset that go where one of these is given: both would contradict each other."""


def preset_names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def preset_file(name: str) -> Path:
    """A preset by its name, or a TOML file of the user's own. Raises ValueError for neither."""
    if name.lower().endswith(".toml"):
        if not Path(name).is_file():
            raise ValueError(f"no such file: {name}.")
        return Path(name)
    names = preset_names()
    if name not in names:
        near = nearest_name(name, names)
        hint = f"Did you mean {near}? " if near else ""
        pattern = (
            f"{{{','.join(PURPOSES)}}}_{{{','.join(KINDS)}}}_{{{','.join(map(str, CARDS))}}}gb"
        )
        raise ValueError(f"no such preset. {hint}There are {pattern} and reference_author.")
    return FOLDER / f"{name}.toml"


def purpose_of(preset: str | None) -> str | None:
    """character, style or concept, where the name of a preset says so."""
    word = (preset or "").partition("_")[0]
    return word if word in PURPOSES else None


def yields(option: str, given: Container[str]) -> bool:
    """Whether an option of a preset goes, since something else was given."""
    return any(other in given for other in YIELDING.get(option, ()))


def recommended(pictures: int, card: int | None) -> str:
    """A preset for so many pictures and a card of so many GB (None: not known)."""
    purpose = "character" if pictures < PURPOSES["style"].pictures[0] else "style"
    fitting = [size for size in CARDS if card is None or size <= card] or [CARDS[0]]
    return f"{purpose}_lora_{fitting[0 if card is None else -1]}gb"
