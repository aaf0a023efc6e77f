"""The weighted mean of adapter files of one run, tensor by tensor.

A delta is a product of factors, and the mean of products is not the product of means: it comes near only
where the files grew out of the same factors, as those of one run do. Files of different runs have
factors in other bases, whose mean means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from library.errors import AdapterFileError, Problem
from library.system.tensor_files import (
    FLOATS,
    NUMBERS,
    TensorFileError,
    TensorHeader,
    read_tensors,
)
from library.utils import first_few
from networks.codec import (
    GIVE_AN_ADAPTER,
    kinds_of_file,
    read_adapter_header,
    split_factor,
    write_adapter,
)
from networks.kinds.stored import ALPHA
from networks.kinds.table import KINDS

SESSION = "ss_session_id"
HASHES = "sshs_"
KEYS_NAMED = 3


@dataclass(frozen=True)
class AdapterFile:
    """One of the files, by its header."""

    path: Path
    header: TensorHeader

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: entry.shape for key, entry in self.header.entries.items()}

    @property
    def kinds(self) -> str:
        """The kinds of adapters in it, for messages."""
        splits = (split_factor(key, KINDS) for key in self.header.entries)
        found = kinds_of_file([split for split in splits if split], KINDS)
        return " and ".join(found) or "norm"

    def read(self, key: str) -> Tensor:
        """One tensor. Raises AdapterFileError."""
        try:
            return read_tensors(self.path, self.header, [key])[key]
        except TensorFileError as error:
            raise AdapterFileError(f"{error}.", source=str(self.path)) from error


@dataclass(frozen=True)
class Average:
    """What is written. distances: of each file from it, |file - average| / |average|."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    distances: Sequence[float]


def open_files(paths: Sequence[Path], *, any_run: bool = False) -> list[AdapterFile]:
    """Files that can be averaged; only headers and alphas are read. Raises AdapterFileError with every
    reason why not.

    any_run: also such as do not say that they are of one run
    """
    files, problems = [], []
    for path in paths:
        try:
            header = read_adapter_header(path)
            odd = {f"{k} ({e.dtype})" for k, e in header.entries.items() if e.dtype not in NUMBERS}
            if odd:
                raise TensorFileError(f"holds numbers not read here: {first_few(sorted(odd), 3)}")
            files.append(AdapterFile(path, header))
        except TensorFileError as error:
            problems.append(Problem(f"{error}. {GIVE_AN_ADAPTER}", str(path)))
    for file in files[1:]:
        problems += differences(files[0], file)
    if not any_run:
        problems += foreign(files)
    if problems:
        raise AdapterFileError(problems, source="files to average")
    return files


def differences(first: AdapterFile, other: AdapterFile) -> list[Problem]:
    """Why two files hold no tensors that can be averaged: kinds, keys, shapes, alphas."""
    here, there, where = first.shapes, other.shapes, str(other.path)
    if here.keys() != there.keys():
        if first.kinds != other.kinds:
            message = f"is of the kind {other.kinds}; {first.path.name} is {first.kinds}."
            return [Problem(message, where)]
        lacks, adds = sorted(here.keys() - there.keys()), sorted(there.keys() - here.keys())
        parts = [f"lacks {first_few(lacks, KEYS_NAMED)}"] if lacks else []
        parts += [f"has {first_few(adds, KEYS_NAMED)} besides"] if adds else []
        return [Problem(f"{' and '.join(parts)}, compared with {first.path.name}.", where)]
    shaped = [key for key in here if here[key] != there[key]]
    if shaped:
        shown = [f"{key} {there[key]} instead of {here[key]}" for key in shaped]
        return [Problem(f"has other shapes: {first_few(shown, KEYS_NAMED)}.", where)]
    scaled = [key for key in here if is_alpha(key) and not torch.equal(*alphas(first, other, key))]
    if scaled:
        shown = [f"{k} {alphas(other, first, k)[0].item():g}" for k in scaled]
        return [Problem(f"has another alpha: {first_few(shown, KEYS_NAMED)}.", where)]
    return []


def is_alpha(key: str) -> bool:
    return key.rpartition(".")[2] == ALPHA


def alphas(first: AdapterFile, other: AdapterFile, key: str) -> tuple[Tensor, Tensor]:
    return first.read(key).double().reshape(-1)[:1], other.read(key).double().reshape(-1)[:1]


def foreign(files: Sequence[AdapterFile]) -> list[Problem]:
    """Whether they say that they are of one run: by the session that a resumed run keeps."""
    sessions = {file.path: file.header.metadata.get(SESSION) for file in files}
    silent = [path for path, session in sessions.items() if not session]
    advice = "If they are of one run all the same, use --force."
    if silent:
        message = f"does not say of which run it is (no {SESSION}). {advice}"
        return [Problem(message, str(path)) for path in silent]
    first, *others = sessions.items()
    return [
        Problem(f"is of another run than {first[0].name}: their factors have no common base. {advice}",
                str(path))
        for path, session in others
        if session != first[1]
    ]  # fmt: skip


def average(files: Sequence[AdapterFile], weights: Sequence[float]) -> Average:
    """The mean of files that open_files let pass, weighted; one tensor of each is in memory at a time.

    Computed in float64. Stored as the files are, in float32 where they differ.
    """
    total = sum(weights)
    shares = [weight / total for weight in weights]
    tensors, far = {}, torch.zeros(len(files), dtype=torch.float64)
    size = torch.zeros((), dtype=torch.float64)
    for key, entry in files[0].header.entries.items():
        if is_alpha(key) or entry.dtype not in FLOATS:
            tensors[key] = files[0].read(key)
            continue
        parts = [file.read(key) for file in files]
        mean = sum(share * part.double() for share, part in zip(shares, parts))
        assert isinstance(mean, Tensor), "there is a file"
        far += torch.stack([(part.double() - mean).square().sum() for part in parts])
        size += mean.square().sum()
        same = len({part.dtype for part in parts}) == 1
        tensors[key] = mean.to(parts[0].dtype if same else torch.float32)
    distances = (far / size).sqrt().tolist() if size else [0.0] * len(files)
    return Average(tensors, metadata_of(files, shares), distances)


def metadata_of(files: Sequence[AdapterFile], shares: Sequence[float]) -> dict[str, str]:
    """What all files say alike, and what it was averaged from."""
    first, *others = (file.header.metadata for file in files)
    kept = {
        key: value
        for key, value in first.items()
        if not key.startswith(HASHES) and all(other.get(key) == value for other in others)
    }
    names = {file.path.name: round(share, 6) for file, share in zip(files, shares)}
    return {**kept, "ss_averaged_from": json.dumps(names, ensure_ascii=False)}


def write_average(path: Path, made: Average) -> None:
    """Whole or not at all, see write_adapter."""
    write_adapter(path, made.tensors, made.metadata)
