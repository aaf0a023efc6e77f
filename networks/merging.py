"""Adapter files added to a model's own weights, in every form that ComfyUI applies.

No adapters are made, so a file's kind need not be the kind that is trained, nor one kind at all.
"""

from __future__ import annotations

import logging

import torch
from torch import nn

from library.errors import AdapterFileError, Problem
from networks.adapted import is_adaptable_norm
from networks.codec import ALPHA, DecodedFile, decode_tensors, read_tensors
from networks.file_factors import is_finite, weight_changes

logger = logging.getLogger(__name__)


@torch.no_grad()
def merge_file(model: nn.Module, source: str, strength: float) -> int:
    """Add `strength` times a file's changes to the weights; returns how many modules changed.

    Computed in float32 where the weights are, and stored in their dtype, in new storage: a mapped
    file stays as it is. On the meta device this is a check of the file. Raises AdapterFileError
    naming all that does not fit; the model may then be changed in part.
    """
    modules = {
        path: module
        for path, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
    }
    norms = [path for path, module in modules.items() if is_adaptable_norm(module)]
    file = decode_tensors(read_tensors(source), modules, source, norms=norms, merging=True)
    problems = []
    for path in file.modules:
        try:
            merge_module(modules[path], path, file, strength)
        except ValueError as error:
            problems.append(Problem(f"{error}.", path))
    if problems:
        raise AdapterFileError(problems, source=source)
    return len(file.modules)


def merge_module(module: nn.Module, path: str, file: DecodedFile, strength: float) -> None:
    """Raises ValueError when the file's factors do not fit the module, or spoil its weights."""
    whole = frozenset(factor for place, factor in file.whole if place == path)
    factors, bias = file.modules[path], getattr(module, "bias", None)
    if broken := [name for name, t in factors.items() if name != ALPHA and not is_finite(t)]:
        raise ValueError(f"holds NaN or infinity in {', '.join(broken)}")
    changes = weight_changes(factors, module.weight, bias, whole)
    for name, change in changes.items():
        parameter = getattr(module, name)
        merged = (parameter.float() + strength * change).to(parameter.dtype)
        if not parameter.is_meta and not is_finite(merged):
            raise ValueError(f"would get NaN or infinity in its {name}")
        parameter.data = merged
