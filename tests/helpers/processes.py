"""The project's programs as processes of their own.

warm.run and warm.start fork one that has imported everything: the usual way. Here is what is built on
them, and Python started anew, for tests of the start itself and of what a process imports or weighs.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.helpers import warm
from tests.helpers.paths import ROOT

TRAINER = "anima_train_network.py"
ACCELERATE = ("-m", "accelerate.commands.launch")


def python(
    *arguments: object, cwd: str | Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Python started anew, until its end; what it says is read as UTF-8."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=env, capture_output=True,
        encoding="utf-8", check=False,
    )  # fmt: skip


def run_code(
    code: str, *arguments: object, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    """A program given as text, forked like the others, until its end."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program.py"
        program.write_text(code, encoding="utf-8")
        return warm.run([str(program), *map(str, arguments)], env=env)


def start(argv: Sequence[str], **environment: str) -> subprocess.Popen:
    """The trainer, running. Leads a process group of its own."""
    command = [TRAINER, *argv]
    return warm.start(command, env=plain_environment(**environment), stderr=subprocess.PIPE)


def plain_environment(**more: str) -> dict[str, str]:
    """The environment without what a launcher, or a trainer in this process, left in it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "TORCHEL"))}
    return {**kept, **more}


def free_port() -> str:
    """A port of this machine on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start_ranks(processes: int, argv: Sequence[str], **more: str) -> list[subprocess.Popen]:
    """A program once for each rank, running, in the environment that torchrun makes."""
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), **more}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "ACCELERATE_USE_CPU": "true"}
    environments = [
        plain_environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(processes)
    ]
    return [warm.start(argv, env=env, stderr=subprocess.PIPE) for env in environments]


def processes_in(folder: Path) -> set[int]:
    """The numbers of the processes that work in a folder; none where there is no /proc."""
    found = set()
    for task in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(task / "cwd") == str(folder):
                found.add(int(task.name))
    return found


def ended(ranks: Sequence[subprocess.Popen]) -> str:
    """What the ranks say on standard error until their end; fails when one of them does."""
    with ThreadPoolExecutor(len(ranks)) as pool:  # none may wait for a reader of its pipe
        said = list(pool.map(lambda rank: rank.stderr.read(), ranks))
    assert [rank.wait() for rank in ranks] == [0] * len(ranks), [text[-2000:] for text in said]
    return "".join(said)


def read_until(process: subprocess.Popen, text: str) -> str:
    """What the process says on standard error, up to the line with `text`; fails when it ends first."""
    said = ""
    for line in process.stderr:
        said += line
        if text in line:
            return said
    raise AssertionError(f"ended with code {process.wait()} before saying {text!r}:\n{said}")
