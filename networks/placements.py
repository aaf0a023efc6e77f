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
from networks.codec import TEXT_ENCODERS, DecodedFile
from networks.kinds.adapter import Adapter, Dropout, merged_parameters
from networks.kinds.decomposed import decomposed_as_file
from networks.kinds.kind import Kinds
from networks.kinds.linear import LinearAdapter
from networks.kinds.norm import KIND as NORM
from networks.kinds.norm import NormDelta
from networks.kinds.stored import ALPHA, DORA_SCALE, is_finite, stored_alpha
from networks.targets import Selection, Target

logger = logging.getLogger(__name__)

NAMED_AT_MOST = 5
NO_MAGNITUDES = (
    "is DoRA's magnitude, and this run trains none. Set dora_wd=true in network_args, or "
    "--dim_from_weights; else --base_weights can merge it."
)


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

    @property
    def is_of_text_encoder(self) -> bool:
        return TEXT_ENCODERS.match(self.path) is not None

    @property
    def rate_name(self) -> str:
        """Of its optimizer group, in the logs."""
        model = "text_encoder" if self.is_of_text_encoder else "unet"
        return model if self.group == model else f"{model} {self.group}".strip()

    def parameter_names(self) -> list[str]:
        """The model's names of the factors, once attached."""
        return [f"{self.path}.adapter.{name}" for name in self.adapter.parameter_names()]

    def kept(self) -> dict[str, Tensor]:
        """All that a state holds, by the model's names: the factors, and what stands fixed beside them."""
        factors = zip(self.parameter_names(), self.adapter.factors().values())
        fixed = self.adapter.named_buffers()
        return dict(factors) | {f"{self.path}.adapter.{name}": tensor for name, tensor in fixed}


def linear_adapters(placements: Iterable[Placement]) -> list[LinearAdapter]:
    return [p.adapter for p in placements if isinstance(p.adapter, LinearAdapter)]


@dataclass(frozen=True)
class GroupRates:
    """Learning rates of a family's components: which one a path belongs to, and its rate if any."""

    component_of: Callable[[str], str]
    rates: Mapping[str, float]

    def of(self, target: Target[nn.Module]) -> tuple[str, float | None]:
        """(group, lr) of a target; a network_reg_lrs pattern wins over its component."""
        if target.lr is not None:
            return f"reg_lr {target.lr:g}", target.lr
        component = self.component_of(target.path)
        if component in self.rates:
            return component, self.rates[component]
        return "", None


def place_on_targets(
    selection: Selection, make: Callable[[Target[nn.Linear]], LinearAdapter], rates: GroupRates
) -> list[Placement]:
    """A fresh adapter for every chosen Linear and norm."""
    linears = [Placement(t.path, t.module, make(t), *rates.of(t)) for t in selection.linears]
    norms = [
        Placement(t.path, t.module, NormDelta.of(t.module), *rates.of(t)) for t in selection.norms
    ]
    return linears + norms


def adapters_as_file(
    file: DecodedFile, linears: Mapping[str, nn.Linear], dropout: Dropout, kinds: Kinds
) -> dict[str, LinearAdapter]:
    """An adapter of the file's kind and rank for every Linear it names; not filled yet.

    Raises AdapterFileError where the factors of a module do not fit it; the others are norms.
    """
    adapters, problems = {}, []
    for path, factors in file.modules.items():
        try:
            kind, linear = kinds.kind_of(factors), linears.get(path)
            if (kind is NORM) != (linear is None):
                module = "norm" if linear is None else "Linear"
                raise ValueError(f"has the factors of a {kind.name}, but is a {module}")
            if linear is not None and kind.training is not None:
                plain = kind.training.as_file(linear, factors, dropout)
                adapters[path] = decomposed_as_file(plain, linear, factors)
        except ValueError as error:
            problems.append(Problem(f"{error}.", path))
    if problems:
        raise AdapterFileError(problems, source=file.source)
    return adapters


def fill_from_file(placements: Sequence[Placement], file: DecodedFile) -> None:
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
        raise AdapterFileError(problems, source=file.source)
    for path, factors in file.modules.items():
        placement, whole = by_path[path], {f for p, f in file.whole if p == path}
        placement.adapter.fill(factors, placement.base, whole)
        placement.loaded = True
    report_fresh([p for p in placements if p.path not in file.modules], file.source)


def misfits(placement: Placement | None, factors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """(factor, what is wrong) for each factor that the placement cannot take."""
    if placement is None:
        advice = "this run does not adapt this module (see target_modules, train_norm)."
        return [(factor, advice) for factor in factors]
    expected = {name: tuple(t.shape) for name, t in placement.adapter.stored().items()}
    found = {name: tuple(tensor.shape) for name, tensor in factors.items() if name != ALPHA}
    wrong = []
    for name, shape in found.items():
        if name == DORA_SCALE and name not in expected:
            wrong.append((name, NO_MAGNITUDES))
        elif name not in expected:
            wrong.append((name, f"unexpected; this run has {describe_shapes(expected)} here."))
        elif shape != expected[name]:
            wrong.append((name, f"has shape {shape}, expected {expected[name]}."))
    missing = set(expected) - set(found)
    if missing and not wrong:
        wrong.append((next(iter(factors)), f"comes without {', '.join(sorted(missing))}."))
    if not wrong and ALPHA in factors:
        try:
            stored_alpha(factors, placement.adapter.rank)
        except ValueError as error:
            wrong.append((ALPHA, f"{error}."))
    broken = [name for name in found if name in expected and not is_finite(factors[name])]
    return wrong + [(name, "holds NaN or infinity.") for name in broken]


def describe_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


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


@torch.no_grad()
def merge(
    placements: Iterable[Placement],
    model: nn.Module,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> None:
    """Add adapters to the weights of the modules that have their places in `model`, for good.

    Computed in float32 on `device`, stored in `dtype` or the weights' own, in new storage. Raises
    AdapterFileError where a weight would not be finite, before the first changes.
    """
    places = [(placement, model.get_submodule(placement.path)) for placement in placements]
    problems = []
    for placement, base in places:
        for name, merged in merged_parameters(base, placement.adapter, device).items():
            if not torch.isfinite(merged.to(dtype or getattr(base, name).dtype)).all():
                where = f"{placement.path}.{name}"
                problems.append(Problem("would become NaN or infinity.", where))
    if problems:
        raise AdapterFileError(problems, source="weights to merge, nothing was changed")
    for placement, base in places:
        for name, merged in merged_parameters(base, placement.adapter, device).items():
            parameter = getattr(base, name)
            parameter.data = merged.to(parameter.device, dtype or parameter.dtype)
