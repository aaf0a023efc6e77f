"""What Ctrl-C and SIGTERM do outside the loop: from a program's first line to its last.

    while modules are imported   the process ends at once: nothing has begun
    while a run is prepared      Stopped is raised, so that everything is put away
    in the loop                  see stopping.py
    when the work is over        nothing

Standard library only: this comes before the imports that take seconds. A wrapper may forward a Ctrl-C
that the terminal has delivered already: what comes within a second is the same wish.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType

from library.errors import Stopped
from library.system.program import NOTHING_TRAINED, is_first_process

LAUNCHER_VARIABLES = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION", "RANK")
SECONDS_OF_ECHO = 1.0

Handler = Callable[[int, "FrameType | None"], None]
before_the_end: list[Callable[[], None]] = []
"""What has to be put away even when a second Ctrl-C ends the process at once."""


def signals() -> tuple[int, ...]:
    """Those that ask a run to stop; a terminal that closes asks too, unless nohup says otherwise."""
    found = [signal.SIGINT, signal.SIGTERM]
    closing = getattr(signal, "SIGHUP", None)
    if closing and signal.getsignal(closing) is not signal.SIG_IGN:
        found.append(closing)
    return tuple(found)


def listen(handler: Handler | signal.Handlers) -> None:
    for number in signals():
        signal.signal(number, handler)


def ignore() -> None:
    """From here on a stop would only spoil what is done. What is ignored stays so at the very end."""
    listen(signal.SIG_IGN)


class Interrupts:
    """Tells a second Ctrl-C from the echo of the first, in seconds of time.monotonic()."""

    def __init__(self) -> None:
        self.first: float | None = None

    def is_second(self, number: int, now: float) -> bool:
        """Note a signal; whether it is a Ctrl-C well after an earlier Ctrl-C."""
        if number != signal.SIGINT:
            return False
        if self.first is None:
            self.first = now
            return False
        return now - self.first > SECONDS_OF_ECHO


def end_at_once(number: int) -> None:
    """End this process as the signal does to a program that knows nothing of it."""
    for put_away in before_the_end:
        put_away()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def is_launched(environment: Mapping[str, str]) -> bool:
    """Whether accelerate launch or torchrun started this process; those pass signals on, repeatedly."""
    return any(name in environment for name in LAUNCHER_VARIABLES)


def say(text: str) -> None:
    """On standard error, from inside a handler: print might have been interrupted in the middle."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


def while_importing(number: int, frame: FrameType | None) -> None:
    """End: an exception could be lost, or shown, by whatever is being imported."""
    if is_first_process(os.environ):
        say(NOTHING_TRAINED)
    os._exit(128 + number)


class Preparing:
    """Raises Stopped once; a library that swallows it only delays the end to the next stage."""

    def __init__(self) -> None:
        self.interrupts = Interrupts()
        self.stopped: Stopped | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        second = self.interrupts.is_second(number, time.monotonic())
        if self.stopped is None:
            self.stopped = Stopped(number)
            raise self.stopped
        if second:
            end_at_once(number)


def heeding(main: Callable[[], int]) -> Callable[[], int]:
    """A program's main(), during which a stop is heeded and after which it is ignored."""

    def heeded() -> int:
        listen(Preparing())
        try:
            return main()
        finally:
            ignore()

    return heeded
