"""What a run writes beside its logs: adapter files and states, when they are due, and what then goes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.device_utils import precision_dtype
from library.metadata import of_session
from library.optimizers import optimizer_eval_mode
from library.states import StateContents, remove_leftovers, remove_state, write_state

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from library.checkpoints import CheckpointPlan
    from library.data_types import TrainState
    from library.metadata import RunMetadata
    from library.resuming import TrainingParts

logger = logging.getLogger(__name__)


class RunFiles:
    """Writes the files of a run, on the first process; every process calls it at the same steps.

    facts:      of the run, for its states, with the metadata of its session added
    snapshot:   gives what a state's snapshot holds, when the first state is written
    last_state: the newest state that was written, or that the run came from
    """

    def __init__(
        self,
        plan: CheckpointPlan,
        accelerator: Accelerator,
        parts: TrainingParts,
        metadata: RunMetadata,
        facts: Mapping[str, Any],
        snapshot: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.plan, self.accelerator, self.parts, self.metadata = plan, accelerator, parts, metadata
        self.facts = {**facts, "metadata": of_session(metadata.entries)}
        self.snapshot = snapshot
        self.last_state: Path | None = None
        if accelerator.is_main_process:
            remove_leftovers(plan.folder, plan.final_file().stem)

    def after_step(self, state: TrainState, *, now: bool = False) -> None:
        """Save what is due at this step. now: a file and a state, due or not."""
        step, plan = state.step, self.plan
        if file := plan.due_at_step(step):
            self.save(file, state, with_state=now or plan.states.save_state)
            self.discard(plan.stale_at_step(step), plan.stale_state_at_step(step))
        elif now:
            self.save(plan.step_file(step), state, with_state=True)

    def after_epoch(self, state: TrainState) -> None:
        """Save what is due after the epoch of `state`. The state written goes on with the next."""
        epoch, plan = state.epoch + 1, self.plan
        if file := plan.due_after_epoch(epoch):
            self.save(file, state, with_state=plan.states.save_state, next_epoch=True)
            self.discard(plan.stale_after_epoch(epoch), plan.stale_state_after_epoch(epoch))

    def finish(self, state: TrainState) -> Path:
        """The final file, and its state if one is asked for."""
        file = self.plan.final_file()
        self.save(file, state, with_state=self.plan.has_final_state)
        return file

    def save(
        self, file: Path, state: TrainState, *, with_state: bool, next_epoch: bool = False
    ) -> None:
        """Export to `file`; with_state: and write the state that goes with it."""
        self.parts.progress.write()
        self.accelerator.wait_for_everyone()
        ranks = self.gather(self.parts.rank()) if with_state else []
        if not self.accelerator.is_main_process:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        dtype = precision_dtype(self.plan.options.save_precision or "float")
        with optimizer_eval_mode(self.parts.optimizer):
            self.parts.network.save_weights(str(file), dtype, self.metadata.at(state))
        logger.info("saved %s", file)
        if with_state:
            position = replace(state, epoch=state.epoch + 1, batch_in_epoch=0)
            folder = self.plan.state_folder(file)
            self.write_state(folder, position if next_epoch else state, ranks)

    def write_state(
        self, folder: Path, position: TrainState, ranks: list[Mapping[str, Tensor]]
    ) -> None:
        contents = StateContents(
            position=position,
            run=self.facts,
            snapshot=self.snapshot(),
            factors=self.parts.factors(),
            training=self.parts.training(),
            ranks=ranks,
        )
        write_state(folder, contents)
        self.last_state = folder
        logger.info("saved %s", folder)

    def gather(self, tensors: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
        """The tensors of every process, in order."""
        from accelerate.utils import gather_object

        return gather_object([tensors])

    def discard(self, file: Path | None, state: Path | None) -> None:
        """Delete an adapter file and a state that are no longer to be kept, if they are there."""
        if not self.accelerator.is_main_process:
            return
        if file is not None and file.exists():
            file.unlink()
            logger.info("removed %s", file)
        if state is not None and self.plan.states.save_state and remove_state(state):
            logger.info("removed %s", state)
