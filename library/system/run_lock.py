"""One run at a time writes files of a name into a folder: a lock file from its start to its end.

It says which process holds it. One that is gone loses it to the next run; whether one on another
computer is gone cannot be known from here.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from enum import Enum, auto
from pathlib import Path
from typing import Any

import psutil

from library.errors import OutputError, Problem
from library.system import stop_signals
from library.system.files import remove_file, replace_file

CLOCK_SKEW = 60.0  # seconds by which two readings of when this computer started may differ


class Fate(Enum):
    """What became of the process that a lock file names."""

    LIVE = auto()
    GONE = auto()
    UNKNOWN = auto()  # it is, or was, on another computer


def lock_file(folder: Path, name: str) -> Path:
    return folder / f".{name}.lock"


def started(process: int) -> str | None:
    """When a process began, as no later one of its number did; None when there is none."""
    try:
        if sys.platform == "linux":
            stat = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
            status, *fields = stat.rpartition(")")[2].split()
            return None if status in "ZX" else fields[18]  # in ticks since the computer started
        found = psutil.Process(process)
        return None if found.status() == psutil.STATUS_ZOMBIE else f"{found.create_time():.2f}"
    except (psutil.NoSuchProcess, OSError):
        return "unknown" if psutil.pid_exists(process) else None


def own() -> dict[str, Any]:
    """What tells this process from every other."""
    return {
        "process": os.getpid(),
        "started": started(os.getpid()),
        "host": platform.node(),
        "boot": _content("/proc/sys/kernel/random/boot_id"),
        "processes": _link("/proc/self/ns/pid"),
        "time": time.time(),
    }


def fate(holder: dict[str, Any]) -> Fate:
    """What became of the process that a lock file names."""
    here = own()
    if holder["host"] != here["host"]:
        return Fate.UNKNOWN
    if holder["boot"] != here["boot"]:  # this computer started anew, or another one has its name
        return Fate.GONE if holder["time"] < psutil.boot_time() + CLOCK_SKEW else Fate.UNKNOWN
    if holder["processes"] != here["processes"]:
        return Fate.UNKNOWN  # of another container
    found = started(holder["process"])
    gone = found is None or holder["started"] not in (found, "unknown")
    return Fate.GONE if gone else Fate.LIVE


def read_lock(file: Path) -> dict[str, Any] | None:
    """What a lock file says; None when there is none. Raises OutputError when it says nothing."""
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        kinds: dict[str, tuple[type, ...]] = {"process": (int,), "host": (str,), "time": (int, float)}
        is_whole = all(isinstance(holder.get(key), kind) for key, kind in kinds.items())
        if is_whole and 0 < holder["process"] < 2**31:
            return {**dict.fromkeys(("started", "boot", "processes")), **holder}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    raise OutputError(f"says nothing. If no run writes here, delete it: {file}", source=str(file))


def describe(holder: dict[str, Any]) -> str:
    try:
        since = datetime.fromtimestamp(holder["time"]).isoformat(" ", "seconds")
    except (ValueError, OverflowError, OSError):
        since = "an unknown time"
    return f"process {holder['process']} on {holder['host']}, since {since}"


def problem_of(file: Path, holder: dict[str, Any]) -> Problem | None:
    """Why a run cannot begin beside the one that a lock file names; None when that is gone."""
    where, who = str(file.parent), describe(holder)
    name = file.name.removeprefix(".").removesuffix(".lock")
    what = fate(holder)
    if what is Fate.LIVE:
        text = f"another run writes {name} here ({who}). Stop it, wait for its end, or choose "
        return Problem(f"{text}another output_name or output_dir.", source=where)
    if what is Fate.UNKNOWN:
        text = f"a run on another computer writes {name} here, or was killed there ({who}); this "
        text += f"computer cannot tell. If it is over, delete {file}; else choose another "
        return Problem(f"{text}output_name or output_dir.", source=where)
    return None


def lock_problems(folder: Path, names: Collection[str]) -> list[Problem]:
    """Why a run that writes these names could not begin now; nothing is changed."""
    problems: list[Problem] = []
    for file in (lock_file(folder, name) for name in sorted(names)):
        try:
            holder = read_lock(file)
        except OutputError as error:
            problems += error.problems
            continue
        problem = problem_of(file, holder) if holder else None
        problems += [problem] if problem else []
    return problems


def writers_of(state: Path) -> list[str]:
    """The runs that may still write the state that is to be read, in words."""
    found = []
    for file in sorted(state.parent.glob(".*.lock")):
        name = file.name.removeprefix(".").removesuffix(".lock")
        with suppress(OutputError):  # of whom it is cannot be told; who writes there will be told
            holder = read_lock(file) if state.name.startswith(f"{name}-") else None
            if holder and holder["process"] != os.getpid() and fate(holder) is not Fate.GONE:
                found.append(describe(holder))
    return found


@contextmanager
def claimed(folder: Path, names: Collection[str]) -> Iterator[list[str]]:
    """While inside: no other run writes files of these names into the folder.

    Yields a sentence for each lock that was taken over. Raises OutputError.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(own())
    notes: list[str] = []
    held: list[Path] = []

    def release() -> None:
        for file in held:
            with suppress(OSError, ValueError):  # it is gone with its folder, or another's: not text
                if file.read_text(encoding="utf-8") == text:
                    remove_file(file)
        if is_new:
            with suppress(OSError):  # there is something in it, as there should be
                folder.rmdir()

    stop_signals.before_the_end.append(release)
    try:
        for name in sorted(names):
            notes += _take(lock_file(folder, name), text)
            held.append(lock_file(folder, name))
        yield notes
    finally:
        release()
        stop_signals.before_the_end.remove(release)


def _take(file: Path, text: str) -> list[str]:
    """Make a lock file; returns what is to be said of the one that was there."""
    notes: list[str] = []
    while True:
        try:
            with open(file, "x", encoding="utf-8") as lock:
                lock.write(text)
            return notes
        except FileExistsError:
            holder = read_lock(file)
        except OSError:
            remove_file(file)  # without its content it would keep every run away
            raise
        if holder is None:
            continue  # its run has ended just now
        if problem := problem_of(file, holder):
            raise OutputError(problem)
        if _remove_of(file, holder):
            notes.append(f"{file.name} is of a run that was killed ({describe(holder)}).")


def _remove_of(file: Path, holder: dict[str, Any]) -> bool:
    """Remove the lock file of a process that is gone, and no other's that came in between."""
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        replace_file(file, aside)
    except FileNotFoundError:
        return False
    if read_lock(aside) == holder:
        remove_file(aside)
        return True
    replace_file(aside, file)
    return False


def _content(file: str) -> str | None:
    with suppress(OSError):
        return Path(file).read_text(encoding="ascii").strip()
    return None


def _link(file: str) -> str | None:
    with suppress(OSError):
        return os.readlink(file)
    return None
