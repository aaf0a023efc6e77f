"""Programs as processes of their own that need not import: forked from one that has imported all.

Importing takes seven seconds, a run of five steps one. A forked program has its own arguments, folder,
environment, standard streams and signals, and ends as any Python does. What it shares with the others
of a test session: what is imported, the environment that imports saw, and the seed of hash(). Where
starting is the point, use subprocess.

One server (warm_server.py) for all workers of a session; it ends when the last of them has gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.helpers.paths import ROOT

LEASE, PROGRAM = b"L", b"P"
DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd")
"""Of GPUs that torch computes on: NVIDIA's, its boards', WSL's, AMD's."""
lease: socket.socket | None = None
place: Path | None = None  # of the session's server, where it is not the one named by the session


def can_fork() -> bool:
    """Forking is safe on Linux, and where no driver of a GPU was woken before."""
    if sys.platform != "linux":
        return False
    if not any(map(os.path.exists, DRIVERS)):
        return True  # known without an import of two seconds
    import torch

    return not torch.cuda.is_available()


class Forked:
    """A running program; as much of subprocess.Popen as tests use. Pipes are text."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: str | Path = ROOT,
        env: Mapping[str, str] | None = None,
        stdin: int | IO | None = None,
        stdout: int | IO | None = None,
        stderr: int | IO | None = None,
        python: str | Path = sys.executable,
        server: Path | None = None,
    ) -> None:
        """argv: as after `python`, a path, or -m and a module, or -c and a program's text.

        It leads a process group of its own. python: what it starts when it starts Python. server: another
        than the session's; the program is killed when this process is.
        """
        self.args, self.returncode, self.pipes = list(argv), None, []
        env = dict(os.environ if env is None else env)
        request = {"argv": self.args, "cwd": str(cwd), "env": env, "python": str(python)}
        request["is_bound"] = server is not None
        ends = [self.end(number, given) for number, given in enumerate((stdin, stdout, stderr))]
        self.stdin, self.stdout, self.stderr = (ours for _, ours in ends)
        self.connection = connected(server, PROGRAM) if server else connect(PROGRAM)
        content = json.dumps(request).encode()
        socket.send_fds(self.connection, [len(content).to_bytes(4, "big")], [e for e, _ in ends])
        self.connection.sendall(content)
        for end in self.pipes:
            os.close(end)
        self.pid = int(self.answer())

    def end(self, number: int, given: int | IO | None) -> tuple[int, IO | None]:
        """The program's end of a standard stream, and ours if it is a pipe."""
        if given is None:
            return number, None
        if given == subprocess.DEVNULL:
            self.pipes.append(os.open(os.devnull, os.O_RDWR))
            return self.pipes[-1], None
        if given != subprocess.PIPE:
            return given.fileno(), None
        reading, writing = os.pipe()
        theirs, ours = (reading, writing) if number == 0 else (writing, reading)
        self.pipes.append(theirs)
        return theirs, open(ours, "w" if number == 0 else "r", encoding="utf-8")

    def answer(self) -> bytes:
        """The server's next line."""
        line = b""
        while not line.endswith(b"\n"):
            got = self.connection.recv(1)
            assert got, "the server of warm processes is gone"
            line += got
        return line

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            ready, _, _ = select.select([self.connection], [], [], timeout)
            if not ready:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self.answer())
            self.connection.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def start(argv: Sequence[str], **keywords: Any) -> Forked | subprocess.Popen:
    """A program as a process of its own; keywords: as those of Forked."""
    if can_fork():
        return Forked(argv, **keywords)
    keywords = {"cwd": ROOT, "encoding": "utf-8", "start_new_session": True, **keywords}
    keywords.pop("python", None)
    return subprocess.Popen([sys.executable, *argv], **keywords)


def run(argv: Sequence[str], **keywords: Any) -> subprocess.CompletedProcess:
    """A program until its end, with what it said; keywords: cwd, env and python."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        code = start(argv, stdout=out, stderr=err, **keywords).wait()
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode().replace("\r\n", "\n").replace("\r", "\n"))
    return subprocess.CompletedProcess(list(argv), code, *said)


def stand_in(argv: Sequence[str], server: Path) -> int:
    """Be there for a program while it runs, and end as it does. SIGINT and SIGTERM are passed on to it."""
    program = Forked(argv, cwd=Path.cwd(), server=server)

    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(program.pid, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    code = program.wait()
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def connect(kind: bytes) -> socket.socket:
    """A connection to the session's server."""
    return connected(session_server(), kind)


def session_server() -> Path:
    """Where the session's server listens, which is started if it is not there."""
    global lease, place
    if place is None:
        run_id = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
        place = Path(tempfile.gettempdir()) / f"warm-{run_id[:12]}.socket"
    if lease is None:
        lease = first_connection(place)
    return place


def connected(place: Path, kind: bytes) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(place))
    connection.sendall(kind)
    return connection


def first_connection(place: Path) -> socket.socket:
    """Establish that the server listens, whichever of the session's workers started it."""
    import fcntl

    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return connected(place, LEASE)
        place.unlink(missing_ok=True)  # of a server that was killed
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.warm_server", str(place)], cwd=ROOT, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        while not place.exists():
            assert server.poll() is None, "the server of warm processes did not start"
            time.sleep(0.05)
        return connected(place, LEASE)
