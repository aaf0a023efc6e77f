"""Which memory modes a run takes so that it fits a card: the cheapest, by counts of its own step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, NoReturn

import torch

from library.errors import ConfigError, Problem
from library.memory.compiled_count import shared_graphs
from library.memory.modes import acting_modes, describe_modes
from library.memory.swapping import BUFFERS
from library.settings.flags.loop import LoopOptions

if TYPE_CHECKING:
    from library.settings.run_config import TrainConfig

logger = logging.getLogger(__name__)

Count = Callable[[LoopOptions], int]
"""Bytes on the device at the peak of a step, in the modes of the options."""

GIB = 2**30
RESERVED = GIB
"""CUDA's context, kernels and workspaces, about 0.6 GiB; the rest for a desktop on the same card."""
FRAGMENTATION = 0.1
"""What the allocator holds beyond what is in use, as a share of it. Assumed, not measured."""

CHEAP = LoopOptions(recompute="cheap")
LADDER = (
    LoopOptions(),
    CHEAP,
    replace(CHEAP, gradient_checkpointing=True, checkpoint_every_n=2),
    replace(CHEAP, gradient_checkpointing=True),
    replace(CHEAP, gradient_checkpointing=True, cpu_offload_checkpointing=True),
)
"""From the cheapest: what the card computes again first, then what goes over its link. Swapping follows."""
CHANGED = (
    "recompute", "gradient_checkpointing", "checkpoint_every_n", "cpu_offload_checkpointing"
)  # fmt: skip
"""The options in which the rungs differ."""

ADVICE = (
    "Lower the resolution, batch_size or network_dim, take LoKr or an 8-bit optimizer, "
    "set cache_latents and cache_text_encoder_outputs, or store the base in 8 bits (fp8_base, int8_base) or, "
    "three and a half times as far off as fp8, in 4 (nf4_base)."
)
ADVICE_WHOLE = (
    "Lower the resolution or batch_size, set full_bf16 with stochastic_rounding, fused_backward_pass, "
    "optimizer_type Adafactor, cache_latents and cache_text_encoder_outputs, freeze parts by a rate of 0, or "
    "train adapters instead."
)


@dataclass(frozen=True)
class Card:
    """name: as in --vram_target; size: bytes"""

    name: str
    size: int

    @staticmethod
    def of(target: str, device: torch.device) -> Card:
        """A card as it is sold, or with "auto" the one that computes. Raises ConfigError without one."""
        if target != "auto":
            return Card(target, int(target) * GIB)
        if device.type != "cuda":
            message = f"there is no card to ask: this run computes on {device}. Name its GB."
            raise ConfigError([Problem(message, "vram_target = auto")])
        return Card(target, torch.cuda.mem_get_info(device)[1])

    @property
    def room(self) -> int:
        """Bytes that a counted step may have."""
        return int((self.size - RESERVED) / (1 + FRAGMENTATION))


@dataclass(frozen=True)
class MemoryChoice:
    """What was chosen for a card.

    loop:   the run's options with the modes in them; peak: bytes counted for them
    passed: cheaper ones that were counted and do not fit
    """

    card: Card
    loop: LoopOptions
    peak: int
    passed: tuple[tuple[LoopOptions, int], ...]

    def describe(self) -> list[str]:
        """Lines for the log."""
        chosen = f"{describe_modes(self.loop)}; {gib(self.peak)} counted"
        room = f"{gib(self.card.room)} of {gib(self.card.size)} may be used"
        lines = [f"vram_target = {self.card.name}: {chosen}, {room}"]
        if self.passed:
            others = (f"{describe_modes(loop)} ({gib(peak)})" for loop, peak in self.passed)
            lines.append(f"cheaper but too large: {'; '.join(others)}")
        return lines


def choose_modes(cfg: TrainConfig, device: torch.device, blocks: int, count: Count) -> MemoryChoice:
    """The cheapest modes that fit --vram_target on a model of so many blocks.

    Memory options that the user set are kept, be it to the default. Raises ConfigError when nothing fits.
    """
    assert cfg.loop.vram_target, "else nothing is chosen"
    card = Card.of(cfg.loop.vram_target, device)
    if cfg.precision.compile:
        logger.info("vram_target: tracing the blocks, to count what compiled ones keep, for some ten seconds")
    with shared_graphs():
        return fitting(card, cfg, blocks, count)


def fitting(card: Card, cfg: TrainConfig, blocks: int, count: Count) -> MemoryChoice:
    """Of `choose_modes`, for a card."""
    kept = kept_names(cfg)
    passed: list[tuple[LoopOptions, int]] = []
    for loop in candidates(cfg.loop, kept):
        peak = count(loop)
        if peak <= card.room:
            return MemoryChoice(card, loop, peak, tuple(passed))
        passed.append((loop, peak))
    if "blocks_to_swap" not in kept and blocks > BUFFERS:
        most = replace(passed[-1][0], blocks_to_swap=blocks)
        passed.append((most, count(most)))
        if passed[-1][1] <= card.room:
            return swap_as_few(card, passed, count)
    refuse(card, min(passed, key=lambda pair: pair[1]), cfg)


def for_smallest_card(choice: MemoryChoice) -> MemoryChoice:
    """Of the choices of all processes, which each call it, that for the smallest card."""
    from accelerate.utils import gather_object

    choices: list[MemoryChoice] = gather_object([choice])
    return min(choices, key=lambda each: each.card.size)


def kept_names(cfg: TrainConfig) -> set[str]:
    """Memory options that stay as they are, since the user set them or what they belong to.

    Nor are blocks swapped where what trains of them cannot be.
    """
    loop = cfg.loop
    kept = {field.name for field in fields(LoopOptions)} & cfg.explicit
    if not cfg.may_swap:
        kept.add("blocks_to_swap")
    if "unsloth_offload_checkpointing" in kept:
        kept.add("cpu_offload_checkpointing")
    if loop.checkpoints:  # which blocks, was said
        kept.add("checkpoint_every_n")
    elif "gradient_checkpointing" in kept:  # none of its kind
        kept |= {"checkpoint_every_n", "cpu_offload_checkpointing"}
    if cfg.precision.compile:  # a compiler chooses itself what is cheap
        kept.add("recompute")
    return kept


def candidates(loop: LoopOptions, kept: AbstractSet[str]) -> list[LoopOptions]:
    """Every rung of the ladder that differs from those before, with `kept` as it is."""
    found: dict[object, LoopOptions] = {}
    for rung in LADDER:
        values = {name: getattr(loop if name in kept else rung, name) for name in CHANGED}
        made = replace(loop, **values)
        found.setdefault(acting_modes(made), made)
    return list(found.values())


def swap_as_few(card: Card, passed: list[tuple[LoopOptions, int]], count: Count) -> MemoryChoice:
    """passed: at its end what does not fit without swapping, and what fits with all blocks swapped.

    Each block saves about the same, so that a straight line between both tells where to look.
    """
    *passed, (low_loop, low_peak), (high_loop, high_peak) = passed
    low, high = BUFFERS, high_loop.blocks_to_swap or 0  # so many as there are buffers save nothing
    passed.append((low_loop, low_peak))
    while high - low > 1:
        share = (low_peak - card.room) / (low_peak - high_peak)
        guess = low + math.ceil(share * (high - low))
        guess = min(max(guess, low + 1), high - 1)
        loop = replace(low_loop, blocks_to_swap=guess)
        peak = count(loop)
        if peak <= card.room:
            high, high_loop, high_peak = guess, loop, peak
        else:
            low, low_peak = guess, peak
    return MemoryChoice(card, high_loop, high_peak, tuple(passed))


def refuse(card: Card, smallest: tuple[LoopOptions, int], cfg: TrainConfig) -> NoReturn:
    loop, peak = smallest
    message = (
        f"the least this run can do with is {gib(peak)} ({describe_modes(loop)}); a step may have "
        f"{gib(card.room)} of {gib(card.size)}. {ADVICE_WHOLE if cfg.whole else ADVICE}"
    )
    if kept := sorted({*CHANGED, "blocks_to_swap"} & cfg.explicit):
        message += f" Kept as you set them: {', '.join(kept)}."
    raise ConfigError([Problem(message, f"vram_target = {card.name}")])


def gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
