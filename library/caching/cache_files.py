"""Files of stored encoder outputs: what makes one valid, and how it is read and written whole.

A cache file is a safetensors file with a note in its header: the fingerprint of all that the content
depends on, and a checksum of the content. Headers are checked when a run starts; the content
when it is first read, which costs next to nothing there.

Files are read without being mapped: a mapped file could not be replaced on Windows.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import re
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import BinaryIO, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from library.data.data_types import Layout, StoredTensor
from library.data.picture_folders import CACHE_FOLDER
from library.data.stored import UnfitFile
from library.errors import DatasetError, OutputError, Problem
from library.system import leftovers
from library.system.system_errors import output_errors
from library.system.tensor_files import (
    NUMBERS,
    TensorEntry,
    TensorFileError,
    TensorHeader,
    header_bytes,
    parse_header,
)
from library.utils import atomic_write

logger = logging.getLogger(__name__)

NOTE = "cache"  # in the header: fingerprint and checksum
FORMAT = "3"  # raise it when the same inputs come to give another content
EARLIER_FINGERPRINT = re.compile("[0-9a-f]{32}")  # knows files by name and time
LONGEST_HEADER = 2**20  # bytes; ours have some hundreds
THREADS = max(2, min(8, os.cpu_count() or 1))  # that decode pictures ahead, or look at files
DELAY = 2.0  # seconds after which looking at files shows its progress
DTYPES = NUMBERS | {"BOOL": torch.bool}


class TakenOver(UnfitFile):
    """A whole cache file that belongs to other settings: another run has written it meanwhile."""


class CacheStatus(Enum):
    """How an item was found to be stored."""

    VALID = auto()
    ABSENT = auto()
    OUTDATED = auto()  # made of something else, cut short, or no file of ours
    EARLIER = auto()  # made by an earlier version
    FOREIGN = auto()  # in another trainer's file

    @property
    def is_usable(self) -> bool:
        return self in (CacheStatus.VALID, CacheStatus.FOREIGN)


@dataclass(frozen=True)
class CacheHeader:
    """What a file says of itself; fingerprint and checksum are "" in files that are not ours."""

    fingerprint: str
    checksum: str
    entries: Mapping[str, TensorEntry]


@dataclass(frozen=True)
class CacheFile:
    """Where an item is stored and what makes the stored file valid. trust: by name and layout."""

    path: Path
    fingerprint: str
    layout: Layout
    trust: bool = False

    def status(self) -> CacheStatus:
        """By the header alone."""
        try:
            with open(self.path, "rb", buffering=0) as file:
                header = read_cache_header(file, os.fstat(file.fileno()).st_size, self.path)
            if not self.trust and EARLIER_FINGERPRINT.fullmatch(header.fingerprint):
                return CacheStatus.EARLIER
            self.check_owner(header)
        except FileNotFoundError:
            return CacheStatus.ABSENT
        except (UnfitFile, OSError):
            return CacheStatus.OUTDATED
        return CacheStatus.VALID if has_layout(header, self.layout) else CacheStatus.OUTDATED

    def is_valid(self) -> bool:
        return self.status() is CacheStatus.VALID

    def check_owner(self, header: CacheHeader) -> None:
        if not self.trust and header.fingerprint != self.fingerprint:
            raise TakenOver(f"{self.path}: the file belongs to other settings.")

    def read(self, *, check: bool = True) -> dict[str, Tensor]:
        """The stored tensors. check: compare the checksum too. Raises UnfitFile."""
        try:
            with open(self.path, "rb", buffering=0) as file:
                content = read_whole(file, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise UnfitFile(f"{self.path}: cannot be read ({error.strerror}).") from error
        header = read_cache_header(io.BytesIO(content), len(content), self.path)
        self.check_owner(header)
        if not has_layout(header, self.layout):
            raise UnfitFile(f"{self.path}: its tensors are of other kinds or sizes.")
        tensors = tensors_of(content, header)
        if check:
            if header.checksum not in ("", checksum(tensors)):
                raise UnfitFile(f"{self.path}: the content is damaged.")
            if not all(has_values(tensors[name], wanted) for name, wanted in self.layout.items()):
                raise UnfitFile(f"{self.path}: it holds impossible numbers.")
        return tensors

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors; the file is whole or not there. Raises OutputError, of a full disk say."""
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        # one note: of several, safetensors writes a random one first, and files would differ
        note = {NOTE: f"{self.fingerprint} {checksum(whole)}"}
        try:
            with output_errors(self.path):
                self.path.parent.mkdir(exist_ok=True)  # someone may have deleted it meanwhile
                # not synced: after a power cut the checks find what was lost
                with atomic_write(self.path, sync=False) as temporary:
                    save_file(whole, temporary, metadata=note)
        except OutputError as error:
            # on Windows a file that another process reads cannot be replaced: it made the same one
            if not (isinstance(error.__cause__, PermissionError) and self.is_valid()):
                raise


def read_whole(file: io.RawIOBase, size: int) -> bytearray:
    """So many bytes, or fewer at the file's end: one read may give less, of a network drive say."""
    content = bytearray(size)
    view, filled = memoryview(content), 0
    while count := file.readinto(view[filled:]):
        filled += count
    view.release()
    del content[filled:]
    return content


def has_layout(header: CacheHeader, layout: Layout) -> bool:
    """Whether a file holds the named tensors, in dtypes and shapes that can be used."""
    lengths: dict[str, int] = {}
    for name, wanted in layout.items():
        entry = header.entries.get(name)
        if entry is None or len(entry.shape) != len(wanted.shape):
            return False
        if DTYPES[entry.dtype].is_floating_point != (wanted.below is None):
            return False
        for length, expected in zip(entry.shape, wanted.shape):
            if isinstance(expected, str):
                expected = lengths.setdefault(expected, length)
            if length != expected or not length:
                return False
    return header.entries.keys() == layout.keys()


def has_values(tensor: Tensor, wanted: StoredTensor) -> bool:
    if wanted.below is None:
        return bool(torch.isfinite(tensor).all())
    return bool(((tensor >= 0) & (tensor < wanted.below)).all())


class StoredItem(Protocol):
    """A picture's or a caption's outputs in a file: our own, or another trainer's."""

    def read(self, *, check: bool = True) -> Mapping[str, Tensor]:
        """Its tensors. Raises UnfitFile."""


@dataclass(frozen=True)
class Foreign(ABC):
    """An item in another trainer's file, and its copy, which is quick to read.

    copy: our file, whose fingerprint is of theirs: without theirs the copy is not valid either
    """

    copy: CacheFile

    def read(self, *, check: bool = True) -> Mapping[str, Tensor]:
        """From the copy, else from their file. Raises UnfitFile."""
        try:
            return self.copy.read(check=check)
        except UnfitFile:
            return self.unpack()

    @abstractmethod
    def unpack(self) -> Mapping[str, Tensor]:
        """From their file, always checked: it has no checksum. Raises UnfitFile."""


def copy_foreign(found: Iterable[Foreign]) -> None:
    """Write the copies that are not there yet. The other trainer's files stay as they are."""
    try:
        for source in found:
            if not source.copy.is_valid():
                source.copy.write(source.unpack())
    except OutputError as error:
        logger.warning("%s Until then the other trainer's files are unpacked each time.", error)


@dataclass
class Tally:
    """What became of the items.

    found: how many were stored how
    kept:  those that were at hand in memory
    unfit: why files of other trainers were not used
    """

    what: str
    found: Counter[CacheStatus] = field(default_factory=Counter)
    kept: int = 0
    encoded: int = 0
    unfit: list[str] = field(default_factory=list)

    def log(self) -> None:
        outdated, earlier = self.found[CacheStatus.OUTDATED], self.found[CacheStatus.EARLIER]
        foreign = self.found[CacheStatus.FOREIGN]
        rebuilt = f", {outdated} of them outdated or damaged before" if outdated else ""
        reused = self.found[CacheStatus.VALID] + foreign + self.kept
        logger.info("%s: %d reused, %d encoded%s", self.what, reused, self.encoded, rebuilt)
        if earlier:
            logger.info(
                "%s: %d files of an earlier version, which knew pictures and models by name and time, "
                "are made anew: they are known by content now, and can be copied.",
                self.what, earlier,
            )  # fmt: skip
        if foreign:
            logger.warning(
                "%s: %d are taken from another trainer's files, which carry no fingerprint: they fit "
                "in shape, but nothing tells whether picture, caption or encoder have changed since. "
                "Delete those files to have them made anew. Until then copies in _cache are used, "
                "which are read faster.", self.what, foreign,
            )  # fmt: skip
        if self.unfit:
            first, count = self.unfit[0], len(self.unfit)
            logger.warning("%s: %d files are not used, for example %s", self.what, count, first)


def fingerprint(*parts: object) -> str:
    """The format, and 32 hex digits for parts that json can hold."""
    return f"{FORMAT}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}"


def name_hash(*parts: object) -> str:
    """32 hex digits, for names: the same in every format, so that files are replaced and not left."""
    return hashlib.sha256(json.dumps(["2", *parts]).encode()).hexdigest()[:32]


def read_cache_header(file: BinaryIO | io.RawIOBase, size: int, name: object) -> CacheHeader:
    """The header of a whole safetensors file of `size` bytes. Raises UnfitFile with its name."""
    try:
        raw = header_bytes(file, size, LONGEST_HEADER)
    except TensorFileError as error:
        raise UnfitFile(f"{name}: not a cache file, or cut short.") from error
    try:
        header = parse_header(raw)
        owner, _, content = header.metadata.get(NOTE, "").partition(" ")
        end = end_of_data(header, 8 + len(raw))
    except (TensorFileError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnfitFile(f"{name}: the header is damaged.") from error
    if end != size:
        raise UnfitFile(f"{name}: {size} bytes instead of {end}.")
    return CacheHeader(owner, content, header.entries)


def end_of_data(header: TensorHeader, start: int) -> int:
    """Where the last tensor ends; ValueError and the like where they are not side by side from start."""
    for entry in sorted(header.entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if not all(type(length) is int and length >= 0 for length in entry.shape):
            raise ValueError(f"the shape {entry.shape}")
        if (entry.begin, entry.end) != (start, start + size_of(entry)):
            raise ValueError(f"bytes {entry.begin} to {entry.end}")
        start = entry.end
    return start


def size_of(entry: TensorEntry) -> int:
    """In bytes."""
    return math.prod(entry.shape) * DTYPES[entry.dtype].itemsize


def parse(content: bytearray) -> dict[str, Tensor]:
    """The tensors of a safetensors file's bytes, which they share."""
    return tensors_of(content, read_cache_header(io.BytesIO(content), len(content), "scratch"))


def tensors_of(content: bytearray, header: CacheHeader) -> dict[str, Tensor]:
    """The same, with the header read already."""
    found = {}
    for name, entry in header.entries.items():
        dtype, count = DTYPES[entry.dtype], math.prod(entry.shape)
        flat = torch.empty(0, dtype=dtype)  # frombuffer takes no empty tensor
        if count:
            flat = torch.frombuffer(content, dtype=dtype, count=count, offset=entry.begin)
        found[name] = flat.view(entry.shape)
    return found


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of names, dtypes, shapes and bytes: a changed bit anywhere changes it."""
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def check_writable(folders: Iterable[Path]) -> None:
    """Make each folder's `_cache`. Raises DatasetError naming all that cannot be written."""
    problems = []
    for folder in dict.fromkeys(folders):
        cache = folder / CACHE_FOLDER
        try:
            cache.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=cache):
                remove_leftovers(cache)
        except OSError as error:
            text = f"{cache}: the cache cannot be written here ({error.strerror}). Make it "
            text += "writable, or cache in memory: leave out the flags that end in _to_disk."
            problems.append(Problem(text))
    if problems:
        raise DatasetError(problems)


def remove_leftovers(cache: Path) -> None:
    """Delete unfinished files of processes that were killed while they wrote, also on other computers."""
    for path in cache.glob(".*"):
        is_temporary = path.name.endswith(".tmp") or leftovers.SAFETENSORS_TEMPORARY_NAME.fullmatch(path.name)
        if is_temporary and leftovers.is_old(path):
            leftovers.remove(path)
