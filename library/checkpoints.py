"""Which files and states a run writes, when, and which of its own it deletes; names as sd-scripts'."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from library.errors import OutputError
from library.files import free_name, remove_folder
from library.run_config import ResumeOptions, SaveOptions
from library.system_errors import output_errors

if TYPE_CHECKING:
    from library.train_util import StepPlan

logger = logging.getLogger(__name__)

EXTENSION = ".safetensors"


def output_name(options: SaveOptions, default: str) -> str:
    """--output_name, or sd-scripts' default for this kind of file."""
    return options.output_name or default


def output_names(options: SaveOptions) -> set[str]:
    """With what a run's files and states begin."""
    return {output_name(options, default) for default in ("at", "epoch", "last")}


class CheckpointPlan:
    """Says at each step and epoch what is due; epochs count from 1 here, as in the file names."""

    def __init__(
        self, options: SaveOptions, epochs: int, states: ResumeOptions | None = None
    ) -> None:
        self.folder = Path(options.output_dir)
        self.options = options
        self.states = states or ResumeOptions()
        self.epochs = epochs
        self.every_n_epochs = options.save_every_n_epochs
        if options.save_n_epoch_ratio:
            self.every_n_epochs = max(1, math.floor(epochs / options.save_n_epoch_ratio))

    def step_file(self, step: int) -> Path:
        return self.folder / f"{output_name(self.options, 'at')}-step{step:08d}{EXTENSION}"

    def epoch_file(self, epoch: int) -> Path:
        return self.folder / f"{output_name(self.options, 'epoch')}-{epoch:06d}{EXTENSION}"

    def final_file(self) -> Path:
        return self.folder / f"{output_name(self.options, 'last')}{EXTENSION}"

    def state_folder(self, file: Path) -> Path:
        """The state that goes with an adapter file."""
        return file.with_name(f"{file.name.removesuffix(EXTENSION)}-state")

    @property
    def has_final_state(self) -> bool:
        return self.states.save_state or self.states.save_state_on_train_end

    def due_at_step(self, step: int) -> Path | None:
        """The file to write after update `step` (from 1), or None."""
        every = self.options.save_every_n_steps
        return self.step_file(step) if every and step % every == 0 else None

    def due_after_epoch(self, epoch: int) -> Path | None:
        """The file to write after epoch `epoch`, or None; the last epoch is the final file's."""
        every = self.every_n_epochs
        return (
            self.epoch_file(epoch) if every and epoch % every == 0 and epoch < self.epochs else None
        )

    def stale_at_step(self, step: int) -> Path | None:
        """The step file that --save_last_n_steps lets go after the one of `step` is written."""
        return self._stale_step_file(step, self.options.save_last_n_steps)

    def stale_state_at_step(self, step: int) -> Path | None:
        """The same of states: --save_last_n_steps_state, else --save_last_n_steps."""
        keep = self.states.save_last_n_steps_state
        file = self._stale_step_file(step, self.options.save_last_n_steps if keep is None else keep)
        return self.state_folder(file) if file else None

    def _stale_step_file(self, step: int, keep: int | None) -> Path | None:
        every = self.options.save_every_n_steps
        if not every or keep is None:
            return None
        oldest = step - keep - 1
        stale = oldest - oldest % every
        return self.step_file(stale) if stale > 0 else None

    def stale_after_epoch(self, epoch: int) -> Path | None:
        """The epoch file that --save_last_n_epochs lets go after the one of `epoch` is written."""
        return self._stale_epoch_file(epoch, self.options.save_last_n_epochs)

    def stale_state_after_epoch(self, epoch: int) -> Path | None:
        """The same of states: --save_last_n_epochs_state, else --save_last_n_epochs."""
        keep = self.states.save_last_n_epochs_state
        file = self._stale_epoch_file(
            epoch, self.options.save_last_n_epochs if keep is None else keep
        )
        return self.state_folder(file) if file else None

    def _stale_epoch_file(self, epoch: int, keep: int | None) -> Path | None:
        if not self.every_n_epochs or keep is None:
            return None
        stale = epoch - self.every_n_epochs * keep
        return self.epoch_file(stale) if stale > 0 else None


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

    @staticmethod
    def of(written: Sequence[tuple[Path, Path | None]], final: Path | None) -> Kept:
        """From (what is written, what is deleted then), in order, and what stays at the end."""
        kept: set[Path | None] = set()
        most = 0
        for new, stale in written:
            kept.add(new)
            most = max(most, len(kept))
            kept.discard(stale)
        kept |= {final} - {None}
        return Kept(len(kept), max(most, len(kept)))


def files_of_run(
    checkpoints: CheckpointPlan, plan: StepPlan, first_step: int = 0
) -> tuple[Kept, Kept]:
    """(adapter files, states) by --save_every_*, --save_last_* and --save_state*.

    first_step: updates that were done before, by the run that this one goes on from
    """
    every = checkpoints.options.save_every_n_steps
    due = [(step, "step") for step in range(every, plan.total_steps + 1, every)] if every else []
    due += [(epoch * plan.steps_per_epoch, "epoch") for epoch in range(1, plan.epochs + 1)]
    files, states = [], []
    for step, kind in sorted(due, key=lambda each: (each[0], each[1] == "epoch")):
        epoch = step // plan.steps_per_epoch
        if kind == "step":
            file, stale = checkpoints.due_at_step(step), checkpoints.stale_at_step(step)
            stale_state = checkpoints.stale_state_at_step(step)
        else:
            file, stale = checkpoints.due_after_epoch(epoch), checkpoints.stale_after_epoch(epoch)
            stale_state = checkpoints.stale_state_after_epoch(epoch)
        if file and step > first_step:
            files.append((file, stale))
            states.append((checkpoints.state_folder(file), stale_state))
    final = checkpoints.final_file()
    final_state = checkpoints.state_folder(final) if checkpoints.has_final_state else None
    states = states if checkpoints.states.save_state else []
    return Kept.of(files, final), Kept.of(states, final_state)
