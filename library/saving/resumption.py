"""The part of a trainer that goes on from a state: opened first, compared, then taken over."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import Problem, ResumeError
from library.saving import snapshot as resume_snapshot
from library.saving.checkpoints import output_names
from library.saving.output_checks import tried
from library.saving.run_files import RunFiles
from library.saving.state_contents import TrainingParts, first_position
from library.saving.state_folder import SavedState, clear_leftovers, open_state
from library.saving.stopping import StopRequests
from library.system.leftovers import clear_temporary
from library.system.program import is_first_process
from library.system.run_lock import claimed, lock_file, writers_of
from library.system.system_errors import output_errors
from library.training.optimizers import count_updates_before, optimizer_train_mode
from library.training.schedulers import count_as_done
from library.utils import log_lines

if TYPE_CHECKING:
    from library.settings.run_config import TrainConfig
    from library.train_util import StepPlan

logger = logging.getLogger(__name__)


class ResumableRun:
    """Stages and hooks for a trainer with the attributes that train_network.py's has.

    snapshot_schema: of the snapshots that this family writes and takes
    strict_resume:   every difference between a state and the run is an error
    """

    cfg: TrainConfig
    snapshot_schema = "resume_snapshot/v2"
    strict_resume = False
    resumed: SavedState | None = None

    @contextlib.contextmanager
    def outputs_claimed(self) -> Iterator[None]:
        """While inside, no other run writes this run's files; what earlier ones left is cleared away."""
        folder, names = Path(self.cfg.save.output_dir), output_names(self.cfg.save)
        with contextlib.ExitStack() as stack:
            # one process claims for all; a folder that cannot be used is told by check(), with all else
            trial = lock_file(folder, f"{max(names, key=len)}.{os.getpid()}")
            if is_first_process(os.environ) and not tried(trial, ""):
                with output_errors(folder):
                    notes = stack.enter_context(claimed(folder, names))
                log_lines(logger, notes, logging.WARNING)
                clear_leftovers(folder, names)
                clear_temporary(folder, names)
            yield

    def open_state(self) -> int | None:
        """Establish which state to go on from, if any; returns the seed to use, if it is known."""
        path, seed = self.cfg.resume.resume, self.cfg.loop.seed
        if path:
            self.resumed = open_state(path, self.snapshot_schema)
            for writer in writers_of(self.resumed.folder):
                logger.warning("%s: the run that wrote it may still be running (%s).", path, writer)
        return self.resumed.run["seed"] if self.resumed and seed is None else seed

    def begin_at(self, plan: StepPlan) -> StepPlan:
        """Establish where the run begins; returns the plan from there."""
        self.state = first_position(
            self.cfg.resume,
            self.resumed,
            plan,
            accumulation=self.cfg.loop.gradient_accumulation_steps,
            processes=self.accelerator.num_processes,
        )
        return plan.starting_at(self.state, self.cfg)

    def check_resume(self) -> None:
        """Establish that the state fits this run; all differences in one error, on every process."""
        if self.resumed is None:
            return
        from accelerate.utils import broadcast_object_list

        logger.info("comparing this run with the state %s", self.resumed.folder)
        found = self.validate_resume_snapshot(self.resumed.snapshot) if self.is_main else []
        (problems,) = broadcast_object_list([found])
        if problems:
            source = resume_snapshot.heading(self.resumed.folder, problems)
            raise ResumeError(problems, source=source)

    def build_resume_snapshot(self) -> dict[str, Any]:
        """The settings of this run that a state keeps; a family adds its own."""
        return self.snapshot().document(self.snapshot_schema)

    def snapshot(self) -> resume_snapshot.Snapshot:
        processes = self.accelerator.num_processes
        return resume_snapshot.run_fields(
            self.cfg, self.catalogue, self.outline, seed=self.seed, processes=processes
        )

    def validate_resume_snapshot(self, snapshot: dict[str, Any]) -> list[Problem]:
        """What in a state's snapshot keeps this run from going on from it."""
        own = self.build_resume_snapshot()
        return resume_snapshot.compare(snapshot, own, self.cfg.resume, strict=self.strict_resume)

    def take_over(self) -> None:
        """Establish what writes the run's files, and what the state holds in all its parts."""
        optimizer_train_mode(self.optimizer)
        optimizer, scaler = self.optimizer.optimizer, self.accelerator.scaler
        parts = TrainingParts(
            self.network, optimizer, self.scheduler, scaler, self.progress,
            arguments=self.cfg.optimizer.optimizer_args or (),
        )  # fmt: skip
        facts = {"seed": self.seed, "num_processes": self.accelerator.num_processes}
        self.files = RunFiles(
            self.checkpoints,
            self.accelerator,
            parts,
            self.metadata,
            facts,
            self.build_resume_snapshot,
        )
        self.stops = StopRequests(self.checkpoints.folder, self.accelerator)
        if self.resumed:
            parts.restore(
                self.resumed,
                self.accelerator.process_index,
                may_start_afresh=self.cfg.resume.resume_ignore_optimizer_mismatch,
                with_schedule=not self.cfg.resume.given_step,
            )
            self.files.last_state = self.resumed.folder
            logger.info("going on from %s at step %d", self.resumed.folder, self.state.step)
        if self.cfg.resume.given_step:
            count_as_done(self.scheduler, self.state.step)
            count_updates_before(optimizer, self.state.step)
