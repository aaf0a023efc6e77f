"""A state: the folder from which a run goes on. It is whole or not there, and it is data only.

adapters.safetensors   factors by the model's parameter names, as they are trained
optimizer.pt           optimizer, schedule and gradient scaler; tensors and plain values
rank_00000.safetensors of each process: its random generators and the running means of its logs
resume_snapshot.json   the settings that must agree with those of the run that goes on
run_record.json        what the report shows of the steps until then, where a run has one
train_state.json       the position, facts of the run, size and sha256 of the other files
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from library.data.data_types import RunPosition
from library.errors import Problem, ResumeError, as_utf8
from library.saving.state_manifest import (
    ADAPTERS,
    FORMAT,
    MANIFEST,
    OPTIMIZER,
    RECORD,
    SNAPSHOT,
    make_manifest,
    manifest_problems,
    rank_file,
    snapshot_problems,
)
from library.system.files import free_name, remove_folder, rename_folder
from library.system.leftovers import is_left
from library.system.system_errors import system_fault
from library.system.text_files import json_text
from library.utils import give_usual_permissions, sha256_of_file, sync_folder

logger = logging.getLogger(__name__)

ACCELERATE_FILES = ("optimizer.bin", "random_states_0.pkl", "scheduler.bin", "custom_checkpoint_0.pkl")
TEMPORARY_NAME = re.compile(r"\.(.+)\.(\d+)\.(new|old|gone)\.tmp")
START_ANEW = (
    "Start a new run from the adapter file that was saved with it: network_weights = FILE, "
    "dim_from_weights = true; its optimizer starts afresh."
)


@dataclass(frozen=True, kw_only=True)
class StateContents:
    """What a state holds.

    run:      facts that a resumed run takes over, as JSON: the seed, processes, metadata of the start
    factors:  parameter name -> tensor, in the dtype that is trained
    training: tensors on the CPU and plain values in lists and dictionaries
    ranks:    each process's tensors, in order
    record:   what the run's report goes on from, as JSON; empty: none is kept
    """

    position: RunPosition
    run: Mapping[str, Any]
    snapshot: Mapping[str, Any]
    factors: Mapping[str, Tensor]
    training: Mapping[str, Any]
    ranks: Sequence[Mapping[str, Tensor]]
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedState:
    """A state on disk whose files are all there and undamaged."""

    folder: Path
    position: RunPosition
    run: Mapping[str, Any]
    snapshot: Mapping[str, Any]

    def factors(self) -> dict[str, Tensor]:
        return self._tensors(ADAPTERS)

    def training(self) -> dict[str, Any]:
        with _reading(self.folder / OPTIMIZER):
            return torch.load(self.folder / OPTIMIZER, map_location="cpu", weights_only=True)

    def rank(self, rank: int) -> dict[str, Tensor]:
        """What the process of this number kept; empty when there was none."""
        file = rank_file(rank)
        return self._tensors(file) if (self.folder / file).exists() else {}

    def record(self) -> dict[str, Any]:
        """What the run's report goes on from; empty when none was kept."""
        return _read_json(self.folder / RECORD, str(self.folder))

    def _tensors(self, name: str) -> dict[str, Tensor]:
        with _reading(self.folder / name):
            return safetensors.torch.load((self.folder / name).read_bytes())


def write_state(folder: Path, contents: StateContents) -> Path:
    """Write a state beside its final place, sync it, and give it its name as the last act.

    A state of that name is replaced, or stays when a program holds it, and the new one gets the next
    free name. Returns where it is. Raises ResumeError when it cannot be written; what was there
    before stays.
    """
    temporary, earlier = _temporary_name(folder, "new"), None
    try:
        temporary.mkdir(parents=True)
        _write_files(temporary, contents)
        sync_folder(temporary)
        earlier, folder = _make_way(folder)
        rename_folder(temporary, folder)
        sync_folder(folder.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # the last two: writing failed, too
        if earlier and not folder.exists():
            rename_folder(earlier, folder)
        fault = system_fault(error)
        advice = fault.advice(folder) if fault else "Look at the space on the disk."
        message = f"the state could not be written ({error}). Earlier ones are untouched. {advice}"
        raise ResumeError(message, source=str(folder)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if earlier:
        remove_folder(earlier)
    return folder


def _write_files(folder: Path, contents: StateContents) -> None:
    safetensors.torch.save_file(dict(contents.factors), folder / ADAPTERS)
    with open(folder / OPTIMIZER, "wb") as file:
        torch.save(dict(contents.training), file)
    _check_plain(folder / OPTIMIZER)
    for rank, tensors in enumerate(contents.ranks):
        safetensors.torch.save_file(dict(tensors), folder / rank_file(rank))
    _write_json(folder / SNAPSHOT, contents.snapshot)
    if contents.record:
        text = json_text(contents.record, separators=(",", ":"))
        (folder / RECORD).write_text(text + "\n", encoding="utf-8")
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
        for path in sorted(folder.iterdir())
    }
    _write_json(folder / MANIFEST, make_manifest(contents.position, contents.run, files))
    for path in folder.iterdir():
        give_usual_permissions(path)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def _check_plain(path: Path) -> None:
    """Raise ResumeError when the file just written could not be read as data alone."""
    mmap = as_utf8(str(path)) == str(path)  # torch maps no file of another name
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        message = f"the optimizer or schedule keeps objects that are no data ({reason}); states"
        raise ResumeError(f"{message} hold data only. Choose another, or no states.") from error


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json_text(value, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def remove_state(folder: Path) -> bool:
    """Delete a state; False when there is none of that name. A half-deleted one has another name."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        aside = _set_aside(folder, "gone")
        return aside is not None and remove_folder(aside)
    except OSError as error:
        logger.warning("%s cannot be removed (%s): delete it yourself.", folder, error.strerror)
        return False


def _make_way(folder: Path) -> tuple[Path | None, Path]:
    """(what bore this name, under another now, or None; the name that is free)."""
    try:
        return _set_aside(folder, "old"), folder
    except OSError as error:
        beside = free_name(folder)
        logger.warning("%s cannot be replaced (%s): saved as %s", folder, error.strerror, beside)
        return None, beside


def clear_leftovers(output_dir: Path, names: Collection[str]) -> None:
    """Clear away what runs of these names left when they were killed while writing or deleting a state.

    A state that was to be replaced, and was not, gets its name back. No other run may write these
    names meanwhile.
    """
    name = "|".join(map(re.escape, names))
    _clear(output_dir, re.compile(rf"(?:{name})(?:-\d+|-step\d+)?-state"))


def give_name_back(folder: Path) -> None:
    """The same for one state that is to be read, if it is not there."""
    if not folder.exists():
        _clear(folder.parent, re.compile(re.escape(folder.name)))


def _clear(output_dir: Path, names: re.Pattern) -> None:
    for path in output_dir.iterdir() if output_dir.is_dir() else ():
        found = TEMPORARY_NAME.fullmatch(path.name)
        if not found or not names.fullmatch(found[1]) or not is_left(path, int(found[2])):
            continue
        if found[3] == "old" and not path.with_name(found[1]).exists():
            rename_folder(path, path.with_name(found[1]))
            logger.warning("%s has its name back; a run was killed while replacing it.", found[1])
        elif remove_folder(path):
            logger.info("removed %s, left by a run that was killed", path)


def longest_path(folder: Path) -> Path:
    """The longest path that writing a state of this name needs."""
    return _temporary_name(folder, "new") / rank_file(0)


def _temporary_name(folder: Path, purpose: str) -> Path:
    return folder.with_name(f".{folder.name}.{os.getpid()}.{purpose}.tmp")


def _set_aside(folder: Path, purpose: str) -> Path | None:
    """Rename what bears this name, if anything does, so that it can be deleted."""
    if not folder.exists():
        return None
    aside = _temporary_name(folder, purpose)
    shutil.rmtree(aside, ignore_errors=True)
    rename_folder(folder, aside)
    return aside


def open_state(path: str | Path, schema: str) -> SavedState:
    """The state in a folder, its files checked, nothing loaded yet.

    schema: that its snapshot must have. Raises ResumeError for anything else, with what it is.
    """
    try:
        return _open_state(Path(path), schema, f"resume = {path}")
    except OSError as error:
        message = f"cannot be read ({error}). Make it readable, or resume from another state."
        raise ResumeError(message, source=f"resume = {path}") from error


def _open_state(folder: Path, schema: str, source: str) -> SavedState:
    give_name_back(folder)
    if not folder.is_dir():
        raise ResumeError(f"no such folder.{_others(folder)}", source=source)
    snapshot = _read_json(folder / SNAPSHOT, source)
    found = snapshot.get("schema")
    if snapshot and found != schema:
        raise ResumeError(f"{_foreign_schema(found, schema)} {START_ANEW}", source=source)
    manifest = _read_json(folder / MANIFEST, source)
    if not snapshot or manifest.get("format") != FORMAT:
        raise ResumeError(_not_a_state(folder), source=source)
    problems = manifest_problems(manifest) or _damage(folder, manifest["files"])
    problems += snapshot_problems(snapshot)
    if problems:
        problems.append(Problem("Resume from another state."))
        raise ResumeError(problems, source=f"{source}: the state is damaged")
    return SavedState(folder, RunPosition(**manifest["position"]), manifest["run"], snapshot)


def _foreign_schema(found: object, wanted: str) -> str:
    found = str(found)[:60]
    if found.endswith("/v1"):
        return f"a state of the earlier version ({found}): those hold no adapter weights."
    return f"a state of another kind ({found}, expected {wanted})."


def _not_a_state(folder: Path) -> str:
    names = {entry.name for entry in folder.iterdir()}
    if names & set(ACCELERATE_FILES):
        return (
            "a state of accelerate, as sd-scripts writes them: its pickled files can run code when "
            f"opened and are not read. {START_ANEW}"
        )
    if {MANIFEST, SNAPSHOT} <= names:
        return f"damaged, or of a later version: {MANIFEST} or {SNAPSHOT} is not as expected."
    inside = [name for name in sorted(names) if (folder / name / MANIFEST).is_file()]
    hint = f" Inside it there are: {', '.join(inside)}." if inside else _others(folder)
    hint = hint or " Runs with save_state leave them in output_dir, with names that end in -state."
    return f"not a state: expected a folder with {MANIFEST} and {SNAPSHOT}.{hint}"


def _others(folder: Path) -> str:
    """The states beside a folder, for a message."""
    beside = folder.parent.iterdir() if folder.parent.is_dir() else []
    names = sorted(each.name for each in beside if (each / MANIFEST).is_file())
    return f" In {folder.parent} there are: {', '.join(names)}." if names else ""


def _read_json(path: Path, source: str) -> dict[str, Any]:
    """An object of JSON; empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        message = f"{path.name} cannot be read ({error}). Resume from another state."
        raise ResumeError(message, source=source) from error
    return value if isinstance(value, dict) else {}


def _damage(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> list[Problem]:
    """What differs from the sizes and hashes that were written with the files."""
    problems = []
    for name, facts in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            problems.append(Problem("is missing.", name))
        elif size != facts["bytes"]:
            problems.append(Problem(f"has {size} bytes, expected {facts['bytes']}.", name))
        elif sha256_of_file(path) != facts["sha256"]:
            problems.append(Problem("has other contents than were written.", name))
    return problems


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        message = f"cannot be read ({error}). Resume from another state."
        raise ResumeError(message, source=str(path)) from error
