"""An adapter file by its header: what it has for which module, and what fits nowhere; factors on demand.

Nothing is refused for a key alone: what belongs nowhere is kept with the reason. Only a file that cannot
be read, or that holds no adapter, is an error.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from library.errors import AdapterFileError
from library.system.tensor_files import (
    NUMBERS,
    TensorEntry,
    TensorFileError,
    TensorHeader,
    read_tensors,
)
from networks.codec import GIVE_AN_ADAPTER, KeyDecoder, read_adapter_header, split_factor
from networks.kinds.dora import MAGNITUDES, with_magnitude
from networks.kinds.full import SET_WEIGHT
from networks.kinds.kind import Kinds
from networks.kinds.norm import B_NORM
from networks.kinds.oft import BLOCKS
from networks.kinds.stored import (
    ALPHA,
    DIFF_B,
    MAGNITUDE,
    Factors,
    difference,
    is_finite,
)
from networks.kinds.table import KINDS
from networks.workshop.delta_of import delta_of
from networks.workshop.deltas import Delta, Dense
from networks.workshop.modules import Modules

logger = logging.getLogger(__name__)

BIASES = (B_NORM, DIFF_B)


class NeedsBase(ValueError):
    """What the factors add depends on the weight they are added to."""


@dataclass(frozen=True)
class ModuleEntry:
    """What a file has for one module. keys: factor -> key in the file; whole: are no differences."""

    path: str
    keys: Mapping[str, str]
    whole: frozenset[str]

    @property
    def needs_base(self) -> bool:
        return self.needs(self.keys)

    def needs(self, factors: Iterable[str]) -> bool:
        """Whether what these factors add depends on the base's weight."""
        return not self.whole.union((*MAGNITUDES, SET_WEIGHT, BLOCKS)).isdisjoint(factors)


@dataclass(frozen=True)
class AdapterFile:
    """path: of the file
    entries: by module path, in the order of the model
    left:    keys that belong nowhere -> why
    """

    path: Path
    header: TensorHeader
    modules: Modules
    entries: Mapping[str, ModuleEntry]
    left: Mapping[str, str]
    kinds: Kinds = KINDS

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.header.metadata

    @cached_property
    def prefixes(self) -> dict[str, int]:
        """What stands before the modules' names in the keys -> how many keys."""
        found: dict[str, int] = {}
        for entry in self.entries.values():
            for key in entry.keys.values():
                prefix = prefix_of(key, entry.path)
                found[prefix] = found.get(prefix, 0) + 1
        return found

    def stored(self, path: str) -> dict[str, TensorEntry]:
        """A module's factors as the header describes them."""
        return {f: self.header.entries[key] for f, key in self.entries[path].keys.items()}

    def kind_of(self, path: str, only: Collection[str] | None = None) -> str:
        """The name of a module's kind, e.g. LoRA, with DoRA beside it; raises ValueError for none.

        only: as if it had no other factors
        """
        names = self.entries[path].keys if only is None else only
        factors = [name for name in names if name not in (ALPHA, *BIASES)]
        if not factors:
            return "norm" if path in self.modules.norms else "difference"
        found = self.kinds.kind_of(dict.fromkeys(factors, torch.empty(0)))
        return f"{found.name} with DoRA" if {*MAGNITUDES} & {*factors} else found.name

    def key_for(self, path: str, factor: str) -> str:
        """The key of a module's factor, spelled as the file spells the module."""
        keys = self.entries[path].keys
        if factor in keys:
            return keys[factor]
        split = split_factor(next(iter(keys.values())), self.kinds)
        assert split, "its keys were read"
        return f"{split[0]}.{self.kinds.written[factor]}"

    def factors(self, path: str) -> dict[str, Tensor]:
        """A module's factors, read now, as they are stored. Raises AdapterFileError."""
        keys = self.entries[path].keys
        return dict(zip(keys, self.read(*keys.values())))

    def read(self, *keys: str) -> list[Tensor]:
        """Tensors by their keys. Raises AdapterFileError."""
        try:
            found = read_tensors(self.path, self.header, keys)
        except TensorFileError as error:
            raise AdapterFileError(f"{error}.", source=str(self.path)) from error
        return [found[key] for key in keys]

    def deltas(
        self, path: str, base: Mapping[str, Tensor] | None = None, factors: Factors | None = None
    ) -> dict[str, Delta]:
        """What the file adds to a module's weight and bias at strength 1.

        base: the module's own weight and bias, which some kinds need: NeedsBase without; factors: to be
        taken for those that the file has. Raises ValueError, as the rest of a sentence about the
        module, for factors that do not fit.
        """
        entry = self.entries[path]
        factors = dict(self.factors(path) if factors is None else factors)
        broken = [name for name, t in factors.items() if name != ALPHA and not is_finite(t)]
        if broken:
            raise ValueError(f"holds NaN or infinity in {', '.join(broken)}")
        if base is None and entry.needs(factors):
            raise NeedsBase("adds what depends on the base model's weight")
        found: dict[str, Delta] = {}
        for name in BIASES:
            if name in factors:
                bias = factors.pop(name)
                if base is not None and "bias" not in base:
                    raise ValueError("has a bias, which the base model's module has not")
                if name in entry.whole:
                    assert base is not None, "needs_base"
                    bias = difference(bias, base["bias"], is_whole=True)
                found["bias"] = Dense(bias.float())
        if factors or not found:
            weight = base["weight"] if base else None
            found["weight"] = self.weight_delta(factors, weight, entry.whole)
        return found

    def weight_delta(self, factors: Factors, weight: Tensor | None, whole: frozenset[str]) -> Delta:
        if weight is not None:
            factors = {
                name: difference(tensor, weight, True) if name in whole else tensor
                for name, tensor in factors.items()
            }
        plain = {name: tensor for name, tensor in factors.items() if name not in MAGNITUDES}
        delta = delta_of(plain, weight, self.kinds)
        if plain.keys() == factors.keys():
            return delta
        assert weight is not None, "needs_base"
        return Dense(with_magnitude(delta.dense(), weight, factors))

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)


def open_adapter(path: str | Path, modules: Modules, kinds: Kinds = KINDS) -> AdapterFile:
    """A file by its header. Raises AdapterFileError when it holds no adapter or cannot be read."""
    header = adapter_header(path, kinds)
    decoder = KeyDecoder(modules.shapes, norms=modules.norms, tools=True, kinds=kinds)
    found: dict[str, dict[str, str]] = {}
    whole: dict[str, set[str]] = {}
    left = {}
    for key, entry in header.entries.items():
        if entry.dtype not in NUMBERS:
            left[key] = f"stored as {entry.dtype}, which is not read"
            continue
        name = decoder.decode(as_path(key, modules, kinds))
        if isinstance(name, str):
            left[key] = name
        elif name.factor in found.get(name.path, {}):
            left[key] = f"names the same tensor as {found[name.path][name.factor]}"
        else:
            found.setdefault(name.path, {})[name.factor] = key
            whole.setdefault(name.path, set()).update({name.factor} if name.whole else set())
    entries = {
        path: ModuleEntry(path, found[path], frozenset(whole[path]))
        for path in modules.shapes
        if path in found
    }
    if peft := [path for path, entry in entries.items() if MAGNITUDE in entry.keys]:
        text = "%s: DoRA as PEFT writes it (modules: %d): ComfyUI applies their LoRA without %s"
        logger.warning(text, path, len(peft), MAGNITUDE)
    return AdapterFile(Path(path), header, modules, entries, left, kinds)


def adapter_header(path: str | Path, kinds: Kinds = KINDS) -> TensorHeader:
    """The header of a file that holds an adapter, of any model. Raises AdapterFileError."""
    try:
        return read_adapter_header(path, kinds)
    except TensorFileError as error:
        raise AdapterFileError(f"{error}. {GIVE_AN_ADAPTER}", source=str(path)) from error


def as_path(key: str, modules: Modules, kinds: Kinds) -> str:
    """The key, its module by its path where the file has another program's name for it."""
    split = split_factor(key, kinds)
    if split and split[0] in modules.aliases:
        return modules.aliases[split[0]] + key[len(split[0]) :]
    return key


def prefix_of(key: str, path: str) -> str:
    """What stands before a module's name, e.g. diffusion_model. or lora_unet_."""
    for name in (path, path.replace(".", "_")):
        found = re.match(rf"(.*?){re.escape(name)}[._]", key)
        if found:
            return found[1]
    return key.partition(".")[0]
