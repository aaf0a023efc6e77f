"""A good end for a running loop: asked for from outside, or forced by an error.

Ctrl-C and SIGTERM end the run after the step in progress; so does a file `save_quit` in the output
folder, while `save` only has everything saved. An error that ends the run has its last update saved
first. What is asked of one process is done by all, at the same step.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from library.errors import UserError
from library.system import stop_signals
from library.system.files import remove_file
from library.system.stop_signals import Interrupts, Preparing, is_launched
from library.training.processes import ProcessLost, loss_of
from library.watching.monitor import AlertError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from library.data.data_types import RunPosition
    from library.saving.run_files import RunFiles

logger = logging.getLogger(__name__)

PROGRAM_START = time.time()
OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "out of memory")
MEMORY_ADVICE = (
    "Set vram_target, or a smaller one; or gradient_checkpointing, then cpu_offload_checkpointing and blocks_to_swap, and cache_latents "
    "and cache_text_encoder_outputs: a run may go on with these changed. Or lower batch_size or the "
    "resolution."
)


class Request(IntEnum):
    """What is asked of the loop; the larger wins."""

    NOTHING = 0
    SAVE = 1
    QUIT = 2


REQUEST_FILES = {"save": Request.SAVE, "save_quit": Request.QUIT}


class OutOfMemory(UserError):
    """A device, or the host, has no more memory to give."""


class StopRequests:
    """What is asked of a running loop from outside; signals are listened to while inside.

    folder:  where the files `save` and `save_quit` are looked for, by the first process
    began:   seconds since 1970; such files from before were not meant for this run
    kept:    when the files were written that were seen and cannot be removed, by name
    quits:   a request to end the run was agreed on
    """

    def __init__(self, folder: Path, accelerator: Accelerator, began: float = PROGRAM_START) -> None:
        self.folder, self.began = folder, began
        self.is_main = accelerator.is_main_process
        self.num_processes = accelerator.num_processes
        asked = accelerator.init_handler if self.num_processes > 1 else None
        self.timeout = asked.timeout if asked else None  # torch's own when None
        self.received = Request.NOTHING
        self.interrupts = Interrupts()
        self.quits = False
        self.group: Any = None
        self.handlers: dict[int, Any] = {}
        self.kept: dict[str, float] = {}

    def __enter__(self) -> None:
        if self.is_main:
            self.remove_earlier_files()
        if self.num_processes > 1:  # apart from the devices' group, so that no device is waited for
            self.group = torch.distributed.new_group(backend="gloo", timeout=self.timeout)
        if threading.current_thread() is threading.main_thread():
            earlier = {each: signal.signal(each, self.on_signal) for each in stop_signals.signals()}
            self.handlers = earlier
            for handler in earlier.values():
                if isinstance(handler, Preparing) and handler.stopped:
                    raise handler.stopped  # something kept it from ending the run before

    def __exit__(self, *error: object) -> None:
        for number, handler in self.handlers.items():
            is_over = isinstance(handler, Preparing)  # the loop is what was prepared
            signal.signal(number, signal.SIG_IGN if is_over else handler)
        self.handlers = {}

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Remember the wish. A second Ctrl-C ends the process, unless a launcher repeats the first."""
        is_first = self.interrupts.first is None
        can_leave = number == signal.SIGINT and not is_launched(os.environ)
        if self.interrupts.is_second(number, time.monotonic()) and can_leave:
            stop_signals.end_at_once(number)
        if self.received is Request.QUIT and not (can_leave and is_first):
            return
        self.received = Request.QUIT
        text = "Stopping after this step, with everything saved."
        stop_signals.say(text + " Ctrl-C again leaves at once." * can_leave)

    def poll(self) -> Request:
        """What is asked for now, the same in every process; files that ask are consumed."""
        wanted = max(self.received, self.asked_by_file() if self.is_main else Request.NOTHING)
        if self.group is not None:
            agreed = torch.tensor(int(wanted))
            torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX, self.group)
            wanted = Request(int(agreed))
        self.quits |= wanted is Request.QUIT
        return Request(wanted)

    def asked_by_file(self) -> Request:
        wanted = Request.NOTHING
        for name, written in self.files():
            if self.kept.get(name) != written:
                wanted = max(wanted, REQUEST_FILES[name])
                if self.consume(name, written):
                    logger.info("%s: seen and removed.", self.folder / name)
        return wanted

    def remove_earlier_files(self) -> None:
        for name, written in self.files():
            if written < self.began and self.consume(name, written):
                logger.warning("%s is from before this run and was removed.", self.folder / name)

    def files(self) -> Iterator[tuple[str, float]]:
        """(name, when it was written) of the files that ask for something."""
        for name in REQUEST_FILES:
            with contextlib.suppress(OSError):  # most of the time there is none
                facts = os.stat(self.folder / name)
                if stat.S_ISREG(facts.st_mode):
                    yield name, facts.st_mtime

    def consume(self, name: str, written: float) -> bool:
        """Remove such a file. One that cannot be removed asks no second time until it is changed."""
        removed = remove_file(self.folder / name)
        if not removed:
            self.kept[name] = written
        return removed


@contextlib.contextmanager
def rescue(files: RunFiles, position: RunPosition) -> Iterator[None]:
    """While inside: an error that ends the run has its last update saved, and says where it is.

    Before the first update there is nothing to save, and nothing is waited for.
    """
    first = position.step
    try:
        yield
    except Exception as error:
        out_of_memory = is_out_of_memory(error)
        if out_of_memory:
            traceback.clear_frames(error.__traceback__)  # they hold what the step had in memory
        if position.step == first:
            end = files.describe_last()
        else:
            end = files.rescue(position, together=isinstance(error, AlertError))
        if isinstance(error, UserError):
            *others, last = error.problems
            last = replace(last, message=f"{last.message} {end}")
            raise type(error)([*others, last]) from None
        if lost := loss_of(error):
            raise ProcessLost(f"{lost.problems[-1].message} {end}") from None
        if out_of_memory:
            what = f"no more memory at step {position.step + 1} ({str(error).splitlines()[0]})."
            raise OutOfMemory(f"{what} {MEMORY_ADVICE} {end}") from None
        logger.error("step %d failed. %s", position.step + 1, end)
        raise


def is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)
