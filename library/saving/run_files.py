"""What a run writes beside its logs: adapter files and states, when they are due, and what then goes."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import UserError, in_one_line
from library.saving.checkpoints import average_file, files_of_save, universal_file
from library.saving.exporting import Exporter
from library.saving.hub import Repository
from library.saving.metadata import of_session
from library.saving.state_folder import StateContents, remove_state, write_state
from library.saving.uploads import Uploads
from library.system.files import remove_file
from library.system.system_errors import system_fault
from library.training.optimizers import optimizer_eval_mode
from library.training.processes import wait_for_all
from library.utils import atomic_write
from library.watching.picture_ledger import LedgerRow, PictureLedger, csv_text

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from library.data.data_types import RunPosition
    from library.saving.checkpoints import Checkpoints, Series
    from library.saving.metadata import RunMetadata
    from library.saving.state_contents import TrainingParts
    from library.train_util import StepPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StateFacts:
    """What a state says of its run.

    run:      seed and number of processes
    snapshot: gives what the snapshot holds, when the first state is written
    """

    run: Mapping[str, Any]
    snapshot: Callable[[], Mapping[str, Any]]


class RunFiles:
    """Writes the files of a run, on the first process; every process calls it at the same steps.

    exporter:   writes the adapter files
    facts:      of the run, for its states, with the metadata of its session added
    last_file:  (step, adapter file) that was written last
    last_state: the newest state that was written, or that the run came from
    is_settled: weights, optimizer and position belong together
    ledger_rows: of the pictures, at the last save; on the first process
    on_export:  hears of each adapter file, on the process that wrote it, before its state: (step, path)
    on_saved:   hears that a file and its state are there, and of the seconds they took
    record:     gives what a state keeps of the run's record, if there is one
    uploads:    sends what is saved to a repository, if there is one; by the first process
    held:       series of which something waits for its upload and is deleted after it, by prefix
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        accelerator: Accelerator,
        parts: TrainingParts,
        metadata: RunMetadata,
        facts: StateFacts,
    ) -> None:
        self.checkpoints, self.accelerator = checkpoints, accelerator
        self.parts, self.metadata = parts, metadata
        self.exporter = Exporter(checkpoints.options, parts.network)
        self.facts = {**facts.run, "metadata": of_session(metadata.entries)}
        self.snapshot = functools.cache(facts.snapshot)  # the pictures are hashed for it
        self.last_file: tuple[int, Path] | None = None
        self.last_state: Path | None = None
        self.is_settled = True
        self.ledger_rows: list[LedgerRow] = []
        self.writes_ledger = True
        self.on_export: Callable[[int, Path], None] | None = None
        self.on_saved: Callable[[float], None] | None = None
        self.record: Callable[[], Mapping[str, Any]] | None = None
        repository = Repository.of(checkpoints.options) if accelerator.is_main_process else None
        self.uploads = Uploads(repository, beside=checkpoints.options.async_upload)
        self.held: dict[str, tuple[Series, int]] = {}

    def close(self) -> None:
        """Have all uploads done; what waited for them is deleted."""
        self.uploads.close()
        for series, number in list(self.held.values()):
            self.discard(series, number)

    def after_step(self, position: RunPosition, *, now: bool = False) -> None:
        """Save what is due at this step. now: a file and a state, due or not."""
        step, checkpoints = position.step, self.checkpoints
        if file := checkpoints.due_at_step(step):
            self.save(file, position, with_state=now or checkpoints.states.save_state)
            self.discard(checkpoints.by_step, step)
        elif now:
            self.save(checkpoints.step_file(step), position, with_state=True)

    def after_epoch(self, position: RunPosition) -> None:
        """Save what is due after the epoch of `position`. The state written goes on with the next."""
        epoch, checkpoints = position.epoch + 1, self.checkpoints
        if file := checkpoints.due_after_epoch(epoch):
            self.save(file, position, with_state=checkpoints.states.save_state, next_epoch=True)
            self.discard(checkpoints.by_epoch, epoch)

    def finish(self, position: RunPosition, total_steps: int) -> str:
        """The final file and its state, if all steps are done; returns the run's last words."""
        checkpoints = self.checkpoints
        if position.step < total_steps:
            step = f"stopped at step {position.step} of {total_steps}"
            if not (self.last_state and self.last_state.is_dir()):
                return f"{step}. {self.describe_last()}"
            return f"{step}; to go on, add to the same command: --resume {self.last_state}"
        by_step, by_epoch = checkpoints.by_step, checkpoints.by_epoch
        for series, done in ((by_step, total_steps), (by_epoch, checkpoints.epochs - 1)):
            self.discard(series, series.last_due(done))  # a run killed in between may have left it
        file = self.save(checkpoints.final_file(), position, with_state=checkpoints.has_final_state)
        return f"done: {position.step} steps, {file}"

    def save(
        self, file: Path, position: RunPosition, *, with_state: bool, next_epoch: bool = False
    ) -> Path:
        """Export to `file`; with_state: and write the state that goes with it. Returns the file."""
        self.parts.progress.write()
        self.accelerator.wait_for_everyone()
        ranks = gather(self.parts.rank()) if with_state else []
        self.write_ledger(self.all_ledgers())
        if self.accelerator.is_main_process:
            began = time.monotonic()
            start_of_next = replace(position, epoch=position.epoch + 1, batch_in_epoch=0)
            with self.unsettled():
                folder = self.checkpoints.state_folder(file)
                file = self.export(file, position)
                if with_state:
                    self.write_state(folder, start_of_next if next_epoch else position, ranks)
            if self.on_saved:
                self.on_saved(time.monotonic() - began)
            self.upload(file, position.step, folder if with_state else None)
        else:  # the first process may have had to take other names, which only it knows
            self.last_file = position.step, file
            self.last_state = self.checkpoints.state_folder(file) if with_state else self.last_state
        options = self.checkpoints.options
        if options.huggingface_repo_id and not options.async_upload:
            wait_for_all(self.accelerator)  # a device's own group would give up meanwhile
        return file

    def upload(self, file: Path, step: int, state: Path | None) -> None:
        """Send an adapter file with what was written beside it, and its state if that is asked for."""
        made = [file, *([average_file(file)] if self.parts.average else [])]
        if self.checkpoints.options.export_format == "both":
            made += [universal_file(each) for each in made]
        if state and self.checkpoints.states.save_state_to_huggingface:
            made.append(state)
        self.uploads.add(step, [each for each in made if each.exists()])

    def export(self, file: Path, position: RunPosition) -> Path:
        """Write the weights, and their average where one is kept; returns the file of the weights."""
        metadata = self.metadata.at(position)
        with optimizer_eval_mode(self.parts.optimizer):
            file = self.exporter.write(file, metadata)
        self.last_file = position.step, file
        average = self.parts.average
        if average and average.tensors:
            with average.in_place():
                self.exporter.write(average_file(file), self.averaged(metadata))
        if self.on_export:
            self.on_export(position.step, file)
        return file

    def averaged(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """The metadata of a file of averaged weights, which says that they are; see --no_metadata."""
        average = self.parts.average
        if average is None or self.metadata.minimal:
            return dict(metadata)
        facts = {"ss_ema_decay": average.decay, "ss_ema_updates": average.updates}
        return {**metadata, **{name: str(value) for name, value in facts.items()}}

    def write_state(
        self, folder: Path, position: RunPosition, ranks: list[Mapping[str, Tensor]]
    ) -> None:
        contents = StateContents(
            position=position,
            run=self.facts,
            snapshot=self.snapshot(),
            factors=self.parts.factors(),
            training=self.parts.training(),
            ranks=ranks,
            record=self.record() if self.record else {},
        )
        self.last_state = write_state(folder, contents)
        logger.info("saved %s", self.last_state)

    def all_ledgers(self) -> PictureLedger:
        """What all processes know of the pictures; every process calls it."""
        own = self.parts.ledger
        together = PictureLedger(own.pictures, own.total_steps)
        for kept in gather({"kept": own.kept()}):
            together.take(kept["kept"])
        return together

    def write_ledger(self, ledger: PictureLedger) -> None:
        """The table for people, by the first process; what keeps it from being written is told once."""
        file = self.checkpoints.ledger_file()
        if not (self.accelerator.is_main_process and ledger.sums):
            return
        self.ledger_rows = ledger.table()
        if not self.writes_ledger:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file, sync=False) as temporary:
                temporary.write_text(csv_text(self.ledger_rows), encoding="utf-8", newline="")
        except OSError as error:
            fault = system_fault(error)
            advice = f" {fault.advice(file)}" if fault else ""
            logger.warning("%s cannot be written (%s).%s", file, error.strerror or error, advice)
            self.writes_ledger = False

    @contextlib.contextmanager
    def unsettled(self) -> Iterator[None]:
        """While inside, and for good after an error inside: what is in memory is not worth saving."""
        self.is_settled = False
        yield
        self.is_settled = True

    def rescue(self, position: RunPosition, *, together: bool) -> str:
        """Save what was learned until an error; returns the sentence that says where it is.

        together: every process is here. Otherwise this one acts alone and waits for no other.
        """
        file = self.checkpoints.step_file(position.step)
        try:
            if self.is_settled and together:
                self.save(file, position, with_state=True)
                self.accelerator.wait_for_everyone()  # a launcher ends all when the first is gone
            elif self.is_settled:
                self.save_alone(file, position)
        except Exception as error:  # noqa: BLE001  the error that ends the run is the one to tell
            return f"Its last step could not be saved ({in_one_line(error)}). {self.describe_last()}"
        return self.describe_last()

    def save_alone(self, file: Path, position: RunPosition) -> None:
        """`save` by a process that failed while others may go on, or fail and save the same."""
        if self.accelerator.num_processes == 1:
            with contextlib.suppress(UserError):
                self.parts.progress.write()
            self.write_ledger(self.parts.ledger)
        folder, rank = self.checkpoints.state_folder(file), self.accelerator.process_index
        if rank == 0 or not folder.exists():
            self.export(file, position)
            self.write_state(folder, position, [{}] * rank + [self.parts.rank()])
            self.upload(file, position.step, folder)
        else:
            self.last_file, self.last_state = (position.step, file), folder

    def files_after(self, steps: Iterable[int], plan: StepPlan) -> dict[int, Path]:
        """Of these steps, those after which a file was saved that is still there, with the file."""
        checkpoints, found = self.checkpoints, {}
        for step in steps:
            files = [checkpoints.final_file()] if step == plan.total_steps else []
            if self.last_file and self.last_file[0] == step:
                files.insert(0, self.last_file[1])
            if due := checkpoints.due_at_step(step):
                files.append(due)
            epoch, rest = divmod(step, plan.steps_per_epoch)
            if not rest and (due := checkpoints.due_after_epoch(epoch)):
                files.append(due)
            if there := [file for file in files if file.is_file()]:
                found[step] = there[0]
        return found

    def describe_last(self) -> str:
        """Where the last adapter file and the last state are, as far as they are still there."""
        told, state = [], self.last_state
        if self.last_file and self.last_file[1].is_file():
            told.append("the weights of step {} are in {}".format(*self.last_file))
        if state and state.is_dir():
            told.append(f"go on with --resume {state}")
        else:
            gone = f"the last one, {state}, is gone" if state else "none was written"
            told.append(f"there is no state to go on from: {gone}.")
        text = "; ".join(told)
        return text[0].upper() + text[1:]

    def discard(self, series: Series, number: int) -> None:
        """Delete files and states that no longer stay once there is the one of `number`."""
        if not self.accelerator.is_main_process:
            return
        files, states = series.stale_files(number), series.stale_states(number)
        waiting = {file for file in files if any(each in self.uploads for each in files_of_save(file))}
        waiting |= {state for state in states if state in self.uploads}
        if waiting:  # the only copies of what could not be uploaded
            self.held[series.prefix] = series, number
        for file in (each for each in files if each not in waiting):
            for each in files_of_save(file):  # what is left tells of all
                if remove_file(each):
                    logger.info("removed %s", each)
        for state in states if self.checkpoints.states.save_state else ():
            if state not in waiting and remove_state(state):
                logger.info("removed %s", state)


def gather(tensors: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
    """The tensors of every process, in order."""
    from accelerate.utils import gather_object

    return gather_object([tensors])
