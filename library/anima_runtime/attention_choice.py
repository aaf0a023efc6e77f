"""Which kernel computes a run's attention: the one that was asked for, the state's, or the fastest here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from library.anima_backend.modelling.attention import PACKAGED
from library.anima_backend.modelling.attention_probe import (
    COUNTING,
    Sizes,
    Trial,
    fastest,
    try_counting,
    try_kernel,
)
from library.anima_backend.modelling.kernels import AUTO, KERNELS
from library.anima_backend.modelling.params import DiTParams
from library.anima_runtime.config_adapter import AnimaConfig
from library.device_utils import clean_memory_on_device
from library.errors import ConfigError, Problem
from library.utils import log_lines

logger = logging.getLogger(__name__)

ADVICE = "Leave it out, or write attn_mode = auto: the fastest that works is taken."


@dataclass(frozen=True)
class Place:
    """Where a run computes its attention, and of which sizes."""

    sizes: Sizes
    dtype: torch.dtype
    device: torch.device

    def try_all(self) -> list[Trial]:
        return [self.trial(name) for name in KERNELS]

    def try_counting(self) -> Trial:
        return try_counting(self.sizes, self.dtype, self.device)

    def trial(self, kernel: str) -> Trial:
        return try_kernel(kernel, self.sizes, self.dtype, self.device)


@dataclass(frozen=True)
class Choice:
    """A kernel, which may be one that was asked for and does not work, and why it is taken."""

    trial: Trial
    why: str


def sizes_of(params: DiTParams, batch: tuple[int, int, int], texts: int) -> Sizes:
    """batch: pictures, and their width and height in pixels; texts: rows of a context"""
    pictures, width, height = batch
    side = 8 * params.patch
    tokens = (width // side) * (height // side)
    heads = params.model_dim // params.head_dim
    return Sizes(pictures, tokens, texts, heads, params.head_dim, params.num_blocks)


def choose_kernel(anima: AnimaConfig, saved: str | None, place: Place, *, is_main: bool) -> str:
    """The same on every process; the first tries. Raises ConfigError where the one asked for fails.

    saved: what the state was trained with, if there is one
    """
    from accelerate.utils import broadcast_object_list

    if place.device.type != "cuda":
        log_lines(logger, notes_without_card(anima), logging.WARNING)
        return "torch"
    found = decide(anima, saved, place) if is_main else None
    choice: Choice = broadcast_object_list([found])[0]
    clean_memory_on_device(place.device)
    if choice.trial.why_not:
        raise ConfigError([problem_of(anima, choice.trial)])
    logger.info("attention: %s, %s", choice.trial.kernel, choice.why)
    return choice.trial.kernel


def decide(anima: AnimaConfig, saved: str | None, place: Place) -> Choice:
    """Deterministic runs take torch's own untimed: another choice at the next start would be other bits."""
    asked = anima.attention_backend
    if anima.folds_text:
        counting = place.try_counting()
        if counting.why_not:
            return Choice(counting, "")
        place = replace(place, sizes=replace(place.sizes, texts=0))
    if asked != AUTO:
        trial = Trial("torch") if asked == "torch" else place.trial(asked)
        return Choice(trial, "as asked for")
    before = ""
    if saved in KERNELS:
        trial = Trial("torch") if saved == "torch" else place.trial(saved)
        if not trial.why_not:
            return Choice(trial, "as in the state")
        before = f"since that of the state, {trial}; "
    if torch.are_deterministic_algorithms_enabled():
        return Choice(Trial("torch"), f"{before}which is deterministic")
    trials = place.try_all()
    kernel = fastest(trials)
    chosen = next(trial for trial in trials if trial.kernel == kernel)
    return Choice(chosen, before + comparison(chosen, trials, place))


def comparison(chosen: Trial, trials: Sequence[Trial], place: Place) -> str:
    """The chosen kernel's time and the others'."""
    others = ", ".join(str(trial) for trial in trials if trial is not chosen)
    time = f"{1e3 * chosen.seconds:.1f} ms a step here, forward and backward ({place.sizes})"
    return f"{time}; {others}"


def problem_of(anima: AnimaConfig, trial: Trial) -> Problem:
    """Of what was asked for and cannot be used."""
    if trial.kernel == COUNTING:
        return Problem(f"{trial.why_not}. Write rows.", COUNTING)
    asking = [name for name, kernel in anima.kernels_asked().items() if kernel == trial.kernel]
    return Problem(f"{trial}. {ADVICE}", asking[0] if asking else "attention")


def untried_kernel(anima: AnimaConfig, device: torch.device) -> str:
    """For a few pictures, where a trial would take longer: the one that was asked for, else torch's own.

    Raises ConfigError where its package is missing
    """
    asked = anima.attention_backend
    if device.type != "cuda":
        log_lines(logger, notes_without_card(anima), logging.WARNING)
        return "torch"
    if asked in PACKAGED:
        try:
            PACKAGED[asked]()
        except ImportError as error:
            trial = Trial(asked, why_not=f"is not installed ({error})")
            raise ConfigError([problem_of(anima, trial)]) from error
    return "torch" if asked == AUTO else asked


def notes_without_card(anima: AnimaConfig) -> list[str]:
    asked = anima.attention_backend
    if asked in (AUTO, "torch"):
        return []
    return [f"attention by {asked} is for CUDA: torch's own is used here, with the same result."]
