"""What is on the device at the peak of a counted step, by what made it."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch
from torch import Tensor

from library.memory import ledger as counted
from library.memory.ledger import Ledger, Pool

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = tuple(f"{ROOT / name}{os.sep}" for name in ("library", "networks", "tools"))
"""Of ours. Packages may be installed beside them."""
DEPTH = 2
"""Of our own functions, from the innermost out, that name an owner."""
OWN_FILES = (str(Path(counted.__file__)), __file__)
"""Which note what others make."""


class Owner(NamedTuple):
    """maker: functions that made the tensor, the innermost first; in a backward pass its node before them"""

    shape: tuple[int, ...]
    dtype: torch.dtype
    maker: str


class PeakLedger(Ledger):
    """A ledger that also knows who made what was there when the most was in use."""

    def __init__(self, device: torch.device, granule: int) -> None:
        super().__init__(device, granule)
        self.events: list[tuple[int, int, Owner | None]] = []  # storage, bytes; born, or gone if None
        self.at_peak = 0  # how many events had been

    def _birth(self, tensor: Tensor, place: str) -> None:
        before = self.on_device.now
        super()._birth(tensor, place)
        size = self.on_device.now - before
        if not size:
            return
        owner = Owner(tuple(tensor.shape), tensor.dtype, maker())
        self.events.append((tensor.untyped_storage()._cdata, size, owner))
        if self.on_device.now == self.on_device.peak:
            self.at_peak = len(self.events)

    def _death(self, key: int, pool: Pool, size: int) -> None:
        super()._death(key, pool, size)
        if size and pool is self.on_device:
            self.events.append((key, size, None))

    def owners(self) -> list[tuple[Owner, int, int]]:
        """(owner, how many tensors, bytes) at the peak, the most bytes first."""
        alive: dict[int, tuple[int, Owner]] = {}
        for key, size, owner in self.events[: self.at_peak]:
            if owner is None:
                del alive[key]
            else:
                alive[key] = size, owner
        count, total = Counter[Owner](), Counter[Owner]()
        for size, owner in alive.values():
            count[owner] += 1
            total[owner] += size
        return [(owner, count[owner], size) for owner, size in total.most_common()]


def maker() -> str:
    """The functions of ours that run now, and the node whose backward pass does."""
    node = torch._C._current_autograd_node()
    names = " < ".join(name for _, name in zip(range(DEPTH), own_functions(sys._getframe())))
    return f"{node.name()}: {names}" if node is not None else names


def own_functions(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(FOLDERS) and file not in OWN_FILES:
            yield f"{Path(file).stem}.{frame.f_code.co_name}"
        frame = frame.f_back


def lines_of(ledger: PeakLedger, most: int) -> Iterator[str]:
    """The largest owners, for people; the others in one line."""
    owners = ledger.owners()
    for owner, count, size in owners[:most]:
        dtype = str(owner.dtype).removeprefix("torch.")
        shape = "x".join(map(str, owner.shape))
        yield f"{size / 2**20:10.2f} MiB {count:5} x {shape} {dtype}, {owner.maker}"
    rest = sum(size for _, _, size in owners[most:])
    yield f"{rest / 2**20:10.2f} MiB       in {len(owners[most:])} smaller kinds"
