"""Adapter files added to a model's own weights, in every form that ComfyUI applies.

No adapters are made, so a file's kind need not be the kind that is trained, nor one kind at all.
Each kind says what its factors add to a weight.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from library.errors import AdapterFileError, Problem
from networks.codec import DecodedFile, KeyDecoder, decode_tensors, read_adapter
from networks.kinds.dora import MAGNITUDES, with_magnitude
from networks.kinds.kind import Kinds
from networks.kinds.norm import B_NORM, is_adaptable_norm
from networks.kinds.stored import (
    ALPHA,
    DIFF_B,
    Factors,
    check_shape,
    difference,
    is_finite,
)
from networks.kinds.table import KINDS


@torch.no_grad()
def merge_file(model: nn.Module, source: str, strength: float, kinds: Kinds = KINDS) -> int:
    """Add `strength` times a file's changes to the weights; returns how many modules changed.

    Computed in float32 where the weights are, and stored in their dtype, in new storage: a mapped
    file stays as it is. On the meta device this is a check of the file. Raises AdapterFileError
    naming all that does not fit; the model may then be changed in part.
    """
    modules = weighted_modules(model)
    file = read_for(modules, source, kinds)
    problems = []
    for path in file.modules:
        try:
            merge_module(modules[path], changes_of(file, path, modules[path], kinds), strength)
        except ValueError as error:
            problems.append(Problem(f"{error}.", path))
    if problems:
        raise AdapterFileError(problems, source=source)
    return len(file.modules)


def weighted_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that files may change, by path: all that have a weight."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
    }


def read_for(modules: Mapping[str, nn.Module], source: str, kinds: Kinds = KINDS) -> DecodedFile:
    """A file's factors for these modules. Raises AdapterFileError naming what is for none of them."""
    norms = [path for path, module in modules.items() if is_adaptable_norm(module)]
    decoder = KeyDecoder(modules, norms=norms, merging=True, kinds=kinds)
    return decode_tensors(read_adapter(source, kinds), decoder, source)


def merge_module(module: nn.Module, changes: Mapping[str, Tensor], strength: float) -> None:
    """Raises ValueError when the changes would spoil a parameter."""
    for name, change in changes.items():
        parameter = module.get_parameter(name)
        merged = (parameter.float() + strength * change).to(parameter.dtype)
        if not parameter.is_meta and not is_finite(merged):
            raise ValueError(f"would get NaN or infinity in its {name}")
        parameter.data = merged


def changes_of(file: DecodedFile, path: str, module: nn.Module, kinds: Kinds) -> dict[str, Tensor]:
    """What a file adds to a module's weight and bias at strength 1, in float32 where they are.

    Raises ValueError when the factors do not fit the module.
    """
    factors = dict(file.modules[path])
    whole = {factor for place, factor in file.whole if place == path}
    if broken := [name for name, t in factors.items() if name != ALPHA and not is_finite(t)]:
        raise ValueError(f"holds NaN or infinity in {', '.join(broken)}")
    weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
    biases = {name: factors.pop(name) for name in (B_NORM, DIFF_B) if name in factors}
    changes = {}
    if factors or not biases:
        changes["weight"] = weight_change(factors, weight, whole, kinds)
    for name, stored in biases.items():
        if bias is None:
            raise ValueError("has no bias, but the file has one for it")
        changes["bias"] = difference(stored, bias, name in whole)
    return changes


def weight_change(factors: Factors, weight: Tensor, whole: Collection[str], kinds: Kinds) -> Tensor:
    """whole: the factors that hold the weight itself"""
    kind = kinds.kind_of(factors)
    beside = {ALPHA, *MAGNITUDES} if kind.of_matrices else {ALPHA}
    if extra := factors.keys() - kind.factors.keys() - beside:
        raise ValueError(f"has {', '.join(sorted(extra))} beside the factors of a {kind.name}")
    if kind.of_matrices and weight.dim() != 2:
        raise ValueError(f"has the factors of a {kind.name}, but is not a matrix")
    parts = {n: difference(t, weight, True) if n in whole else t for n, t in factors.items()}
    change = kind.change(parts, weight)
    check_shape(change.shape, weight.shape)
    return with_magnitude(change, weight, factors)
