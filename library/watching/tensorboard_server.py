"""The TensorBoard server of a run: a process that ends with the run, however that ends."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from library.errors import ConfigError

if TYPE_CHECKING:
    from library.settings.flags.logging import LoggingOptions

logger = logging.getLogger(__name__)

PORTS_TRIED = 20

SERVER_PROGRAM = """
import os, subprocess, sys, threading
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def end_with_the_run():
    os.read(0, 1)
    server.terminate()
threading.Thread(target=end_with_the_run, daemon=True).start()
try:
    sys.exit(server.wait())
finally:
    server.kill()
"""
"""Runs the server and ends it when standard input closes: that happens, on any system, also when the
training process is killed."""


class TensorBoardServer:
    """`tensorboard` in a process of its own, which ends with this one, however this one ends."""

    def __init__(self, logdir: Path, host: str, port: int, log_file: Path) -> None:
        self.url = f"http://{host}:{port}/"
        server = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir)]
        server += ["--host", host, "--port", str(port)]
        with log_file.open("w", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVER_PROGRAM, *server],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        """End the server and wait until it is gone."""
        assert self.process.stdin, "made with a pipe"
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_server(options: LoggingOptions, root: Path, run_dir: Path) -> TensorBoardServer | None:
    """The server that --auto_start_tensorboard asks for, of all runs' logs; None without it."""
    if not options.auto_start_tensorboard:
        return None
    port = free_port(options.tensorboard_host, options.tensorboard_port)
    if port != options.tensorboard_port:
        logger.warning("tensorboard_port %d is taken: using %d", options.tensorboard_port, port)
    logdir = Path(options.tensorboard_logdir or root)
    host = options.tensorboard_host
    return TensorBoardServer(logdir, host, port, run_dir / "tensorboard_server.log")


def free_port(host: str, first: int, tried: int = PORTS_TRIED) -> int:
    """The first of `tried` ports from `first` on that nothing listens at."""
    last = min(first + tried, 65536) - 1
    for port in range(first, last + 1):
        with socket.socket() as probe:
            if sys.platform != "win32":  # there, this option would allow taking a port in use
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except (socket.gaierror, UnicodeError):  # no such host, or a name that none has
                break
            except OSError:
                continue
            return port
    raise ConfigError(
        f"--tensorboard_port: nothing free at {host} from {first} to {last}. Choose another port "
        f"or tensorboard_host, or leave auto_start_tensorboard out."
    )
