"""Checkpoints of 8 bits a weight, as ComfyUI writes and reads them: which tensors are codes of what.

A weight is its codes times a scale, one for the matrix or one for each row, beside it in the file. Newer
files mark each layer with JSON that names a format (`<layer>.comfy_quant`, or all of them in the
metadata); older ones have `scaled_fp8` and `<layer>.scale_weight`; some cast and have nothing. int8 may be
rotated ("convrot"): groups of columns were multiplied by a regular Hadamard matrix.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from library.anima_runtime.key_mapping import PREFIXES
from library.errors import ModelFileError
from library.system import tensor_files
from library.system.tensor_files import FLOATS, TensorEntry
from library.utils import first_few

NAMES_SHOWN = 8
METADATA = "_quantization_metadata"
MARK, OLD_MARK = "comfy_quant", "scaled_fp8"
SCALES = ("weight_scale", "scale_weight")
OF_INPUTS = ("input_scale", "scale_input")
"""Scales for activations: nothing that training needs."""
LONGEST_MARK = 4096  # bytes of JSON
FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int8_tensorwise": "I8"}
"""ComfyUI's formats that are read here, and how their codes are stored."""
USUAL_GROUP = 256


@dataclass(frozen=True)
class StoredWeight:
    """How a weight lies in a file.

    format: ComfyUI's name; scale: its key, None where the codes are the values themselves
    group:  columns that were rotated together; 0: none were
    """

    format: str
    scale: str | None = None
    group: int = 0


@dataclass(frozen=True)
class Layout:
    """How weights lie in a file, by key. more: keys of scales and marks, which are no weights."""

    weights: Mapping[str, StoredWeight]
    more: frozenset[str]

    def describe(self) -> str:
        """The formats, each with how many weights have it; empty where all are floats."""
        kinds: Counter[str] = Counter()
        for how in self.weights.values():
            scaled = "" if how.scale else " without scales"
            kinds[how.format + (", rotated" if how.group else scaled)] += 1
        return ", ".join(f"{count} weights in {kind}" for kind, count in kinds.most_common())


def read_layout(path: str | Path, what: str, keys: Iterable[str]) -> Layout:
    """The layout of these keys' tensors; ModelFileError names what is stored in a way not read here."""
    try:
        return FileLayout(path, keys).read()
    except ValueError as error:
        raise ModelFileError(
            f"is a quantised checkpoint in a form that is not read here ({error}). Read are "
            f"{', '.join(FORMATS)} with a scale for each matrix or row. Use the bf16 file of {what}.",
            source=str(path),
        ) from error


class FileLayout:
    """Reads a layout from a file's header and its marks. Everything raises ValueError."""

    def __init__(self, path: str | Path, keys: Iterable[str]) -> None:
        self.path, self.header = path, tensor_files.read_header(path)
        self.entries = {key: self.header.entries[key] for key in keys}
        self.marks: dict[str, Mapping[str, object]] = {}  # by layer

    def read(self) -> Layout:
        self.read_listed_marks()
        more = frozenset(filter(self.belongs_to_a_weight, self.entries))
        for key in more:
            if key.endswith(f".{MARK}"):
                self.marks[key.removesuffix(f".{MARK}")] = self.read_mark(key)
        weights, complaints = {}, []
        for key in self.entries.keys() - more:
            try:
                if how := self.stored_as(key):
                    weights[key] = how
            except ValueError as error:
                complaints.append(f"{key}: {error}")
        if complaints:
            raise ValueError(first_few(sorted(complaints), NAMES_SHOWN))
        return Layout(weights, more)

    def belongs_to_a_weight(self, key: str) -> bool:
        layer, _, ending = key.rpartition(".")
        endings = (MARK, *SCALES, *OF_INPUTS)
        return ending == OLD_MARK or (ending in endings and f"{layer}.weight" in self.entries)

    def read_listed_marks(self) -> None:
        """What the metadata says of layers, with the keys' prefix or without."""
        if text := self.header.metadata.get(METADATA):
            layers = json.loads(text).get("layers", {})
            for prefix in PREFIXES:
                known = {n: m for n, m in layers.items() if f"{prefix}{n}.weight" in self.entries}
                self.marks |= {f"{prefix}{name}": as_mark(mark) for name, mark in known.items()}

    def read_mark(self, key: str) -> Mapping[str, object]:
        entry = self.entries[key]
        if entry.dtype != "U8" or entry.end - entry.begin > LONGEST_MARK:
            raise ValueError(f"{key}: {entry.dtype} {entry.shape}, expected JSON as bytes")
        return as_mark(json.loads(self.read_tensor(key).numpy().tobytes()))

    def read_tensor(self, key: str) -> Tensor:
        return tensor_files.read_tensors(self.path, self.header, [key])[key]

    def stored_as(self, key: str) -> StoredWeight | None:
        """None: in floats."""
        entry, layer = self.entries[key], key.removesuffix(".weight")
        mark = self.marks.get(layer, {})
        scales = [name for end in SCALES if (name := f"{layer}.{end}") in self.entries]
        if entry.dtype in FLOATS and not mark:
            self.check_ones(scales)
            return None
        usual = next((name for name, stored in FORMATS.items() if stored == entry.dtype), None)
        form = mark.get("format", usual)
        if form not in FORMATS:
            raise ValueError(f"its format is {form or entry.dtype}")
        if FORMATS[form] != entry.dtype:
            raise ValueError(f"its format is {form}, but it holds {entry.dtype}")
        if not mark and (form == "int8_tensorwise" or len(scales) > 1):
            raise ValueError(f"{entry.dtype}, and nothing says what it stands for")
        if mark and len(scales) != 1:
            raise ValueError(f"it has {len(scales)} scales")
        if not scales:
            return StoredWeight(form)
        check_scale(entry, self.entries[scales[0]])
        return StoredWeight(form, scales[0], group_of(entry, mark))

    def check_ones(self, scales: Iterable[str]) -> None:
        """Old files have scales of 1 beside weights that are as they were."""
        for name in scales:
            entry = self.entries[name]
            small = entry.dtype in FLOATS and entry.end - entry.begin <= LONGEST_MARK
            if not small or (self.read_tensor(name) != 1).any():
                raise ValueError("it has a scale and is not in 8 bits")


def as_mark(mark: object) -> Mapping[str, object]:
    """A layer's mark: an object, or the format's name alone."""
    if isinstance(mark, str):
        return {"format": mark}
    if not isinstance(mark, dict) or not isinstance(mark.get("format"), str):
        raise ValueError(f"a mark without a format: {str(mark)[:100]}")
    return mark


def check_scale(weight: TensorEntry, scale: TensorEntry) -> None:
    rows = weight.shape[:1]
    fits = len(weight.shape) == 2 and scale.shape in ((), (1,), (1, 1), rows, (*rows, 1))
    if not fits or scale.dtype not in FLOATS:
        raise ValueError(f"a scale {scale.dtype} {scale.shape} for {weight.shape}")


def group_of(weight: TensorEntry, mark: Mapping[str, object]) -> int:
    """Columns that were rotated together, a power of 4; 0 where none were."""
    if not mark.get("convrot"):
        return 0
    size = mark.get("convrot_groupsize", USUAL_GROUP)
    powers = [4**power for power in range(1, 9)]
    if size not in powers or weight.shape[1] % int(str(size)):
        raise ValueError(f"rotated in groups of {size} of its {weight.shape[1]} columns")
    return int(str(size))
