"""Which files and states a run writes, when, and which of its own it deletes; names as sd-scripts'."""

from __future__ import annotations

import logging
import math
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from library.errors import OutputError
from library.settings.flags.resume import ResumeOptions
from library.settings.flags.save import SaveOptions
from library.system.files import free_name, remove_folder
from library.system.system_errors import output_errors

if TYPE_CHECKING:
    from library.train_util import StepPlan

logger = logging.getLogger(__name__)

EXTENSION, STATE = ".safetensors", "-state"
AVERAGE, UNIVERSAL = "-ema", "-universal"
"""At the end of a name: of averaged weights; in the universal form, beside the usual one."""


def output_name(options: SaveOptions, default: str) -> str:
    """--output_name, or sd-scripts' default for this kind of file."""
    return options.output_name or default


def output_names(options: SaveOptions) -> set[str]:
    """With what a run's files and states begin."""
    return {output_name(options, default) for default in ("at", "epoch", "last")}


@dataclass(frozen=True)
class Series:
    """The files that are written every so many steps, or epochs; their names end with that number.

    every:       0: there are none
    kept:        how many of them stay, the newest; None: all
    kept_states: the same of their states
    """

    folder: Path
    prefix: str
    digits: int
    every: int
    kept: int | None
    kept_states: int | None

    def file(self, number: int) -> Path:
        return self.folder / f"{self.prefix}{number:0{self.digits}d}{EXTENSION}"

    def is_due(self, number: int) -> bool:
        return bool(self.every) and number % self.every == 0

    def last_due(self, number: int) -> int:
        """The last number, up to this one, of which there is a file; 0: none."""
        return number - number % self.every if self.every else 0

    def stale_files(self, number: int) -> list[Path]:
        """The files there are that no longer stay when the one of `number` is written."""
        return self._stale(number, self.kept, EXTENSION)

    def stale_states(self, number: int) -> list[Path]:
        return self._stale(number, self.kept_states, STATE)

    def _stale(self, number: int, kept: int | None, suffix: str) -> list[Path]:
        """All of them, not the one that was the last to stay: a killed run may have left others."""
        if kept is None or not self.folder.is_dir():
            return []
        name = re.compile(rf"{re.escape(self.prefix)}([0-9]+){re.escape(suffix)}")
        matches = filter(None, (name.fullmatch(path.name) for path in self.folder.iterdir()))
        stale = (
            match
            for match in matches
            if 0 < (one := int(match[1])) <= number - self.every * kept
            and self.is_due(one)
            and match[1] == f"{one:0{self.digits}d}"
        )
        return [self.folder / match[0] for match in sorted(stale, key=lambda match: int(match[1]))]


class Checkpoints:
    """Says at each step and epoch what is due; epochs count from 1 here, as in the file names."""

    def __init__(
        self, options: SaveOptions, epochs: int, states: ResumeOptions | None = None
    ) -> None:
        assert options.output_dir, "SaveOptions asks for one"
        self.folder = Path(options.output_dir)
        self.options = options
        self.states = states or ResumeOptions()
        self.epochs = epochs
        self.by_step = self._series_of_steps()
        self.by_epoch = self._series_of_epochs()

    def _series_of_steps(self) -> Series:
        """--save_last_n_steps counts steps: of the files after them the one before stays too."""
        every, name = self.options.save_every_n_steps or 0, output_name(self.options, "at")
        of_files, of_states = self.options.save_last_n_steps, self.states.save_last_n_steps_state
        kept, kept_states = (
            None if steps is None or not every else steps // every + 1
            for steps in (of_files, of_files if of_states is None else of_states)
        )
        return Series(self.folder, f"{name}-step", 8, every, kept, kept_states)

    def _series_of_epochs(self) -> Series:
        every, name = self.options.save_every_n_epochs or 0, output_name(self.options, "epoch")
        if ratio := self.options.save_n_epoch_ratio:
            every = max(1, math.floor(self.epochs / ratio))
        kept, of_states = self.options.save_last_n_epochs, self.states.save_last_n_epochs_state
        kept_states = kept if of_states is None else of_states
        return Series(self.folder, f"{name}-", 6, every, kept, kept_states)

    def step_file(self, step: int) -> Path:
        return self.by_step.file(step)

    def epoch_file(self, epoch: int) -> Path:
        return self.by_epoch.file(epoch)

    def file_at(self, step: int, epoch: int | None, total_steps: int) -> Path:
        """The file of the weights at a step from 1 on, at the end of an epoch if one is given."""
        if step == total_steps:
            return self.final_file()
        after_epoch = self.due_after_epoch(epoch) if epoch else None
        return after_epoch or self.step_file(step)

    def final_file(self) -> Path:
        return self.folder / f"{output_name(self.options, 'last')}{EXTENSION}"

    def ledger_file(self) -> Path:
        """The table of the pictures' losses."""
        return self.folder / f"{output_name(self.options, 'last')}_ledger.csv"

    def state_folder(self, file: Path) -> Path:
        """The state that goes with an adapter file."""
        return file.with_name(f"{file.name.removesuffix(EXTENSION)}{STATE}")

    @property
    def has_final_state(self) -> bool:
        return self.states.save_state or self.states.save_state_on_train_end

    def due_at_step(self, step: int) -> Path | None:
        """The file to write after update `step` (from 1), or None."""
        return self.step_file(step) if self.by_step.is_due(step) else None

    def due_after_epoch(self, epoch: int) -> Path | None:
        """The file to write after epoch `epoch`, or None; the last epoch is the final file's."""
        is_due = self.by_epoch.is_due(epoch) and epoch < self.epochs
        return self.epoch_file(epoch) if is_due else None


def files_of_save(file: Path) -> list[Path]:
    """All that may have been written with an adapter file, and last the file itself."""
    averaged = average_file(file)
    return [universal_file(averaged), averaged, universal_file(file), file]


def average_file(file: Path) -> Path:
    """The file of the averaged weights that goes with an adapter file."""
    return _companion(file, AVERAGE)


def universal_file(file: Path) -> Path:
    """The file of the universal form that goes with an adapter file."""
    return _companion(file, UNIVERSAL)


def _companion(file: Path, ending: str) -> Path:
    return file.with_name(f"{file.name.removesuffix(EXTENSION)}{ending}{EXTENSION}")


def write_or_rescue(write: Callable[[Path], None], file: Path) -> Path:
    """write(file); returns the file that was written: another beside it where it cannot be replaced.

    Where nothing can be written there, the weights go to the system's folder for temporary files and
    an OutputError says so: they are not lost with the disk.
    """
    try:
        with output_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        write(file)
        return file
    except OutputError as error:
        beside = _write_beside(write, file, error)
        if beside is None:
            raise _rescued(write, error) from error
        return beside


def _write_beside(write: Callable[[Path], None], file: Path, error: OutputError) -> Path | None:
    """write() to a free name beside a file that is there and cannot be replaced; None: it failed."""
    if not os.path.lexists(file):
        return None
    beside = free_name(file, EXTENSION)
    try:
        write(beside)
    except OutputError:
        return None
    logger.warning("%s\nSaved as %s instead.", error, beside)
    return beside


def _rescued(write: Callable[[Path], None], error: OutputError) -> OutputError:
    """The error, with the place where write() has put the weights if they could be put anywhere."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="training-rescued-"))
    except OSError:  # no such folder can be written either: the first error is the one to tell
        return error
    refuge = folder / f"weights{EXTENSION}"  # a name that is right on every system
    try:
        write(refuge)
    except OutputError:
        remove_folder(folder)
        return error
    (problem,) = error.problems
    message = f"{problem.message} The weights are in {refuge} instead: move them from there."
    return OutputError(replace(problem, message=message))


@dataclass(frozen=True)
class Kept:
    """How many of a kind a run leaves, and the most of them that are there at once."""

    at_end: int
    most: int


def files_of_run(
    checkpoints: Checkpoints, plan: StepPlan, first_step: int = 0
) -> tuple[Kept, Kept]:
    """(adapter files, states) that a run writes, by --save_every_*, --save_last_* and --save_state*.

    first_step: updates that were done before, by the run that this one goes on from
    """
    files = _kept(checkpoints, plan, first_step, lambda series: series.kept)
    states = _kept(checkpoints, plan, first_step, lambda series: series.kept_states)
    if not checkpoints.states.save_state:
        states = Kept(0, 0)
    at_end = states.at_end + checkpoints.has_final_state
    return (
        Kept(files.at_end + 1, max(files.most, files.at_end + 1)),
        Kept(at_end, max(states.most, at_end)),
    )


def _kept(
    checkpoints: Checkpoints,
    plan: StepPlan,
    first_step: int,
    limit: Callable[[Series], int | None],
) -> Kept:
    """Before the final file. What is there never shrinks, so that the most is at a series' last file."""
    by_step, by_epoch, length = checkpoints.by_step, checkpoints.by_epoch, plan.steps_per_epoch
    last_epoch = by_epoch.last_due(checkpoints.epochs - 1)

    def of_steps(until: int) -> int:
        return _count(by_step, first_step, until)

    def of_epochs(until: int) -> int:
        return _count(by_epoch, first_step // length, min(until // length, last_epoch))

    def stay(count: int, series: Series, more: int = 0) -> int:
        kept = limit(series)
        return count if kept is None else min(count, kept + more)

    steps, epochs = of_steps(plan.total_steps), of_epochs(last_epoch * length)
    last_step = by_step.last_due(plan.total_steps)
    at_last_step = stay(steps, by_step, 1) + stay(of_epochs(last_step - 1), by_epoch)
    at_last_epoch = stay(epochs, by_epoch, 1) + stay(of_steps(last_epoch * length), by_step)
    return Kept(
        stay(steps, by_step) + stay(epochs, by_epoch),
        max(at_last_step if steps else 0, at_last_epoch if epochs else 0),
    )


def _count(series: Series, after: int, until: int) -> int:
    """How many files the series has after one number, up to another."""
    return max(0, until // series.every - after // series.every) if series.every else 0
