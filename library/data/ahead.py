"""What is made of a batch before its step, beside the computation: draws, conditioning, copies on the device.

Draws are functions of a sample's place in the run, so that they are the same whenever they are made. Where
the device has streams, the copies lie on one of their own and the computation waits for them when it takes
the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from library.memory.lanes import lane_of

if TYPE_CHECKING:
    import torch

    from library.data.data_types import Batch, Drawn
    from library.memory.lanes import Lane


class Ahead:
    """Prepares batches on the loader's thread, and hands them to the step.

    draw:    what is drawn for a batch
    collate: the conditioning of a batch's texts; it has `.to(device)`
    """

    def __init__(
        self,
        device: torch.device,
        draw: Callable[[Batch], Drawn],
        collate: Callable[[Any], Any],
        lane: Lane | None = None,
    ) -> None:
        self.device, self.draw, self.collate = device, draw, collate
        self.lane = lane or lane_of(device)

    def make(self, batch: Batch) -> Batch:
        """On the CPU: the batch with its draws and, where it has texts, its conditioning."""
        batch = replace(batch, drawn=self.draw(batch))
        if batch.texts is not None:
            batch = replace(batch, conditioning=self.collate(batch.texts))
        return batch

    def send(self, batch: Batch) -> Batch:
        """Begin to copy it to the device; pixels stay, since many may be ahead."""
        if not self.lane.is_beside or batch.latents is None:
            return batch
        with self.lane.beside():
            moved = batch.to(self.device)
        return replace(moved, sent=self.lane.reached())

    def take(self, batch: Batch) -> Batch:
        """The batch on the device, ready for what is computed from here on."""
        if batch.sent is None:
            return batch.to(self.device)
        self.lane.wait(batch.sent)
        self.lane.receive(batch.tensors())
        return replace(batch, sent=None)
