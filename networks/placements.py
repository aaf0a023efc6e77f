"""Adapters with their places in a model: made for chosen targets or to fit a file, filled from one.

A file is checked as a whole before anything is filled: every key that does not belong and every
shape that does not fit is named in one error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from library.errors import AdapterFileError, Problem
from networks.adapters import (
    NORM_PARAMETERS,
    Adapter,
    Dropout,
    LinearAdapter,
    LoKr,
    LoRA,
    NormDelta,
)
from networks.codec import ALPHA, DecodedFile
from networks.file_factors import is_finite, kind_of, lokr_shape_of, lora_rank, stored_alpha
from networks.targets import Selection, Target

logger = logging.getLogger(__name__)

NAMED_AT_MOST = 5


@dataclass
class Placement:
    """One adapter and the module it adapts.

    base:   the module as it was before adoption; its parameters stay the model's
    group:  names its optimizer group beyond the network's own, e.g. "llm_adapter"; "" for none
    lr:     None is the network's own learning rate, 0 freezes the adapter
    loaded: its factors came from a file
    """

    path: str
    base: nn.Module
    adapter: Adapter
    group: str = ""
    lr: float | None = None
    loaded: bool = False

    @property
    def frozen(self) -> bool:
        return self.lr == 0

    @property
    def is_norm(self) -> bool:
        return isinstance(self.adapter, NormDelta)

    def parameter_names(self) -> list[str]:
        """The model's names of the factors, once attached."""
        return [f"{self.path}.adapter.{name}" for name in self.adapter.factors()]


@dataclass(frozen=True)
class GroupRates:
    """Learning rates of a family's components: which one a path belongs to, and its rate if any."""

    component_of: Callable[[str], str]
    rates: Mapping[str, float]

    def of(self, target: Target) -> tuple[str, float | None]:
        """(group, lr) of a target; a network_reg_lrs pattern wins over its component."""
        if target.lr is not None:
            return f"reg_lr {target.lr:g}", target.lr
        component = self.component_of(target.path)
        if component in self.rates:
            return component, self.rates[component]
        return "", None


def place_on_targets(
    selection: Selection, make_adapter: Callable[[Target], LinearAdapter], rates: GroupRates
) -> list[Placement]:
    """A fresh adapter for every chosen Linear and norm."""
    made = [(target, make_adapter(target)) for target in selection.linears]
    made += [(target, new_norm_delta(target.module)) for target in selection.norms]
    return [Placement(t.path, t.module, adapter, *rates.of(t)) for t, adapter in made]


def adapters_as_file(
    file: DecodedFile, modules: Mapping[str, nn.Module], dropout: Dropout, source: str
) -> dict[str, Adapter]:
    """An adapter of the file's kind and rank for every module it names; not filled yet."""
    adapters, problems = {}, []
    for path, factors in file.modules.items():
        try:
            adapters[path] = adapter_as_file(modules[path], factors, dropout)
        except ValueError as error:
            problems.append(Problem(f"{error}.", path))
    if problems:
        raise AdapterFileError(problems, source=source)
    return adapters


def adapter_as_file(base: nn.Module, factors: Mapping[str, Tensor], dropout: Dropout) -> Adapter:
    """An adapter with the sizes of `factors`. Raises ValueError when they fit together no way."""
    kind, is_linear = kind_of(factors), isinstance(base, nn.Linear)
    if kind == "norm" and not is_linear:
        return new_norm_delta(base)
    if is_linear == (kind == "norm"):
        expected = "Linear" if is_linear else "norm"
        raise ValueError(f"has the factors of a {kind}, but is a {expected}")
    if kind == "LoRA":
        rank = lora_rank(factors, base.weight.shape)
        alpha = stored_alpha(factors, rank)
        return LoRA(base.in_features, base.out_features, rank, alpha, dropout)
    shape = lokr_shape_of(factors, base.weight.shape)
    return LoKr(shape, stored_alpha(factors, shape.rank), dropout)


def new_norm_delta(base: nn.Module) -> NormDelta:
    return NormDelta(base.weight.numel(), bias=getattr(base, "bias", None) is not None)


def fill(placements: Sequence[Placement], file: DecodedFile, source: str) -> None:
    """Copy a file's factors and alphas into the adapters; AdapterFileError before any copy."""
    by_path = {placement.path: placement for placement in placements}
    problems = []
    for path, factors in file.modules.items():
        problems += [
            Problem(message, file.keys[path, factor])
            for factor, message in misfits(by_path.get(path), factors)
        ]
    if any("has shape" in p.message and not p.where.endswith("_norm") for p in problems):
        problems.append(Problem("To train at the file's own ranks, set --dim_from_weights."))
    if problems:
        raise AdapterFileError(problems, source=source)
    with torch.no_grad():
        for path, factors in file.modules.items():
            fill_one(by_path[path], factors, {f for p, f in file.whole if p == path})
    report_fresh([p for p in placements if p.path not in file.modules], source)


def misfits(placement: Placement | None, factors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """(factor, what is wrong) for each factor that the placement cannot take."""
    if placement is None:
        advice = "this run does not adapt this module (see target_modules, train_norm)."
        return [(factor, advice) for factor in factors]
    expected = {name: tuple(p.shape) for name, p in placement.adapter.factors().items()}
    found = {name: tuple(tensor.shape) for name, tensor in factors.items() if name != ALPHA}
    wrong = []
    for name, shape in found.items():
        if name not in expected:
            wrong.append((name, f"unexpected; this run has {describe_shapes(expected)} here."))
        elif shape != expected[name]:
            wrong.append((name, f"has shape {shape}, expected {expected[name]}."))
    missing = set(expected) - set(found)
    if missing and not wrong:
        wrong.append((next(iter(factors)), f"comes without {', '.join(sorted(missing))}."))
    if not wrong and ALPHA in factors:
        try:
            stored_alpha(factors, getattr(placement.adapter, "rank", None))
        except ValueError as error:
            wrong.append((ALPHA, f"{error}."))
    broken = [name for name in found if name in expected and not is_finite(factors[name])]
    return wrong + [(name, "holds NaN or infinity.") for name in broken]


def describe_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


def fill_one(placement: Placement, factors: Mapping[str, Tensor], whole: set[str]) -> None:
    adapter, own = placement.adapter, placement.adapter.factors()
    for name, tensor in factors.items():
        if name == ALPHA:
            continue
        value = tensor.to(own[name].device, torch.float32)
        if name in whole:  # the module's own weight was stored; the difference is what we train
            base = getattr(placement.base, NORM_PARAMETERS[name]).detach()
            value = value - base.to(value.device, torch.float32)
        own[name].copy_(value)
    if isinstance(adapter, LinearAdapter) and adapter.rank is not None:
        adapter.alpha = stored_alpha(factors, adapter.rank)
    placement.loaded = True


def report_fresh(fresh: Sequence[Placement], source: str) -> None:
    """Say once which targets the file did not hold."""
    if not fresh:
        return
    norms = sum(placement.is_norm for placement in fresh)
    names = ", ".join(name_first(placement.path for placement in fresh))
    logger.info(
        "%s: %d Linears and %d norms are not in the file and start fresh: %s",
        source, len(fresh) - norms, norms, names,
    )  # fmt: skip


def name_first(names: Iterable[str]) -> list[str]:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = len(listed) - NAMED_AT_MOST
    return listed[:NAMED_AT_MOST] + ([f"and {more} more"] if more > 0 else [])
