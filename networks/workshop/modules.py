"""Modules: what a model has that an adapter file may change, by path, without the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Modules:
    """shapes:   of the weight of every module that has one
    biases:   paths of those that have a bias too
    targets:  the Linears that are adapted unless the user says otherwise
    aliases:  other names that programs give modules in files -> path
    is_exact: shapes were read from a model; else they are those of the published size
    """

    shapes: Mapping[str, Shape]
    biases: frozenset[str]
    targets: frozenset[str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    is_exact: bool = False

    @property
    def norms(self) -> set[str]:
        """Those with a vector for a weight."""
        return {path for path, shape in self.shapes.items() if len(shape) == 1}
