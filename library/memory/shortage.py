"""What a run does about memory of the device while it trains: cheaper modes once, and giving back.

A count of a step cannot know what else is on the card, so that a choice of modes may turn out too large in
the first steps. Where the driver then uses RAM instead of refusing, nothing fails and everything is slow.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from library.device_utils import clean_memory_on_device
from library.memory.modes import SavesMemory, acting_modes, describe_modes, enable_modes
from library.memory.planning import candidates, kept_names
from library.memory.swapping import BUFFERS

if TYPE_CHECKING:
    from library.settings.flags.loop import LoopOptions
    from library.settings.run_config import TrainConfig

FIRST_STEPS = 3
NEAR = 0.9  # of the card: from here on what is held in reserve may already lie in RAM
WORTH_IT = 0.05  # of the card: a reserve below is not worth waiting for the device


def next_cheaper(cfg: TrainConfig, loop: LoopOptions, blocks: int) -> LoopOptions | None:
    """The combination after `loop` on the way to less memory, options set by the user kept.

    After the last one all blocks are swapped, and where some are, those that are left; but for weights that
    train, which are where they are from the first step on. None when there is no other.
    """
    kept = kept_names(cfg) | ({"blocks_to_swap"} if cfg.whole else set())
    if loop.blocks_to_swap:
        ends = loop.blocks_to_swap >= blocks or "blocks_to_swap" in kept
        return None if ends else replace(loop, blocks_to_swap=blocks)
    ways = candidates(loop, kept)
    acting = [acting_modes(way) for way in ways]
    place = acting.index(acting_modes(loop)) + 1
    if place < len(ways):
        return ways[place]
    if "blocks_to_swap" in kept or blocks <= BUFFERS:
        return None
    return replace(loop, blocks_to_swap=blocks)


@dataclass
class StepDown:
    """The one step to cheaper modes that a run with --vram_target may take in its first steps.

    loop:      the options with the modes that act; start: the step at which the run begins
    processes: how many train, all with the same options. Several try a step each by itself before they
               make it together: one that fails amid an exchange would leave the others waiting
    """

    cfg: TrainConfig
    loop: LoopOptions
    start: int
    processes: int = 1
    taken: bool = False

    def is_there(self, step: int, blocks: int) -> bool:
        """Whether a run at this step, with a model of so many blocks, can step down."""
        early = step < self.start + FIRST_STEPS
        may = self.cfg.loop.vram_target and early and not (self.taken or self.is_fixed)
        return bool(may) and next_cheaper(self.cfg, self.loop, blocks) is not None

    @property
    def is_fixed(self) -> bool:
        """Torch ends with an internal error where passes without exchange meet a static graph."""
        return self.processes > 1 and self.cfg.distributed.ddp_static_graph

    def notes(self) -> list[str]:
        """Lines for the log, where it cannot be taken."""
        if not (self.cfg.loop.vram_target and self.is_fixed):
            return []
        told = (
            "ddp_static_graph: where memory is too short in the first steps the run ends; the step is not "
            "made again with cheaper modes. Leave ddp_static_graph out for that."
        )
        return [told]

    def take(self, step: int, model: SavesMemory, device: torch.device) -> list[str]:
        """Let the model save more, when nothing is kept of a pass; lines for the log."""
        cheaper = next_cheaper(self.cfg, self.loop, model.num_blocks)
        assert cheaper is not None, "is_there was asked"
        if device.type == "cuda":  # nothing may be on its way to buffers that go
            torch.cuda.synchronize(device)
        clean_memory_on_device(device)
        lines = enable_modes(cheaper, model, device)
        told = (
            f"step {step + 1}: the device's memory was too short for {describe_modes(self.loop)}. The "
            f"step is made again with {describe_modes(cheaper)}, as if the run had begun so; if that is "
            "too much as well, it ends. Close other programs, or name a smaller vram_target."
        )
        self.loop, self.taken = cheaper, True
        return [told, *lines]


class BetweenBuckets:
    """Gives reserved memory back when another size of picture begins, where the driver would spill."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.watches = device.type == "cuda" and driver_spills(sys.platform, platform.release())
        self.size: tuple[int, ...] | None = None

    def before(self, size: tuple[int, ...]) -> None:
        """size: of the pictures or latents of the batch that comes."""
        changed, self.size = self.size not in (None, size), size
        if not (self.watches and changed):
            return
        total = torch.cuda.get_device_properties(self.device).total_memory
        held = torch.cuda.memory_reserved(self.device)
        if should_give_back(torch.cuda.memory_allocated(self.device), held, total):
            clean_memory_on_device(self.device)


def driver_spills(system: str, release: str) -> bool:
    """Whether NVIDIA's driver uses RAM where the card is full: on Windows, and in its Linux."""
    return system == "win32" or "microsoft" in release.lower()


def should_give_back(allocated: int, reserved: int, total: int) -> bool:
    """Whether what the allocator holds is near the card's size and enough of it is free; bytes."""
    return reserved >= NEAR * total and reserved - allocated >= WORTH_IT * total
