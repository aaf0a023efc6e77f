"""How a base model's weights are stored anew: in floats, or in 8 bits with a scale, as ComfyUI reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from library.anima_backend.modelling.dit import Anima
from library.anima_runtime.coded_weights import Coded, regular_hadamard
from library.anima_runtime.quantised_files import (
    FORMATS,
    MARK,
    METADATA,
    OLD_MARK,
    StoredWeight,
)
from library.anima_workshop.base import BaseFile
from library.memory.rotation import SMALLEST_SCALE
from library.system.tensor_files import READABLE
from library.system.tensor_writing import DTYPES, Planned
from networks.kinds.stored import is_finite

FP8 = "fp8"
FP8_FORMAT = "float8_e4m3fn"
PRECISIONS = {
    "float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, FP8: None
}  # fmt: skip
"""What all weights may be stored in. fp8: Linears of the blocks; the rest stays as it is."""

STEPS = {"float8_e4m3fn": (2**-4, 2**-10), "float8_e5m2": (2**-3, 2**-17), "int8_tensorwise": (0.0, 0.5)}
"""By format: how far rounding moves a code at most, relative to itself and in units of the scale."""


@dataclass(frozen=True)
class Form:
    """How one weight is stored. how: None in floats; dtype: of the numbers; scale: that of its scale"""

    how: StoredWeight | None
    dtype: torch.dtype
    scale: Planned | None = None

    def encoded(self, weight: Tensor, key: str) -> dict[str, Tensor]:
        """The tensors of a float32 weight, by key. Raises ValueError where it does not fit."""
        if self.how is None:
            stored = weight.to(self.dtype)
            if not is_finite(stored):
                raise ValueError(f"would get NaN or infinity in {key}")
            return {key: stored}
        largest = float(
            torch.finfo(self.dtype).max if self.dtype.is_floating_point else torch.iinfo(self.dtype).max
        )
        turned, found = rotated(weight, self.how), dict[str, Tensor]()
        if self.how.scale is None:
            if turned.abs().max() > largest:
                raise ValueError(f"has numbers above {largest:g}, which {self.how.format} ends at")
        else:
            assert self.scale is not None
            by_row = torch.Size(self.scale.shape).numel() > 1
            peak = turned.abs().amax(1, keepdim=True) if by_row else turned.abs().max()
            scale = (peak / largest).clamp_min(SMALLEST_SCALE)
            scale = scale.to(READABLE[self.scale.dtype])
            found[self.how.scale] = scale.reshape(self.scale.shape)
            turned = turned / scale.float()
        codes = turned.clamp(-largest, largest)
        found[key] = (codes if self.dtype.is_floating_point else codes.round()).to(self.dtype)
        return found

    def decoded(self, tensors: Mapping[str, Tensor], key: str) -> Tensor:
        """What they stand for, float32."""
        if self.how is None:
            return tensors[key].float()
        return Coded(tensors[key], self.scale_in(tensors), self.how).dense("cpu", torch.float32)

    def scale_in(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """One number, or (out, 1)."""
        if self.how is None or self.how.scale is None:
            return None
        scale = tensors[self.how.scale].float()
        return scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(())

    def is_rounding(self, now: Tensor, weight: Tensor, scale: Tensor | None) -> bool:
        """Whether a decoded weight is this float32 one, up to the rounding of the form."""
        off = now - weight
        if self.how is None:
            kind = torch.finfo(self.dtype)
            near = weight.abs() * (kind.eps / 2) + kind.smallest_normal * kind.eps
        else:
            relative, step = STEPS[self.how.format]
            off, weight = rotated(off, self.how), rotated(weight, self.how)
            near = weight.abs() * relative + step * (1.0 if scale is None else scale)
        return bool((off.abs() <= near * 1.001 + 1e-6 * weight.abs().max()).all())


def rotated(weight: Tensor, how: StoredWeight) -> Tensor:
    """Its groups of columns turned, as the file has them; turned twice it is itself."""
    if not how.group:
        return weight
    return (weight.unflatten(1, (-1, how.group)) @ regular_hadamard(how.group)).flatten(1)


@dataclass(frozen=True)
class Storing:
    """How a base model's file is written anew.

    forms:    of each weight, by key
    new:      those whose form is another one
    plan:     of every tensor of the new file, by key
    marks:    tensors that say how a weight is stored
    metadata: less what is not so any more
    """

    forms: Mapping[str, Form]
    new: frozenset[str]
    plan: Mapping[str, Planned]
    marks: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def form_in(base: BaseFile, key: str) -> Form:
    how, entries = base.layout.weights.get(key), base.header.entries
    scale = None
    if how is not None and how.scale is not None:
        entry = entries[how.scale]
        scale = Planned(entry.dtype, entry.shape)
    return Form(how, READABLE[entries[key].dtype], scale)


def storing(base: BaseFile, precision: str | None) -> Storing:
    """precision: None leaves each weight as it is stored"""
    linears = set()
    if precision == FP8:
        with torch.device("meta"):
            names = Anima(base.params).linears_to_store(llm_adapter=False)
        linears = {base.names[f"{name}.weight"] for name in names}
    forms = {key: wanted(base, key, precision, linears) for key in base.names.values()}
    new = {key for key, form in forms.items() if form != form_in(base, key)}
    gone = {key for key in base.layout.more if belongs_to(key, new)}
    plan = {
        key: Planned(entry.dtype, entry.shape)
        for key, entry in base.header.entries.items()
        if key not in gone
    }
    marks = {}
    for key in new:
        form = forms[key]
        plan[key] = Planned(DTYPES[form.dtype], base.header.entries[key].shape)
        if form.how is not None and form.how.scale and form.scale:
            plan[form.how.scale] = form.scale
            mark = mark_of(key)
            marks[mark] = as_bytes({"format": form.how.format})
            plan[mark] = Planned.of(marks[mark])
    return Storing(forms, frozenset(new), plan, marks, metadata_without(base, new))


def wanted(base: BaseFile, key: str, precision: str | None, linears: set[str]) -> Form:
    here = form_in(base, key)
    if precision is None:
        return here
    if precision != FP8:
        return Form(None, PRECISIONS[precision] or here.dtype)
    is_fp8 = here.how is not None and here.how.format == FP8_FORMAT and here.how.scale is not None
    if is_fp8 or (here.how is None and key not in linears):
        return here
    layer = key.removesuffix(".weight")
    how = StoredWeight(FP8_FORMAT, f"{layer}.weight_scale")
    return Form(how, READABLE[FORMATS[FP8_FORMAT]], Planned("F32", ()))


def belongs_to(key: str, weights: set[str]) -> bool:
    """Whether a scale or mark is of one of these weights, or is the mark of a whole file that has one."""
    layer, _, ending = key.rpartition(".")
    return bool(weights) if ending == OLD_MARK else f"{layer}.weight" in weights


def mark_of(key: str) -> str:
    return f"{key.removesuffix('.weight')}.{MARK}"


def as_bytes(mark: Mapping[str, object]) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(mark).encode()), dtype=torch.uint8)


def metadata_without(base: BaseFile, weights: set[str]) -> dict[str, str]:
    """The base's, with no more said of how these weights are stored."""
    metadata = dict(base.header.metadata)
    if METADATA in metadata and weights:
        said = json.loads(metadata[METADATA])
        layers = {key.removesuffix(".weight") for key in weights}
        names = layers | {layer.removeprefix(base.prefix) for layer in layers}
        said["layers"] = {n: m for n, m in said.get("layers", {}).items() if n not in names}
        metadata[METADATA] = json.dumps(said)
        if not said["layers"]:
            del metadata[METADATA]
    return metadata
