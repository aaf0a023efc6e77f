"""Tensors that wait in RAM and change on the device: they come, are changed there, and go back.

Both ways are beside the computation and beside each other. On the device is room for a few sets of tensors
at once; what follows a set was seen in the last round, and is fetched ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from library.memory.lanes import Lane, Mark, lane_of
from library.memory.swapping import Buffer, in_ram, room_of

SEATS = 3  # the set that changes, and two that are fetched

Homes = Callable[[Hashable], Sequence[Tensor]]


class Visits:
    """The coming and going of sets of tensors, each by a key.

    homes:  the tensors of a set in RAM, in the same order each time; pinned where copies are to overlap
    coming, going: a lane for each way
    """

    def __init__(
        self, device: torch.device, homes: Homes, coming: Lane, going: Lane | None = None
    ) -> None:
        self.device, self.homes = device, homes
        self.coming = coming
        self.going = lane_of(device) if going is None else going
        self.seats: list[Buffer] = []  # the one used longest ago first
        self.seated: dict[Hashable, Buffer] = {}
        self.following: dict[Hashable, Hashable] = {}  # key -> the one that came after it, last time
        self.last: Hashable = None
        self.leaving: deque[tuple[Mark, Sequence[Tensor]]] = deque()

    def begin(self) -> None:
        """A round begins: what comes first follows nothing, and what was fetched for nothing is old."""
        self.last = None
        self.forget()

    def come(self, key: Hashable) -> Sequence[Tensor]:
        """A set on the device, for what is computed from here on; it has to `leave`."""
        self.following[self.last], self.last = key, key
        seat = self.fetch(key)
        seat.arrive(self.coming)
        expected = key
        for _ in range(SEATS - 1):
            if (expected := self.following.get(expected)) in (None, key):
                break
            self.fetch(expected)
        return seat.views

    def leave(self, key: Hashable, changed: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copy back into each (home, tensor on the device), and let another set have the seat."""
        seat = self.seated.pop(key)
        seat.left = self.send(changed) if changed else self.going.now()

    def send(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Mark:
        """Copy into each (home, tensor on the device), which stays until that is done."""
        mark = self.going.copy(pairs, after=self.going.now())
        self.coming.follow(mark)  # whatever is fetched next may be one of these homes
        self.leaving.append((mark, [tensor for _, tensor in pairs]))
        while len(self.leaving) > SEATS:
            done, _ = self.leaving.popleft()
            self.going.wait(done)  # before the memory is given to what is computed next
        return mark

    def settle(self) -> None:
        """Let the host wait until everything is back, so that it can read and change what is in RAM."""
        self.going.finish()
        self.forget()

    def forget(self) -> None:
        """Let nothing that is on the device be taken for what is in RAM."""
        for seat in self.seated.values():
            seat.arrive(self.coming)
        self.seated.clear()

    def fetch(self, key: Hashable) -> Buffer:
        """The seat of a set, which is or will be there."""
        if key in self.seated:
            return self.seated[key]
        homes = self.homes(key)
        seat = self.free_seat(sum(map(room_of, homes)))
        seat.fill(0, homes, self.coming)
        self.seated[key] = seat
        return seat

    def free_seat(self, size: int) -> Buffer:
        """One with so many bytes, which nobody has, or which was fetched for nothing."""
        if len(self.seats) < SEATS:
            self.seats.append(Buffer(size, self.device, self.coming.now()))
            return self.seats[-1]
        taken = {id(seat) for seat in self.seated.values()}
        seat = next((each for each in self.seats if id(each) not in taken), None)
        if seat is None:
            key, seat = next((k, s) for k, s in self.seated.items() if k != self.last)
            del self.seated[key]
        if len(seat.memory) < size:
            self.coming.wait(seat.left)  # both lanes have done with the memory that goes
            seat.arrive(self.coming)
            self.seats.remove(seat)
            seat = Buffer(size, self.device, self.coming.now())
            self.seats.append(seat)
        return seat


def new_home(tensor: Tensor, device: torch.device) -> Tensor:
    """Memory in RAM for such a tensor, pinned where the device copies from there beside the computation."""
    return torch.empty_like(tensor, device="cpu", pin_memory=device.type == "cuda")


def home_of(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in RAM, where it is fetched from; itself where it is there already."""
    pinned = device.type == "cuda"
    return tensor if tensor.device.type == "cpu" and tensor.is_pinned() == pinned else in_ram(tensor, pinned=pinned)
