"""Adapter files compared, for people: labels, groups of modules, and what stands in no figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import ascii_uppercase

from library.anima_workshop.base import open_base
from library.anima_workshop.layout import open_anima_adapter
from library.anima_workshop.tables import name_of
from library.errors import AdapterFileError, Problem, UserError
from library.reporting.strength import place_of
from networks.workshop.adapter_file import AdapterFile
from networks.workshop.comparing import Comparison, ModuleFigures, Products, compare
from networks.workshop.traits import Traits

LABELS = ascii_uppercase
"""Of the files, in their order; the first is what the others are compared with."""


@dataclass(frozen=True)
class Group:
    """Modules that are told together: of a block, or of one name in all blocks."""

    name: str
    modules: Sequence[ModuleFigures]


@dataclass(frozen=True)
class Compared:
    """has_base: modules have the norms of a base model's weights"""

    comparison: Comparison
    has_base: bool

    @property
    def names(self) -> list[str]:
        return [file.path.name for file in self.comparison.files]

    @property
    def count(self) -> int:
        return len(self.comparison.files)

    @property
    def labels(self) -> str:
        return LABELS[: self.count]

    @cached_property
    def total(self) -> Products:
        return self.comparison.total()

    @cached_property
    def parts(self) -> list[Group]:
        return self.grouped(name_of)

    @cached_property
    def blocks(self) -> list[Group]:
        return self.grouped(lambda path: place_of(path)[0] or path)

    def grouped(self, named: Callable[[str], str]) -> list[Group]:
        found: dict[str, list[ModuleFigures]] = {}
        for module in self.comparison.modules:
            found.setdefault(named(module.path), []).append(module)
        return [Group(name, modules) for name, modules in found.items()]

    def traits(self, i: int) -> list[Traits]:
        """Of the modules of file i that are in the figures."""
        return [traits for module in self.comparison.modules if (traits := module.traits[i])]

    def kinds(self, i: int) -> Counter[str]:
        return Counter(traits.kind for traits in self.traits(i))

    def ranks(self, i: int) -> Counter[int]:
        return Counter(traits.rank for traits in self.traits(i) if traits.rank is not None)

    def scales(self, i: int) -> Counter[float]:
        """Of the modules that have a rank."""
        return Counter(traits.scale for traits in self.traits(i) if traits.rank is not None)

    def having(self) -> Counter[tuple[int, ...]]:
        """Numbers of files -> how many modules are in exactly these."""
        return Counter(files_of(module) for module in self.comparison.modules)


def files_of(module: ModuleFigures) -> tuple[int, ...]:
    return tuple(number for number, traits in enumerate(module.traits) if traits)


def look_at(paths: Sequence[Path], base: Path | None = None) -> Compared:
    """Raises a UserError with what is wrong with any of the files, and AdapterFileError when none of
    them has a module that can be measured."""
    opened: list[AdapterFile] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            opened.append(open_anima_adapter(path, base))
        except AdapterFileError as error:
            problems += error.problems
    if problems:
        raise AdapterFileError(problems)
    weights = open_base(base).of_module if base else None
    found = compare(opened, weights)
    if not found.modules:
        raise nothing_measured(found)
    return Compared(found, base is not None)


def nothing_measured(found: Comparison) -> UserError:
    """With the first reason for each file."""
    problems: list[Problem] = []
    for number, file in enumerate(found.files):
        reasons = [(path, why[number]) for path, why in found.left_out.items() if number in why]
        for path, why in reasons[:1]:
            problems.append(
                Problem(f"{why} ({len(reasons)} modules are left out).", path, str(file.path))
            )
        if not file.entries:
            key, why = next(iter(file.left.items()))
            problems.append(Problem(f"has no module of Anima's: {why}.", key, str(file.path)))
    return AdapterFileError(problems)
