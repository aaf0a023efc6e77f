"""Adapter files over a model's weights for the time being: for drawing, at strengths that change.

Merged and not run beside the weights, as ComfyUI does it: files of every kind go one over the other, a
step costs what it costs without them, and the weights are rounded as they are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from library.errors import AdapterFileError, Problem
from networks.codec import DecodedFile
from networks.kinds.kind import Kinds
from networks.kinds.stored import is_finite
from networks.kinds.table import KINDS
from networks.merging import changes_of, merge_module, read_for, weighted_modules

Strengths = Sequence[tuple[str, float]]
"""Adapter files and how strongly each is applied, in this order."""


class Overlay:
    """What lies over the weights of a model, nothing at first. The base's bits come back.

    What a changed weight was is kept in the host's memory.
    """

    def __init__(self, model: nn.Module, kinds: Kinds = KINDS) -> None:
        self.kinds = kinds
        self.modules = weighted_modules(model)
        self.base: dict[tuple[str, str], Tensor] = {}
        self.files: dict[str, DecodedFile] = {}
        self.laid: tuple[tuple[str, float], ...] | None = ()  # None: changed in part

    @torch.no_grad()
    def lay(self, strengths: Strengths) -> bool:
        """Let these files lie over the base and no others; returns whether any weight changed.

        Summed in float32 and rounded once. Raises AdapterFileError naming all that does not fit; the
        model is then changed in part until the next call.
        """
        acting = tuple((file, strength) for file, strength in strengths if strength)
        if acting == self.laid:
            return False
        self.laid = None
        names = dict.fromkeys(file for file, _ in acting)
        self.files = {
            name: self.files.get(name) or read_for(self.modules, name, self.kinds) for name in names
        }
        changed = [path for path, _ in self.base]
        for path in dict.fromkeys([*changed, *(p for f in self.files.values() for p in f.modules)]):
            self.lay_on_module(path, acting)
        self.laid = acting
        return True

    def lay_on_module(self, path: str, acting: Strengths) -> None:
        module, source = self.modules[path], ""
        originals = self.originals(path)
        try:
            for name, original in originals.items():
                parameter = module.get_parameter(name)
                parameter.data = original.to(parameter.device)
            if not any(path in self.files[file].modules for file, _ in acting):
                return
            for name in originals:
                parameter = module.get_parameter(name)
                parameter.data = parameter.data.float()
            for source, strength in acting:
                if path in self.files[source].modules:
                    changes = changes_of(self.files[source], path, module, self.kinds)
                    merge_module(module, changes, strength)
            settle(module, originals)
        except ValueError as error:
            raise AdapterFileError(Problem(f"{error}.", path), source=source) from error

    def originals(self, path: str) -> dict[str, Tensor]:
        """A module's weight, and its bias if it has one, as they were."""
        module = self.modules[path]
        for name in ("weight", "bias"):
            if (path, name) not in self.base and isinstance(getattr(module, name, None), Tensor):
                self.base[path, name] = module.get_parameter(name).data.cpu()
        return {
            name: self.base[path, name] for name in ("weight", "bias") if (path, name) in self.base
        }


def settle(module: nn.Module, originals: Mapping[str, Tensor]) -> None:
    """Round to the base's dtypes. Raises ValueError where a weight is too large for it."""
    for name, original in originals.items():
        parameter = module.get_parameter(name)
        parameter.data = parameter.data.to(original.dtype)
        if not is_finite(parameter.data):
            raise ValueError(f"would get infinity in its {name}")
