"""pytest's workers as forks of one process that has imported and collected all tests.

pytest-xdist starts a new Python for each of its workers, and each imports and collects everything for
itself: eight seconds. It lets one say what is started instead. That is this file, run by its path: it asks
the session's server to fork, and lends the fork its standard streams. A fork collects too, as xdist
wants it, from modules that are there: one second.

The server ends when the process of pytest that started it has gone.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__" and not __package__:  # run by path
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.helpers import warm, warm_server
from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from execnet import XSpec

server: subprocess.Popen | None = None


def fork_for(specs: Iterable[XSpec], place: Path, chosen: Iterable[str]) -> None:
    """Let xdist's `specs` of local workers start forks of a server at `place`, which is started here.

    chosen: the folders, files and tests that pytest was told to collect
    """
    global server
    command = [sys.executable, "-m", "tests.helpers.workers", str(place), *chosen]
    server = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while not place.exists():
        assert server.poll() is None, "the server of workers did not start"
        time.sleep(0.02)
    for spec in specs:
        if spec.popen and not spec.python:
            spec.python = shlex.join(forking_python(place))


def forking_python(place: Path) -> list[str]:
    """A command for `python` that has the server at `place` fork, and is there as long as the fork."""
    return [sys.executable, "-S", str(Path(__file__)), str(place)]


def forking_program(folder: Path, anew: str | None = None) -> Path:
    """The same as one file, written to `folder`, for the session's server: for programs that start Python.

    Python itself where a process cannot be forked, and for what has the text `anew` in its words.
    """
    if not warm.can_fork():
        return Path(sys.executable)
    lines = ["#!/bin/sh", f'exec {shlex.join(forking_python(warm.session_server()))} "$@"']
    if anew:
        started = f'exec {shlex.quote(sys.executable)} "$@"'
        lines.insert(1, f'case "$*" in *{shlex.quote(anew)}*) {started};; esac')
    program = folder / "python"
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o755)
    return program


def serve(place: Path, chosen: list[str]) -> None:
    """Import, collect, and fork a worker at every request, as long as standard input is open.

    Programs of tests come from a fork of its own, which knows nothing of the tests.
    """
    session = open(os.dup(0))  # noqa: SIM115  it lasts as long as this process
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    warm_server.import_everything()
    warm.place = place.with_name(f"warm-{place.name}")
    programs = warm_server.listening(warm.place)
    if os.fork() == 0:
        session.close()
        warm_server.answer(programs, warm.place, [])
        return
    programs.close()
    warm.lease = warm.connected(warm.place, warm.LEASE)
    collect(chosen)
    warm_server.answer(warm_server.listening(place), place, [session])


def collect(chosen: list[str]) -> None:
    """Import the tests as pytest does. What is wrong with them the workers tell."""
    from tqdm import tqdm

    interval, tqdm.monitor_interval = tqdm.monitor_interval, 0  # else it starts a thread
    compile_together(chosen)
    look_for_tests(chosen)
    tqdm.monitor_interval = interval
    warm_server.get_ready_to_fork()


def look_for_tests(places: Iterable[str]) -> None:
    import pytest

    pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *places])


def compile_together(chosen: list[str]) -> None:
    """In folders whose tests are new, let each core compile a part of them, which pytest keeps beside them.

    Rewriting the asserts of all tests takes ten seconds.
    """
    folders = [Path(place) for place in chosen if os.path.isdir(place)]
    files = [str(file) for folder in folders for file in sorted(folder.rglob("test_*.py"))]
    new = [file for file in files if not compiled(Path(file))]
    cores = os.cpu_count() or 1
    parts = [new[number::cores] for number in range(cores)] if len(new) > 2 * cores else []
    helpers = []
    for part in parts:
        if helper := os.fork():
            helpers.append(helper)
        else:
            look_for_tests(part)
            os._exit(0)
    for helper in helpers:
        os.waitpid(helper, 0)


def compiled(file: Path) -> list[Path]:
    """What pytest keeps of a test file."""
    return list((file.parent / "__pycache__").glob(f"{file.stem}.*-pytest-*.pyc"))


def main() -> int:
    place, *words = sys.argv[1:]
    if not __package__:  # as a Python that forks
        return warm.stand_in(words[words[:1] == ["-u"] :], Path(place))
    serve(Path(place), words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
