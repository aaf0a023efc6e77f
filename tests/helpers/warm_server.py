"""The server of warm.py: a process that has imported everything and becomes the programs it is asked for."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tests.helpers.warm import LEASE

MODULES = (
    "anima_train",
    "anima_train_network",
    "tools.average_lora",
    "tools.verify_resume",
    "tools.cache_latents",
    "tools.cache_text_encoder_outputs",
    "tools.convert_anima_root_to_kohya",
    "tools.convert_lora_format",
    "tools.import_config",
    "tools.doctor",
    "tools.generate",
    "tools.make_demo",
    "tools.merge_lora",
    "tools.preview_buckets",
    "tests.helpers.caching_process",
    "networks.lokr_anima",
    "networks.lora_anima",
    "accelerate.commands.launch",
    "bitsandbytes",
    "diffusers.models.autoencoders.autoencoder_kl_qwenimage",
    "prodigyopt",
    "schedulefree",
    "sentencepiece",
    "tensorboard",
    "torch.utils.tensorboard",
    "tokenizers",
    "tomlkit",
    "torch.distributed.run",
    "transformers.optimization",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.qwen2.tokenization_qwen2_fast",
    "transformers.models.t5.tokenization_t5_fast",
)


def main() -> None:
    here = Path(sys.argv[1])
    import_everything()
    answer(listening(here), here, [])


def listening(place: Path) -> socket.socket:
    """A socket that is there when it listens."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{place}.new")
    listener.listen(64)
    os.rename(f"{place}.new", place)
    return listener


def answer(listener: socket.socket, place: Path, leases: list[socket.socket | IO]) -> None:
    """Be the server at `place` until the last lease is gone; in a process that it forks, a program."""
    request = serve(listener, leases)
    listener.close()
    if request is None:
        place.unlink()
        place.with_suffix(".lock").unlink(missing_ok=True)
        os._exit(0)  # nothing is left to be done
    become(request)


def import_everything() -> None:
    """Whatever a program may import later."""
    import gc
    import importlib

    gc.disable()  # nothing is garbage yet
    for module in MODULES:
        with contextlib.suppress(ModuleNotFoundError):  # an optional package
            importlib.import_module(module)
    with contextlib.suppress(ImportError):  # made at the first loading of a model, in 0.2 s
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("qwen3")
    get_ready_to_fork()
    gc.enable()


def get_ready_to_fork() -> None:
    """Make sure that there is no other thread, and that what is shared stays shared."""
    import gc

    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: a fork would lack all but one"
    gc.collect()
    gc.freeze()


def serve(listener: socket.socket, leases: list[socket.socket | IO]) -> dict | None:
    """Fork at every request: returns in the new process what it is to be, here None at the end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([listener, *leases], [], [])
        for gone in [each for each in ready if each is not listener]:
            gone.close()
            leases.remove(gone)
        if listener in ready:
            connection, _ = listener.accept()
            if connection.recv(1) == LEASE:
                leases.append(connection)
            elif os.fork() == 0:
                for each in leases:
                    each.close()
                return attend(connection)
            else:
                connection.close()
        if not leases:
            return None


def attend(connection: socket.socket) -> dict:
    """In a process between the server and the program: start it and tell how it ended."""
    size, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
    content = b""
    while len(content) < int.from_bytes(size, "big"):
        content += connection.recv(1 << 16)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    program = os.fork()
    if program == 0:
        connection.close()
        return {**json.loads(content), "descriptors": descriptors}
    for descriptor in descriptors:
        os.close(descriptor)
    connection.sendall(b"%d\n" % program)
    if json.loads(content)["is_bound"]:
        ended = os.pidfd_open(program)
        if ended not in select.select([connection, ended], [], [])[0]:
            os.kill(program, signal.SIGKILL)
    _, status = os.waitpid(program, 0)
    with contextlib.suppress(OSError):  # nobody waits any more
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def become(request: dict) -> None:
    """This process is the program from here on."""
    import random

    import numpy

    os.setsid()
    for number, descriptor in enumerate(request["descriptors"]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.executable = request["python"]
    encoding = os.environ.get("PYTHONIOENCODING") or "utf-8"
    sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stderr = open(  # noqa: SIM115
        2, "w", buffering=1, encoding=encoding, errors="backslashreplace", closefd=False
    )
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    numpy.random.seed()
    with ending_at_once():
        first, *rest = request["argv"]
        if first == "-c":
            sys.argv = ["-c", *rest[1:]]
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(rest[0], vars(main))  # noqa: S102  as Python does
        elif first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *rest]
            sys.path[0] = str(Path(first).resolve().parent)
            runpy.run_path(first, run_name="__main__")


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """End the process as Python does, except that what was imported is not taken apart: 0.35 s.

    An error and an output that cannot be written go Python's own way.
    """
    code: object = None
    try:
        yield
    except SystemExit as end:
        code = end.code
    if code is not None and not isinstance(code, int):
        raise SystemExit(code)
    threading._shutdown()  # waits for the other threads
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(code)
    os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    main()
