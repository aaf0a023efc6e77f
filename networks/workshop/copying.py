"""Modules of an adapter file put into a new one under the same names: as they are, or with new factors."""

from __future__ import annotations

import torch
from torch import Tensor

from library.errors import AdapterFileError, Problem
from library.system.tensor_files import READABLE
from networks.kinds.stored import ALPHA, Factors
from networks.workshop.adapter_file import AdapterFile
from networks.workshop.spool import Spool


def put_module(
    out: Spool, file: AdapterFile, path: str, factors: Factors, dtype: torch.dtype | None = None
) -> None:
    """Factors by the file's own keys. dtype: None is that of the factors in the file; alpha keeps its own."""
    stored = {name: READABLE[entry.dtype] for name, entry in file.stored(path).items()}
    usual = next((found for name, found in stored.items() if name != ALPHA), torch.float32)
    for name, tensor in factors.items():
        out.put(file.key_for(path, name), in_dtype(tensor, name, dtype or stored.get(name, usual)))


def in_dtype(tensor: Tensor, factor: str, dtype: torch.dtype) -> Tensor:
    """A factor as it is written: alphas and whole numbers as they are."""
    return tensor if factor == ALPHA or not tensor.is_floating_point() else tensor.to(dtype)


def put_left(out: Spool, file: AdapterFile) -> None:
    """What belongs to no module, byte for byte, after all else. Raises AdapterFileError for what cannot
    be read, or has the name of something new."""
    problems = []
    for key in file.left:
        dtype = file.header.entries[key].dtype
        if dtype not in READABLE:
            problems.append(Problem(f"is stored as {dtype}, which is not read.", key))
        elif key in out.plan:
            problems.append(Problem(f"is in the way of a new tensor; {file.left[key]}.", key))
    if problems:
        raise AdapterFileError(problems, source=str(file.path))
    for key in file.left:
        out.put(key, *file.read(key))
