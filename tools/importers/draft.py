"""A draft: the contents of the two new files as far as they are known, and what became of each key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from library.errors import Problem
from tools.importers.rules import plain

KEPT, RENAMED, CONVERTED, ADDED = "kept", "renamed", "converted", "added"
LOST, UNKNOWN, SECRET, UNSET = "lost", "unknown", "secret", "unset"
ARGUMENTS = {
    "network": "network_args",
    "optimizer": "optimizer_args",
    "scheduler": "lr_scheduler_args",
}


class Leaf(NamedTuple):
    """A key of the document that is no table.

    name:   as rules have it: "directory[].path"
    shown:  with its place: "directory[0].path"
    places: the numbers in its name, outermost first
    """

    name: str
    shown: str
    value: Any
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class Finding:
    """What became of one key. became: "key = value" of the new files, several with a comma between."""

    status: str
    key: str
    value: Any
    became: str = ""
    why: str = ""


class Waiting(NamedTuple):
    """A value that is settled together with others."""

    leaf: Leaf
    value: Any


@dataclass
class Draft:
    """The new files' contents by table, and what to tell. Tables: see rules.Rule.

    folders:  where relative paths of the old file may count from; the first where something is wins
    datasets: by the place of the dataset; subsets, of_subset: by dataset and subset
    notes:    what to know beside what became of keys
    files:    other files to write beside the two: option that names it -> (its name, its text)
    whole:    the model itself is trained, not adapters
    """

    folders: Sequence[Path] = ()
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    datasets: dict[int, dict[str, Any]] = field(default_factory=dict)
    subsets: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    of_subset: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    waiting: dict[str, list[Waiting]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: dict[str, tuple[str, str]] = field(default_factory=dict)
    whole: bool = False

    def table(self, name: str, places: Sequence[int] = ()) -> dict[str, Any]:
        """The table of that name. places: of the dataset and the subset in it, or of the subset."""
        if name == "datasets":
            return self.datasets.setdefault(places[0] if places else 0, {})
        if name in ("subsets", "of_subset"):
            dataset, subset = (0, 0, *places)[-2:]
            return getattr(self, name).setdefault((dataset, subset), {})
        return self.tables.setdefault(name, {})

    @property
    def train(self) -> dict[str, Any]:
        return self.table("train")

    def has(self, name: str) -> bool:
        return bool(self.waiting.get(name))

    def take(self, name: str) -> Waiting | None:
        """What waits under that name, the last that was given. To be told of by the caller."""
        found = self.waiting.pop(name, [])
        for earlier in found[:-1]:
            self.find(LOST, earlier.leaf, why=f"{found[-1].leaf.shown} comes later")
        return found[-1] if found else None

    def value(self, name: str, default: Any = None) -> Any:
        """The value that waits under that name; it goes on waiting."""
        found = self.waiting.get(name)
        return found[-1].value if found else default

    def put(
        self, leaf: Leaf, targets: str | Mapping[str, Any], value: Any = None, why: str = ""
    ) -> None:
        """Write a key, or several that one key of the old file stands for, and tell it."""
        written = targets if isinstance(targets, Mapping) else {targets: value}
        shown = []
        for target, each in written.items():
            name, _, key = target.partition(".")
            table = self.table(name, leaf.places)
            if key in table and table[key] != each:
                why = f"{why}; " if why else ""
                why += f"instead of {key} = {table[key]}, which stands there too"
            table[key] = each
            shown.append(became(name, key, each))
        (target, new) = next(iter(written.items()))
        status = status_of(leaf, target, new) if len(written) == 1 else CONVERTED
        self.find(status, leaf, ", ".join(shown), why)

    def add(self, target: str, value: Any, why: str) -> None:
        """Write what the old file does not have since its program does it unasked."""
        name, _, key = target.partition(".")
        if key not in self.table(name):
            self.table(name)[key] = value
            self.findings.append(Finding(ADDED, "", None, became(name, key, value), why))

    def write(self, leaf: Leaf, option: str, name: str, text: str) -> None:
        """Write a file of its own beside the two; the option names it once its folder is known."""
        self.files[option] = name, text
        self.find(CONVERTED, leaf, f"{option} = {name}", "a file beside the two")

    def revoke(self, table: str, key: str, why: str, status: str = UNSET) -> None:
        """Take back what was written of a key that has no use beside the others, or no place."""
        self.unsay(became(table, key, self.table(table).pop(key)), why, status)

    def unsay(self, written: str, why: str, status: str) -> None:
        """Tell of the keys that became that line that they did not."""
        self.findings = [
            each for each in self.findings if (each.status, each.became) != (ADDED, written)
        ]
        for number, each in enumerate(self.findings):
            if written in each.became.split(", "):
                self.findings[number] = replace(each, status=status, became="", why=why)

    def find(self, status: str, leaf: Leaf, became: str = "", why: str = "") -> None:
        self.findings.append(Finding(status, leaf.shown, leaf.value, became, why))

    def lose(self, leaf: Leaf, why: str) -> None:
        self.find(LOST, leaf, why=why)

    def of(self, *statuses: str) -> list[Finding]:
        return [each for each in self.findings if each.status in statuses]


def became(table: str, key: str, value: Any) -> str:
    """How a written key is shown."""
    shown = f"{str(value).lower() if isinstance(value, bool) else value}"
    if table in ARGUMENTS:
        return f"{ARGUMENTS[table]} {key}={shown}"
    return f"{key} = {shown}"


def status_of(leaf: Leaf, target: str, value: Any) -> str:
    """kept, renamed or converted."""
    if not alike(leaf.value, value):
        return CONVERTED
    old, new = leaf.name.rpartition(".")[2], target.partition(".")[2]
    return KEPT if old.removesuffix("[]") == new else RENAMED


def alike(old: Any, new: Any) -> bool:
    """Whether two values are the same, be it that one is written as text."""
    if isinstance(old, str) and not isinstance(new, str):
        old = plain(old)
    return bool(old == new and isinstance(old, bool) == isinstance(new, bool))
