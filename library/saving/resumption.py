"""What a run goes on from: a state, opened first, compared, then taken over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from library.errors import Problem, ResumeError
from library.saving import snapshot as resume_snapshot
from library.saving.hub import state_from_hub
from library.saving.state_folder import SavedState, open_state
from library.system.run_lock import writers_of
from library.training.optimizers import count_updates_before
from library.training.schedulers import count_as_done

if TYPE_CHECKING:
    from library.data.data_types import RunPosition
    from library.saving.state_contents import TrainingParts
    from library.settings.flags.resume import ResumeOptions

logger = logging.getLogger(__name__)


class Resumption:
    """The state that a run goes on from, if there is one.

    state: None where the run begins without one
    """

    def __init__(self, options: ResumeOptions, schema: str, token: str | None = None) -> None:
        """Open the state, fetched first where it is on a hub. Raises ResumeError.

        schema: of the snapshots that are taken; token: of the hub
        """
        self.options = options
        self.state: SavedState | None = None
        if folder := state_from_hub(options, token):
            self.state = open_state(folder, schema)
            for writer in writers_of(self.state.folder):
                logger.warning(
                    "%s: the run that wrote it may still be running (%s).", options.resume, writer
                )

    def seed_or(self, given: int | None) -> int | None:
        """The seed to use, if it is known: the one that was given, else the state's."""
        return self.state.run["seed"] if self.state and given is None else given

    def check(
        self, validate: Callable[[Mapping[str, Any]], list[Problem]], *, is_main: bool
    ) -> None:
        """Raise ResumeError on every process where the state does not fit; all problems in one.

        validate: finds them in the state's snapshot; asked on the main process alone
        """
        if self.state is None:
            return
        from accelerate.utils import broadcast_object_list

        logger.info("comparing this run with the state %s", self.state.folder)
        found = validate(self.state.snapshot) if is_main else []
        (problems,) = broadcast_object_list([found])
        if problems:
            source = resume_snapshot.heading(self.state.folder, problems)
            raise ResumeError(problems, source=source)

    def restore(self, parts: TrainingParts, position: RunPosition, rank: int) -> None:
        """Put the state's contents into the run's parts; where flags say at which step the run begins,
        schedule and optimizer take the updates before it as done."""
        if self.state:
            parts.restore(
                self.state,
                rank,
                may_start_afresh=self.options.resume_ignore_optimizer_mismatch,
                with_schedule=not self.options.given_step,
            )
            logger.info("going on from %s at step %d", self.state.folder, position.step)
        if self.options.given_step:
            count_as_done(parts.scheduler, position.step)
            count_updates_before(parts.optimizer, position.step)
