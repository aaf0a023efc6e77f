"""Adapter files compared by what they add: norms and inner products of their deltas, module by module.

All figures of a comparison follow from the inner products of n deltas, and those of several modules are
sums: |a|, |b|, the cosine, the distance and the strengths at which one is like another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from networks.workshop.adapter_file import AdapterFile, NeedsBase
from networks.workshop.deltas import Delta, Dense
from networks.workshop.traits import Traits, traits_of

WeightsOf = Callable[[str], Mapping[str, Tensor]]
"""A module's own weight and bias; nothing for one that the base has not."""


@dataclass(frozen=True)
class Products:
    """products: (n, n) float64, the inner products of n deltas over the same weights"""

    products: Tensor

    @classmethod
    def total(cls, parts: Iterable[Products], count: int) -> Products:
        """Of all parts as one delta each."""
        none = torch.zeros(count, count, dtype=torch.float64)
        return cls(sum((part.products for part in parts), none))

    def norm(self, i: int) -> float:
        return math.sqrt(self.inner(i, i))

    def inner(self, i: int, j: int) -> float:
        return float(self.products[i, j])

    def ratio(self, i: int, to: int) -> float | None:
        """|i| / |to|; None where that is zero."""
        return quotient(self.norm(i), self.norm(to))

    def cosine(self, i: int, j: int) -> float | None:
        """In [-1, 1]; None where one is zero."""
        found = quotient(self.inner(i, j), self.norm(i) * self.norm(j))
        return None if found is None else max(-1.0, min(1.0, found))

    def nearest_strength(self, i: int, to: int) -> float | None:
        """The strength s of i at which |s * i - to| is least; None where i is zero."""
        return quotient(self.inner(i, to), self.inner(i, i))

    def distance(self, i: int, to: int) -> float | None:
        """|i - to| / |to|; None where `to` is zero."""
        squared = self.inner(i, i) - 2 * self.inner(i, to) + self.inner(to, to)
        return quotient(math.sqrt(max(squared, 0.0)), self.norm(to))


def quotient(above: float, below: float) -> float | None:
    return above / below if below else None


@dataclass(frozen=True)
class ModuleFigures:
    """What n files do to one module.

    traits: of each file; None where it has nothing for the module
    base:   norm of the base model's own weight and bias; None without a base
    """

    path: str
    products: Products
    traits: Sequence[Traits | None]
    base: float | None


@dataclass(frozen=True)
class RatioParts:
    """A ratio of two norms as a product.

    coverage: by modules that only one of the files has
    scale:    by alpha / rank in the modules that both have, weighted as they are strong
    factors:  by the factors there, as if all scales were 1
    """

    coverage: float
    scale: float
    factors: float


@dataclass(frozen=True)
class Comparison:
    """files:    n of them, in the order of all figures
    modules:  those that could be measured in every file that has them
    left_out: module -> why it could not be measured, by the number of the file; it is in no figure
    """

    files: Sequence[AdapterFile]
    modules: Sequence[ModuleFigures]
    left_out: Mapping[str, Mapping[int, str]]

    def total(self, modules: Iterable[ModuleFigures] | None = None) -> Products:
        """Over these modules, or over all."""
        chosen = self.modules if modules is None else modules
        return Products.total((module.products for module in chosen), len(self.files))

    def unscaled(self, i: int, modules: Iterable[ModuleFigures] | None = None) -> float:
        """The norm that file i would have if every scale were 1; modules of scale 0 count nothing."""
        chosen = self.modules if modules is None else modules
        squares = 0.0
        for module in chosen:
            traits = module.traits[i]
            if traits and traits.scale:
                squares += module.products.inner(i, i) / traits.scale**2
        return math.sqrt(squares)

    def parts_of_ratio(self, i: int, to: int) -> RatioParts | None:
        """Why |i| / |to| is what it is; None where they have nothing in common, or one of it is zero."""
        common = [module for module in self.modules if module.traits[i] and module.traits[to]]
        whole, shared = self.total(), self.total(common)
        unscaled = self.unscaled(i, common), self.unscaled(to, common)
        if not all((shared.norm(i), shared.norm(to), *unscaled)):
            return None
        mine, theirs = shared.norm(i), shared.norm(to)
        return RatioParts(
            coverage=(whole.norm(i) / mine) / (whole.norm(to) / theirs),
            scale=(mine / unscaled[0]) / (theirs / unscaled[1]),
            factors=unscaled[0] / unscaled[1],
        )

    def base_norm(self, modules: Iterable[ModuleFigures] | None = None) -> float | None:
        """Of the base model's weights together; None when one is not known."""
        chosen = self.modules if modules is None else modules
        norms = [module.base for module in chosen]
        if not norms or None in norms:
            return None
        return math.hypot(*(norm for norm in norms if norm is not None))


def compare(files: Sequence[AdapterFile], base: WeightsOf | None = None) -> Comparison:
    """Module by module, so that little is in memory. Raises AdapterFileError for a file that is no longer
    whole; what does not fit in a module alone is kept as a reason."""
    longest_first = sorted(files, key=lambda file: -len(file.modules.shapes))
    order = dict.fromkeys(path for file in longest_first for path in file.modules.shapes)
    found, left_out = [], {}
    for path in order:
        if not any(path in file.entries for file in files):
            continue
        weights = (base(path) if base else None) or None
        figures, reasons = compare_module(files, path, weights)
        if figures:
            found.append(figures)
        else:
            left_out[path] = reasons
    return Comparison(files, found, left_out)


def compare_module(
    files: Sequence[AdapterFile], path: str, weights: Mapping[str, Tensor] | None
) -> tuple[ModuleFigures | None, dict[int, str]]:
    """The figures, or else the reasons by the number of the file."""
    deltas: list[Mapping[str, Delta]] = []
    traits: list[Traits | None] = []
    reasons: dict[int, str] = {}
    for number, file in enumerate(files):
        deltas.append({})
        traits.append(None)
        if path not in file.entries:
            continue
        try:
            deltas[number], traits[number] = file.deltas(path, weights), traits_of(file, path)
        except (NeedsBase, ValueError) as error:
            reasons[number] = str(error)
    reasons |= other_shapes(deltas)
    if reasons:
        return None, reasons
    products = products_of(deltas)
    base = math.hypot(*(Dense(tensor).norm() for tensor in weights.values())) if weights else None
    for number, of_file in enumerate(traits):
        if not math.isfinite(products.inner(number, number)):
            reasons[number] = "adds what is larger than float32 can hold"
        elif of_file and base is not None and not math.isfinite(base):
            reasons[number] = "is for a weight of the base model that holds NaN or infinity"
    if reasons:
        return None, reasons
    return ModuleFigures(path, products, traits, base), {}


def other_shapes(deltas: Sequence[Mapping[str, Delta]]) -> dict[int, str]:
    """Why some are for another model's module than the first: by the shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    reasons = {}
    for number, of_file in enumerate(deltas):
        for name, delta in of_file.items():
            expected = shapes.setdefault(name, delta.shape)
            if delta.shape != expected:
                found = f"is for a {name} of shape {delta.shape}"
                reasons[number] = f"{found}, where another file has one of {expected}"
    return reasons


def products_of(deltas: Sequence[Mapping[str, Delta]]) -> Products:
    """Of weight and bias together."""
    count = len(deltas)
    products = torch.zeros(count, count, dtype=torch.float64)
    for i, one in enumerate(deltas):
        for name, delta in one.items():
            products[i, i] += delta.norm() ** 2
            for j in range(i):
                if name in deltas[j]:
                    products[i, j] += delta.inner(deltas[j][name])
    lower = products.tril(-1)
    return Products(products + lower.T)
