"""Which kernel computes a run's attention: the one that was asked for, the state's, or the fastest here.

How texts are padded is chosen with it, since that says which attention to them there is to compute.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from library.anima_backend.modelling.attention import PACKAGED
from library.anima_backend.modelling.attention_probe import (
    COUNTING,
    REAL_ROWS,
    ROUNDS,
    Sizes,
    Trial,
    fastest,
    try_counting,
    try_kernel,
)
from library.anima_backend.modelling.kernels import AUTO, KERNELS
from library.anima_backend.modelling.params import DiTParams
from library.anima_runtime.config_adapter import AnimaConfig
from library.anima_runtime.padding_choice import FOLD, ROWS, Padding, settled
from library.device_utils import clean_memory_on_device
from library.errors import ConfigError, Problem
from library.utils import log_lines

logger = logging.getLogger(__name__)

ADVICE = "Leave it out, or write attn_mode = auto: the fastest that works is taken."


@dataclass(frozen=True)
class Place:
    """Where a run computes its attention, and of which sizes.

    needs_rows: of padding_choice.why_rows
    fused: whether kernels of our own count the zeros of texts
    """

    sizes: Sizes
    dtype: torch.dtype
    device: torch.device
    needs_rows: str = ""
    fused: bool = False

    def trials(self, asked: str) -> list[Trial]:
        return [self.trial(name) for name in (KERNELS if asked == AUTO else (asked,))]

    def try_counting(self, *, timed: bool) -> Trial:
        rounds = ROUNDS if timed else 0
        return try_counting(self.sizes, self.dtype, self.device, rounds, fused=self.fused)

    def trial(self, kernel: str) -> Trial:
        return try_kernel(kernel, self.sizes, self.dtype, self.device)


@dataclass(frozen=True)
class Choice:
    """A kernel, which may be one that was asked for and does not work, and why it is taken.

    padding: of texts
    """

    trial: Trial
    why: str
    padding: Padding


def sizes_of(
    params: DiTParams, batch: tuple[int, int, int], texts: int, real: int = REAL_ROWS
) -> Sizes:
    """batch: pictures, and their width and height in pixels; texts, real: rows of a context"""
    pictures, width, height = batch
    side = 8 * params.patch
    tokens = (width // side) * (height // side)
    heads = params.model_dim // params.head_dim
    return Sizes(pictures, tokens, texts, heads, params.head_dim, params.num_blocks, real)


def choose(
    anima: AnimaConfig, saved: Mapping[str, Any] | None, place: Place, *, is_main: bool
) -> tuple[str, str]:
    """The kernel, and how texts are padded: ROWS or FOLD.

    The same on every process; the first tries. Raises ConfigError where what is asked for fails.

    saved: what the state, if there is one, says of the run that wrote it
    """
    from accelerate.utils import broadcast_object_list

    if place.device.type != "cuda":
        log_lines(logger, notes_without_card(anima), logging.WARNING)
        padding = settled(anima, saved, place.device, place.needs_rows)
        told(padding)
        return "torch", padding.form
    found = decide(anima, saved, place) if is_main else None
    choice: Choice = broadcast_object_list([found])[0]
    clean_memory_on_device(place.device)
    if choice.trial.why_not:
        raise ConfigError([problem_of(anima, choice.trial)])
    logger.info("attention: %s, %s", choice.trial.kernel, choice.why)
    told(choice.padding)
    return choice.trial.kernel, choice.padding.form


def told(padding: Padding) -> None:
    logger.info("text_padding: %s, %s", padding.form, padding.why)


def decide(anima: AnimaConfig, saved: Mapping[str, Any] | None, place: Place) -> Choice:
    """Deterministic runs take torch's own untimed: another choice at the next start would be other bits.

    Of their texts they count the zeros, where that gives the same bits twice.
    """
    padding = settled(anima, saved, place.device, place.needs_rows)
    is_timed = not padding.form and not torch.are_deterministic_algorithms_enabled()
    if padding.form != ROWS:
        counting = place.try_counting(timed=is_timed)
        if counting.why_not and anima.folds_text:
            return Choice(counting, "", padding)
        if counting.why_not:
            padding = Padding(ROWS, f"since {counting}")
        elif is_timed:
            return by_time(anima, place, counting)
        else:
            padding = Padding(FOLD, padding.why or "which is deterministic")
    if padding.form == FOLD:
        place = without_texts(place)
    trial, why = kernel_for(anima, saved, place)
    return Choice(trial, why, padding)


def kernel_for(
    anima: AnimaConfig, saved: Mapping[str, Any] | None, place: Place
) -> tuple[Trial, str]:
    asked, before = anima.attention_backend, ""
    if asked != AUTO:
        return Trial("torch") if asked == "torch" else place.trial(asked), "as asked for"
    if saved is not None and (kernel := saved.get("attention")) in KERNELS:
        trial = Trial("torch") if kernel == "torch" else place.trial(kernel)
        if not trial.why_not:
            return trial, "as in the state"
        before = f"since that of the state, {trial}; "
    if torch.are_deterministic_algorithms_enabled():
        return Trial("torch"), f"{before}which is deterministic"
    trials = place.trials(AUTO)
    chosen = taken(trials)
    return chosen, before + comparison(chosen, trials, place)


def by_time(anima: AnimaConfig, place: Place, counting: Trial) -> Choice:
    """The faster of two: all attentions of a step by one kernel, or those to texts as `counting` was."""
    asked, sizes = anima.attention_backend, place.sizes
    trials = place.trials(asked)
    of_pictures = [replace(trial, parts=trial.parts[:1]) for trial in trials]
    rows, fold = taken(trials), taken(of_pictures)
    if rows.why_not:
        return Choice(rows, "", Padding(ROWS, ""))
    times = {ROWS: rows.seconds, FOLD: fold.seconds + counting.seconds}
    form, other = sorted(times, key=lambda form: times[form])
    padding = Padding(form, (
        f"{1e3 * times[form]:.1f} ms a step for all attentions, {other} {1e3 * times[other]:.1f} ms"
        f" (texts of {sizes.real} rows, with zeros {sizes.texts})"
    ))  # fmt: skip
    chosen = rows
    if form == FOLD:
        chosen, trials, place = fold, of_pictures, without_texts(place)
    why = "as asked for" if asked != AUTO else comparison(chosen, trials, place)
    return Choice(chosen, why, padding)


def without_texts(place: Place) -> Place:
    return replace(place, sizes=replace(place.sizes, texts=0))


def taken(trials: Sequence[Trial]) -> Trial:
    """The fastest; one that does not work where none does."""
    kernel = fastest(trials)
    return next((trial for trial in trials if trial.kernel == kernel), trials[0])


def comparison(chosen: Trial, trials: Sequence[Trial], place: Place) -> str:
    """The chosen kernel's time and the others'."""
    others = ", ".join(str(trial) for trial in trials if trial is not chosen)
    time = f"{1e3 * chosen.seconds:.1f} ms a step here, forward and backward ({place.sizes})"
    return f"{time}; {others}"


def problem_of(anima: AnimaConfig, trial: Trial) -> Problem:
    """Of what was asked for and cannot be used."""
    if trial.kernel == COUNTING:
        return Problem(f"{trial.why_not}. Leave it out, or write rows.", COUNTING)
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
