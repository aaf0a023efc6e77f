"""A base model's weights, one at a time, as numbers: what is stored in 8 bits is made whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from library.anima_backend.modelling.params import DiTParams
from library.anima_runtime.coded_weights import coded, whole
from library.anima_runtime.key_mapping import transformer_entries
from library.anima_runtime.model_loading import DIT, inspect_transformer
from library.anima_runtime.quantised_files import Layout, read_layout
from library.errors import ModelFileError
from library.system.tensor_files import TensorFileError, TensorHeader, read_header, read_tensors


@dataclass(frozen=True)
class BaseFile:
    """A DiT's file by its header. names: parameter -> key"""

    path: Path
    params: DiTParams
    prefix: str
    header: TensorHeader
    layout: Layout
    names: dict[str, str]

    def read(self, key: str) -> Tensor:
        """A tensor as it is stored. Raises ModelFileError."""
        try:
            return read_tensors(self.path, self.header, [key])[key]
        except TensorFileError as error:
            raise ModelFileError(f"{error}.", source=str(self.path)) from error

    def raw(self, key: str) -> bytes:
        """A tensor's bytes. Raises ModelFileError."""
        entry = self.header.entries[key]
        try:
            with open(self.path, "rb") as file:
                file.seek(entry.begin)
                data = file.read(entry.end - entry.begin)
        except OSError as error:
            raise ModelFileError(f"cannot be read any more ({error}).", source=str(self.path)) from error
        if len(data) != entry.end - entry.begin:
            raise ModelFileError("was cut while it was read.", source=str(self.path))
        return data

    def parameter(self, name: str) -> Tensor:
        """What a parameter stands for, by its name in the model; float32."""
        return self.whole(self.names[name])

    def whole(self, key: str) -> Tensor:
        """What a weight stands for, by its key; float32."""
        how = self.layout.weights.get(key)
        keys = [key] if how is None or how.scale is None else [key, how.scale]
        return whole(coded({k: self.read(k) for k in keys}, self.layout)[key], "cpu", torch.float32)

    def of_module(self, path: str) -> dict[str, Tensor]:
        """A module's weight, and its bias if it has one; float32. Nothing for another model's module."""
        names = {name: f"{path}.{name}" for name in ("weight", "bias")}
        return {name: self.parameter(full) for name, full in names.items() if full in self.names}


def open_base(path: str | Path) -> BaseFile:
    """Raises ModelFileError when it is no DiT of Anima's, or is stored in a way that is not read."""
    params, prefix = inspect_transformer(path)
    header = read_header(path)
    found = transformer_entries({key: key for key in header.entries}, prefix)
    layout = read_layout(path, DIT, found.values())
    names = {name: key for name, key in found.items() if key not in layout.more}
    return BaseFile(Path(path), params, prefix, header, layout, names)
