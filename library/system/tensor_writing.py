"""Safetensors files written a tensor at a time: what is in memory is one of them, however large the file.

What will be written is planned first, by name, so that the header is known and each tensor has its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from library.system.tensor_files import READABLE

CHUNK = 2**20
DTYPES = {dtype: name for name, dtype in READABLE.items()}
SIZES = {name: dtype.itemsize for name, dtype in READABLE.items()}
SIZES |= {"BOOL": 1, "F8_E8M0": 1, "U16": 2, "U32": 4, "U64": 8, "C64": 8}
"""Bytes of a number; those that are not read here too, which can be copied."""
LEGACY = slice(0x100000, 0x110000)
"""The bytes that AUTOMATIC1111's old hash covers."""
HASHES = {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8}
"""sd-scripts' hashes, by what stands in the header until all data is there."""


class Planned(NamedTuple):
    """A tensor that will be written. dtype: as headers spell it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return torch.Size(self.shape).numel() * SIZES[self.dtype]

    @classmethod
    def of(cls, tensor: Tensor) -> Planned:
        return cls(DTYPES[tensor.dtype], tuple(tensor.shape))


@contextmanager
def tensor_writer(
    path: Path, plan: Mapping[str, Planned], metadata: Mapping[str, str], *, hashed: bool
) -> Iterator[TensorWriter]:
    """Within: put every planned tensor. hashed: the metadata gets sd-scripts' hashes of the data."""
    with open(path, "wb+") as file:
        writer = TensorWriter(file, plan, {**metadata, **HASHES} if hashed else metadata)
        yield writer
        assert not writer.waiting, f"planned and not written: {sorted(writer.waiting)[:5]}"
        if hashed:
            writer.put_hashes()


class TensorWriter:
    """Writes the planned tensors into an open file, in any order. Raises OSError."""

    def __init__(
        self, file: BinaryIO, plan: Mapping[str, Planned], metadata: Mapping[str, str]
    ) -> None:
        self.file, self.plan, self.metadata = file, plan, metadata
        self.header = header_of(plan, metadata)
        self.starts = {name: begin for name, (begin, _) in offsets(plan)}
        self.waiting = set(plan)
        self.file.write(self.header)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, in its planned dtype."""
        planned = self.plan[name]
        assert Planned.of(tensor) == planned, f"{name}: {Planned.of(tensor)}, planned {planned}"
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self.put_bytes(name, data.numpy().data)

    def put_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Write a tensor by its bytes."""
        self.file.seek(len(self.header) + self.starts[name])
        written = self.file.write(data)
        assert written == self.plan[name].size, f"{name}: {written} bytes"
        self.waiting.discard(name)

    def put_hashes(self) -> None:
        """Of the data alone, and of a stretch of the file as it would be with only its ss_* metadata."""
        own = {name: text for name, text in self.metadata.items() if name.startswith("ss_")}
        shorter = header_of(self.plan, own)
        whole, legacy = hashlib.sha256(), hashlib.sha256(shorter[LEGACY])
        position = len(shorter)  # of the next byte in that shorter file
        self.file.seek(len(self.header))
        while data := self.file.read(CHUNK):
            whole.update(data)
            first, last = (
                min(max(at - position, 0), len(data)) for at in (LEGACY.start, LEGACY.stop)
            )
            legacy.update(data[first:last])
            position += len(data)
        hashes = dict(zip(HASHES, (whole.hexdigest(), legacy.hexdigest()[:8])))
        header = header_of(self.plan, {**self.metadata, **hashes})
        assert len(header) == len(self.header), "the same number of digits"
        self.file.seek(0)
        self.file.write(header)


def ordered(plan: Mapping[str, Planned]) -> list[str]:
    """Wide numbers first, as readers that map a file need it; then by name."""
    return sorted(plan, key=lambda name: (-SIZES[plan[name].dtype], name))


def offsets(plan: Mapping[str, Planned]) -> Iterable[tuple[str, tuple[int, int]]]:
    """Where each tensor begins and ends in the data."""
    begin = 0
    for name in ordered(plan):
        end = begin + plan[name].size
        yield name, (begin, end)
        begin = end


def header_of(plan: Mapping[str, Planned], metadata: Mapping[str, str]) -> bytes:
    """The bytes before the data: their number, and JSON padded to a multiple of 8."""
    places: dict[str, object] = {}
    if metadata:
        places["__metadata__"] = dict(sorted(metadata.items()))
    for name, place in offsets(plan):
        dtype, shape = plan[name]
        places[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}
    text = json.dumps(places, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-len(text) % 8 + len(text))
    return len(text).to_bytes(8, "little") + text
