"""How often a run looks at each picture, whether that is usual for what its preset teaches, and which
preset fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from library.data.catalogue import Catalogue
from library.settings.presets import CARDS, PURPOSES, purpose_of, recommended

if TYPE_CHECKING:
    from library.train_util import StepPlan

GIB = 2**30


def exposures(catalogue: Catalogue, plan: StepPlan) -> tuple[int, float]:
    """(pictures that are learned, times that a run looks at one of them, on average)."""
    repeats: Counter[object] = Counter()
    for image in catalogue.images:
        if not image.subset.is_reg:
            repeats[image.path] += image.repeats
    epochs = plan.total_steps / plan.steps_per_epoch
    return len(repeats), epochs * repeats.total() / max(1, len(repeats))


def exposure_rows(
    catalogue: Catalogue, plan: StepPlan, preset: str | None
) -> Iterator[tuple[str, str]]:
    """For the table of the length of a run."""
    pictures, times = exposures(catalogue, plan)
    yield "looks at each picture", f"{times:.4g} on average, {pictures} pictures"
    if preset is None:
        card = card_size()
        known = f"a card of {card} GB" if card else "the smallest card: this machine has none"
        yield "a preset for these", f"{recommended(pictures, card)} ({known})"


def exposure_warnings(catalogue: Catalogue, plan: StepPlan, preset: str | None) -> Iterator[str]:
    """What is unusual for what the preset teaches."""
    purpose = purpose_of(preset)
    if purpose is None:
        return
    usual, (pictures, times) = PURPOSES[purpose], exposures(catalogue, plan)
    where = f"preset = {preset}: each picture is seen {times:.4g} times"
    if times < usual.low:
        yield (
            f"{where}; {usual.low} to {usual.high} are usual for a {purpose}. Raise "
            f"max_train_epochs, max_train_steps or num_repeats."
        )
    if times > usual.high:
        yield (
            f"{where}; {usual.low} to {usual.high} are usual for a {purpose}. Lower "
            f"max_train_epochs, max_train_steps or num_repeats, or keep an earlier file."
        )
    few, many = usual.pictures
    if not few <= pictures <= many:
        yield f"preset = {preset}: {pictures} pictures; {few} to {many} are usual for a {purpose}."


def card_size() -> int | None:
    """GB of the card that computes, as it is sold: the nearest size for which there are presets."""
    if not torch.cuda.is_available():
        return None
    size = torch.cuda.mem_get_info()[1] / GIB
    return min(CARDS, key=lambda card: abs(card - size)) if size < CARDS[-1] else CARDS[-1]
