"""Adapters added to a base model's file, a weight at a time: all else is copied byte for byte."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from library.anima_workshop.base import BaseFile, open_base
from library.anima_workshop.storing import Storing
from library.errors import AdapterFileError, ModelFileError, OutputError, Problem
from library.system.system_errors import output_errors
from library.system.tensor_writing import SIZES, tensor_writer
from library.utils import atomic_write, first_few
from networks.workshop.sources import Sources

SAMPLE = 24
"""Tensors that are read back unless all are."""

Told = Callable[[Iterable[str]], Iterable[str]]
"""Goes through keys while something is told of it, e.g. a bar."""


@dataclass(frozen=True)
class Changed:
    """One parameter that adapters change.

    size:     Frobenius norm of what they add
    error:    of what the file has more than the base, relative to that: what rounding costs
    changed:  entries that they change
    survived: those of them that differ in the file
    """

    path: str
    size: float
    error: float
    changed: int
    survived: int


@dataclass
class BaseMerging:
    """rows: what was changed so far"""

    base: BaseFile
    sources: Sources
    storing: Storing
    rows: list[Changed] = field(default_factory=list)

    def __post_init__(self) -> None:
        odd = {key: e.dtype for key, e in self.base.header.entries.items() if e.dtype not in SIZES}
        if odd:
            shown = first_few([f"{key} ({dtype})" for key, dtype in odd.items()], 3)
            raise ModelFileError(f"holds what cannot be copied: {shown}.", source=str(self.base.path))

    @cached_property
    def modules(self) -> dict[str, str]:
        """The module of every parameter that may change, by the parameter's key."""
        names = {f"{path}.{part}": path for path in self.sources.paths() for part in ("weight", "bias")}
        return {self.base.names[n]: path for n, path in names.items() if n in self.base.names}

    def merged(self, path: str) -> dict[str, tuple[Tensor, Tensor]]:
        """(as it is, as it becomes) of the parameters that change, float32, by key.

        Each file adds to what those before it made. Raises ValueError for what does not fit.
        """
        before = self.base.of_module(path)
        after = dict(before)
        for source in self.sources.of(path):
            for name, delta in source.file.deltas(path, after).items():
                if name not in after:
                    raise ValueError(f"has no {name}, but {source.file.path.name} has one for it")
                after[name] = after[name] + source.strength * delta.dense()
        changed = [name for name in after if after[name] is not before[name]]
        return {self.base.names[f"{path}.{n}"]: (before[n], after[n]) for n in changed}

    def anew(self, key: str) -> dict[str, Tensor]:
        """The tensors that are written for a weight, by key; none where it stays as it is."""
        form = self.storing.forms.get(key)
        if form is None:
            return {}
        if key in self.modules and (found := self.merged(self.modules[key])) and key in found:
            before, after = found[key]
            stored = form.encoded(after, key)
            self.rows.append(compared(self.modules[key], before, after, form.decoded(stored, key)))
            return stored
        if key in self.storing.new:
            return form.encoded(self.base.whole(key), key)
        return {}

    def measure(self, told: Told) -> None:
        """Find the rows, and write nothing. Raises AdapterFileError with all that does not fit."""

        def find(key: str) -> None:
            self.anew(key)

        self.for_each(told(list(self.modules)), find)

    def write(self, path: Path, metadata: Mapping[str, str], told: Told, checked: int | None) -> None:
        """The merged file, whole or not at all. checked: how many tensors are read back; None: all"""
        with output_errors(path), atomic_write(path) as temporary:
            with tensor_writer(temporary, self.storing.plan, metadata, hashed=False) as writer:
                for key, mark in self.storing.marks.items():
                    writer.put(key, mark)

                def put(key: str) -> None:
                    for name, tensor in self.anew(key).items():
                        writer.put(name, tensor)
                    if key in writer.waiting:  # a scale that comes before its weight is written twice
                        writer.put_bytes(key, self.base.raw(key))

                self.for_each(told(list(self.base.header.entries)), put)
            self.check(open_base(temporary), checked)

    def for_each(self, keys: Iterable[str], work: Callable[[str], None]) -> None:
        problems = []
        for key in keys:
            try:
                work(key)
            except ValueError as error:
                problems.append(Problem(f"{error}.", self.modules.get(key, key)))
        if problems:
            raise AdapterFileError(problems, source=str(self.base.path))

    def check(self, written: BaseFile, count: int | None) -> None:
        """Read tensors back. Raises OutputError for one that is not what it should be."""
        for key in chosen(list(self.modules), count):
            found = self.merged(self.modules[key])
            if key not in found:
                continue
            form, how = self.storing.forms[key], written.layout.weights.get(key)
            tensors = {k: written.read(k) for k in (key, how and how.scale) if k}
            now = written.whole(key)
            if not form.is_rounding(now, found[key][1], form.scale_in(tensors)):
                raise spoilt(written.path, key, "the base and what was added")
        untouched = written.header.entries.keys() - self.modules.keys() - self.storing.new
        for key in chosen(sorted(untouched & self.base.header.entries.keys()), count):
            if key not in self.rescaled and written.raw(key) != self.base.raw(key):
                raise spoilt(written.path, key, "what the base has")

    @cached_property
    def rescaled(self) -> set[str]:
        """Keys of scales that are written with their weights."""
        hows = (self.storing.forms[key].how for key in {*self.modules, *self.storing.new})
        return {how.scale for how in hows if how is not None and how.scale is not None}


def compared(path: str, before: Tensor, after: Tensor, stored: Tensor) -> Changed:
    size = float(torch.linalg.vector_norm(after - before, dtype=torch.float64))
    off = float(torch.linalg.vector_norm(stored - after, dtype=torch.float64))
    is_changed = after != before
    survived = is_changed & (stored != before)
    counts = int(is_changed.count_nonzero()), int(survived.count_nonzero())
    return Changed(path, size, off / size if size else 0.0, *counts)


def chosen(keys: Sequence[str], count: int | None) -> Sequence[str]:
    """So many of them, drawn; the same ones each time."""
    if count is None or count >= len(keys):
        return keys
    return random.Random(0).sample(keys, count)


def spoilt(path: Path, key: str, expected: str) -> OutputError:
    message = f"reads back as something else than {expected}; nothing was written. Is the disk healthy?"
    return OutputError(Problem(message, key), source=str(path))
