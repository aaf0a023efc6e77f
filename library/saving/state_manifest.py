"""train_state.json: what it has to hold, and the seal that shows whether it is as it was written.

A state lists its own files with their checksums; the seal is the checksum of that list. States from
before there was one are read without it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

from library.data.data_types import RunPosition
from library.errors import Problem

FORMAT = "train_state/v1"
MANIFEST, SNAPSHOT = "train_state.json", "resume_snapshot.json"
ADAPTERS, OPTIMIZER, RECORD = "adapters.safetensors", "optimizer.pt", "run_record.json"
SEAL = "seal"
MOST = 10**12
"""No run has so many steps or bytes."""


def rank_file(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


NEEDED = (ADAPTERS, OPTIMIZER, SNAPSHOT, rank_file(0))


def make_manifest(
    position: RunPosition, run: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The document of a state. files: name -> {"bytes": size, "sha256": digits}."""
    made = {"format": FORMAT, "position": asdict(position), "run": dict(run), "files": dict(files)}
    return {**made, SEAL: seal_of(made)}


def seal_of(manifest: Mapping[str, Any]) -> str:
    """The sha256 of a document, the seal itself left out."""
    unsealed = {key: value for key, value in manifest.items() if key != SEAL}
    return hashlib.sha256(json.dumps(unsealed, sort_keys=True).encode()).hexdigest()


def manifest_problems(manifest: Mapping[str, Any]) -> list[Problem]:
    """Everything in a document that make_manifest would not have written."""
    problems = []
    if SEAL in manifest and manifest[SEAL] != seal_of(manifest):
        text = "was changed after it was written: its checksum is another. To start at another step"
        problems.append(Problem(f"{text}, use --initial_step.", MANIFEST))
    names = [field.name for field in fields(RunPosition)]
    problems += _check(manifest, "position", dict.fromkeys(names, _is_count), only=names)
    problems += _check(manifest, "run", RUN)
    files = manifest.get("files")
    problems += _check(manifest, "files", dict.fromkeys({*NEEDED, *_keys(files)}, _is_file))
    names = sorted(name for name in _keys(files) if not re.fullmatch(r"\w[\w.-]*", name))
    problems += [Problem(f"is no name of a state's file: {name!r}.", "files") for name in names]
    return problems


def snapshot_problems(snapshot: Mapping[str, Any]) -> list[Problem]:
    """What is not as in a snapshot: each kind is an object of settings."""
    kinds = {name: value for name, value in snapshot.items() if name not in ("schema", "made")}
    problems = [
        Problem("expected an object.", name)
        for name, value in kinds.items()
        if not isinstance(value, dict)
    ]
    critical = kinds.get("critical")
    if not problems and not _is_processes((critical or {}).get("num_processes", 1)):
        problems.append(Problem("expected a whole number from 1 on.", "critical.num_processes"))
    return problems


def _check(
    manifest: Mapping[str, Any],
    part: str,
    expected: Mapping[str, Callable[[Any], bool]],
    only: Iterable[str] | None = None,
) -> list[Problem]:
    """What is wrong in one part of the document; only: names that are all there may be."""
    values = manifest.get(part)
    if not isinstance(values, dict):
        return [Problem("is missing, or is no object.", part)]
    problems = []
    for name, is_right in sorted(expected.items()):
        if name not in values:
            problems.append(Problem("is missing.", f"{part}.{name}"))
        elif not is_right(values[name]):
            found = json.dumps(values[name])[:40]
            problems.append(Problem(f"{found}: expected {is_right.__doc__}.", f"{part}.{name}"))
    unknown = sorted(set(values) - set(only)) if only is not None else ()
    return problems + [Problem("is not known.", f"{part}.{name}") for name in unknown]


def _keys(value: Any) -> Iterable[str]:
    return value if isinstance(value, dict) else ()


def _is_whole(value: Any) -> bool:
    """a whole number"""
    return type(value) is int and abs(value) < 2**64


def _is_count(value: Any) -> bool:
    """a whole number from 0 on"""
    return type(value) is int and 0 <= value <= MOST


def _is_processes(value: Any) -> bool:
    """a whole number from 1 on"""
    return _is_count(value) and value > 0


def _is_texts(value: Any) -> bool:
    """an object of texts"""
    return isinstance(value, dict) and all(map(_is_text, (*value, *value.values())))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _is_file(value: Any) -> bool:
    """its size in bytes and its sha256"""
    return (
        isinstance(value, dict)
        and _is_count(value.get("bytes"))
        and isinstance(value.get("sha256"), str)
    )


RUN = {"seed": _is_whole, "num_processes": _is_processes, "metadata": _is_texts}
