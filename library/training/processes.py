"""What the processes of a run do together, on one machine or several.

They wait for one another as long as all of them live, and one that is gone ends the run with a message.
"""

from __future__ import annotations

import atexit
import contextlib
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from library.data.picture_folders import CACHE_FOLDER
from library.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

BEAT = 5.0  # seconds between two signs of life
SILENCE = timedelta(minutes=10)  # after which a process counts as gone, where ddp_timeout says nothing
LOST_TEXTS = (
    "connection closed by peer", "connection reset by peer", "broken pipe", "timed out waiting",
    "socket timeout", "connection refused", "no route to host", "ncclremoteerror",
)  # fmt: skip
ADVICE = (
    "See what it, or the machine that it ran on, says; then start all of them again, with --resume "
    "if there is a state."
)


class ProcessLost(UserError):
    """Another process of the run is gone, or cannot be reached."""

    is_cause = False


class Pulse:
    """A process's signs of life for the others, and what it hears of theirs, on a thread of its own.

    That thread alone talks to the store: nothing else can be held up by a machine that is silent.

    store:   what all of them write to and read, as torch.distributed's
    silence: how long one that is waited for may give no sign; each looks by its own clock
    beat:    seconds between two signs
    """

    def __init__(
        self, store: Any, rank: int, world_size: int, silence: timedelta, beat: float = BEAT
    ) -> None:
        self.store = store.clone() if hasattr(store, "clone") else store  # a connection of its own
        self.rank, self.world_size = rank, world_size
        self.silence, self.beat = silence.total_seconds(), beat
        self.wanted = self.passed = 0  # waits that were begun, and those for which all have come
        self.others = [each for each in range(world_size) if each != rank]
        self.signs: dict[int, tuple[int, float]] = {}  # of each, how many, and when that was first seen
        self.answered = time.monotonic()  # the store
        self.lost = ""  # what is known of one that is gone
        self.is_over, self.turn, self.news = (threading.Event() for _ in range(3))
        self.thread = threading.Thread(target=self._talk, name="pulse", daemon=True)
        self.thread.start()
        atexit.register(self.end)

    def end(self) -> None:
        """Give no more signs, and tell the others, who need not wait to notice."""
        atexit.unregister(self.end)
        self.is_over.set()
        self.turn.set()
        self.thread.join(timeout=1.0)

    def wait_for_all(self) -> None:
        """Until every process is here, however long it takes. Raises ProcessLost where one is gone."""
        self.wanted += 1
        self.turn.set()
        while self.passed < self.wanted:
            self.news.wait(0.5)
            self.news.clear()
            is_deaf = time.monotonic() - self.answered > self.silence
            if self.passed < self.wanted and (self.lost or is_deaf):
                gone = self.lost or "the first process of the run cannot be reached."
                raise ProcessLost(f"{gone} {ADVICE}")

    def _talk(self) -> None:
        try:
            announced, given, pause = 0, 0.0, self.beat
            while not self.is_over.is_set():
                if time.monotonic() - given >= self.beat:
                    self._add(f"alive {self.rank}", 1)
                    given = time.monotonic()
                if announced < self.wanted:
                    announced, pause = self.wanted, 0.01
                    self._add(f"here {announced}", 1)
                pause = min(2 * pause, 0.5) if self._is_waiting() else self.beat
                self.turn.wait(min(pause, self.beat))
                self.turn.clear()
            self._add(f"ended {self.rank}", 1)
        except RuntimeError:  # the store is in the first process, or in what started it
            self.lost = self.lost or "the first process of the run is gone."
        self.news.set()

    def _add(self, name: str, count: int) -> int:
        total = self.store.add(name, count)
        self.answered = time.monotonic()
        return total

    def _is_waiting(self) -> bool:
        """Look for signs of the others, and whether all have come: one may end after it has."""
        if self.passed == self.wanted:
            return False
        losses = [loss for rank in self.others if (loss := self._listen(rank))]
        has_all = self._add(f"here {self.wanted}", 0) >= self.world_size
        if has_all:
            self.passed = self.wanted
        elif losses:
            self.lost = losses[0]
        if has_all or losses:
            self.news.set()
        return not has_all

    def _listen(self, rank: int) -> str:
        """What is known of a process that is gone; "" of one that lives."""
        count, now = self._add(f"alive {rank}", 0), time.monotonic()
        if rank not in self.signs or count != self.signs[rank][0]:
            self.signs[rank] = count, now
        who = f"process {rank} (of {self.world_size}, counted from 0)"
        if self._add(f"ended {rank}", 0):
            return f"{who} has ended."
        if now - self.signs[rank][1] > self.silence:
            return f"{who} has given no sign of life for {self.silence:.0f} s."
        return ""


_pulse: Pulse | None = None  # torch has one group of all processes


def begin(accelerator: Accelerator, silence: timedelta | None) -> None:
    """Give signs of life from here on, where there are others. silence: SILENCE when None."""
    global _pulse
    if accelerator.num_processes > 1:
        store = torch.distributed.distributed_c10d._get_default_store()
        rank, world_size = accelerator.process_index, accelerator.num_processes
        _pulse = Pulse(
            torch.distributed.PrefixStore("pulse", store), rank, world_size, silence or SILENCE
        )


def wait_for_all(accelerator: Accelerator) -> None:
    """Until every process is here: a GPU's own group gives up after ten minutes. Raises ProcessLost."""
    if accelerator.num_processes > 1:
        assert _pulse, "begin() comes first"
        _pulse.wait_for_all()


def is_so_anywhere(accelerator: Accelerator, fact: bool) -> bool:
    """Whether something is so in one process at least. Every process calls it, and waits for the others."""
    found = torch.tensor(float(fact), device=accelerator.device)
    return accelerator.reduce(found, reduction="sum").item() > 0


def have_one_disk(accelerator: Accelerator, folders: Iterable[Path]) -> bool:
    """Whether all processes see what the first one writes into the caches of these folders.

    Every process calls it, and gets the same answer.
    """
    from accelerate.utils import broadcast_object_list, gather_object

    names = [folder / CACHE_FOLDER for folder in sorted(set(folders))]
    wait_for_all(accelerator)
    token = f".{secrets.token_hex(8)}.tmp"  # one that is left is cleared away like all such names
    made = [folder / token for folder in names] if accelerator.is_main_process else []
    with contextlib.suppress(OSError):  # what cannot be written is not shared
        for file in made:
            file.parent.mkdir(exist_ok=True)
            file.touch()
    (token,) = broadcast_object_list([token])
    seen = gather_object([all((folder / token).exists() for folder in names)])
    for file in made:
        file.unlink(missing_ok=True)
    return all(seen)


def loss_of(error: BaseException) -> ProcessLost | None:
    """What an error of torch.distributed says of another process, if it is that."""
    if not isinstance(error, RuntimeError) or not torch.distributed.is_initialized():
        return None
    words = str(error)
    unreachable = torch.distributed.DistNetworkError, torch.distributed.DistStoreError
    if not (isinstance(error, unreachable) or any(each in words.lower() for each in LOST_TEXTS)):
        return None
    first = words.strip().splitlines()[0] if words.strip() else type(error).__name__
    return ProcessLost(f"another process of the run is gone, or cannot be reached ({first}). {ADVICE}")


@contextlib.contextmanager
def losses_told() -> Iterator[None]:
    """While inside: an error that means that another process is gone becomes a ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        if lost := loss_of(error):
            raise lost from error
        raise
