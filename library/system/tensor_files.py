"""Safetensors files of unknown origin: the header is checked as a whole before anything is allocated.

What can be asked for is bounded by the size of the file. TensorFileError says what is wrong, as the
rest of a sentence about the file.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from library.errors import as_utf8

MAX_HEADER = 32 * 2**20  # bytes; a full checkpoint's header has 0.1 MB, metadata included
MAX_OBJECTS = 100_000  # braces in a header: one for each tensor, more in the metadata's texts
MAX_DIMENSIONS = 8

FLOATS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16
}  # fmt: skip
WHOLE = {
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8
}  # fmt: skip
NUMBERS = FLOATS | WHOLE
CODES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8}
"""What weights of 8 bits are stored as; by themselves these numbers mean little."""
READABLE = NUMBERS | CODES


class TensorFileError(ValueError):
    """The file cannot be read, or not in whole."""


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in a file. dtype: as the header spells it; begin, end: its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class TensorHeader:
    """What a file holds, by the names of its tensors, in their order, and its free texts."""

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def read_header(path: str | Path) -> TensorHeader:
    """The header, once it and the size of the file agree. Raises TensorFileError."""
    if os.path.isdir(path):
        raise TensorFileError("is a folder, not a .safetensors file")
    if not os.path.isfile(path):
        raise TensorFileError("no such file")
    try:
        with open(path, "rb") as file:
            raw = header_bytes(file, os.path.getsize(path))
        if raw.count(b"{") > MAX_OBJECTS:  # before anything is made of them
            raise TensorFileError("lists more tensors than any model has")
        with utf8_name(path) as name, safe_open(name, "np"):
            pass  # the library's own checks: known dtypes; ranges fill the file and fit the shapes
        header = parse_header(raw)
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, TensorFileError):
            raise
        raise TensorFileError(f"not a whole .safetensors file ({error})") from error
    check_shapes(header.entries)
    return header


def header_bytes(file: BinaryIO | RawIOBase, size: int, longest: int = MAX_HEADER) -> bytes:
    """The JSON at the start of a file of `size` bytes, which is at its start. Raises TensorFileError."""
    length = int.from_bytes(file.read(8) or b"", "little")
    if not 2 <= length <= min(size - 8, longest):
        raise TensorFileError(f"not a whole .safetensors file (a header of {length} bytes)")
    return file.read(length) or b""


def parse_header(raw: bytes) -> TensorHeader:
    """What the header_bytes of a file say, taken at their word. Raises TensorFileError."""
    start, entries = 8 + len(raw), {}
    try:
        described = json.loads(raw.decode("utf-8"))
        metadata = dict(described.pop("__metadata__", None) or {})
        for name, found in sorted(described.items()):
            begin, end = (start + offset for offset in found["data_offsets"])
            entries[name] = TensorEntry(found["dtype"], tuple(found["shape"]), begin, end)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TensorFileError(f"not a whole .safetensors file ({error})") from error
    return TensorHeader(entries, metadata)


@contextmanager
def utf8_name(path: str | Path) -> Iterator[str | Path]:
    """The file by a name in UTF-8, as the safetensors library needs it: through a link if need be."""
    if as_utf8(str(path)) == str(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "link.safetensors")
        link.symlink_to(os.path.abspath(path))
        yield link


def check_shapes(entries: Mapping[str, TensorEntry]) -> None:
    """Refuse the shapes whose product says nothing about the file's size: (0, 10**9)."""
    wrong = [
        f"{name} {entry.shape}"
        for name, entry in entries.items()
        if len(entry.shape) > MAX_DIMENSIONS or (0 in entry.shape and entry.shape != (0,))
    ]
    if wrong:
        raise TensorFileError(f"has tensors of shapes without numbers: {', '.join(wrong[:5])}")


def read_tensors(
    path: str | Path, header: TensorHeader, names: Iterable[str]
) -> dict[str, Tensor]:
    """The named tensors, of dtypes in READABLE, read straight to their places: no second copy, no map.

    Raises TensorFileError when the file is no longer what its header said.
    """
    tensors = {}
    try:
        with open(path, "rb") as file:
            for name in names:
                entry = header.entries[name]
                data = torch.empty(entry.end - entry.begin, dtype=torch.uint8, device="cpu")
                file.seek(entry.begin)
                if file.readinto(data.numpy().data) != len(data):
                    raise TensorFileError("was cut while it was read")
                tensors[name] = data.view(READABLE[entry.dtype]).view(entry.shape)
    except OSError as error:
        raise TensorFileError(f"cannot be read any more ({error})") from error
    return tensors
