"""The flags of states: written, and gone on from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from library.errors import Problem
from library.settings.effects import Idle, loses_to, needs
from library.settings.flags.save import (
    EPOCH_FILES,
    REPOSITORY,
    REPOSITORY_TYPES,
    STEP_FILES,
    UPLOADED,
)
from library.settings.options import at_least, flag


def given_step(o: Any) -> bool:
    """Whether the start of the run is given, not taken from a state."""
    return bool(o.initial_step) or (o.initial_epoch or 1) > 1


STATES = needs(lambda o: o.save_state, "save_state is not set")
RESUMED = needs(lambda o: o.resume, "resume is not set")


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """States"""

    save_state: bool = flag(False, "write a state with every file, and at the end")
    save_state_on_train_end: bool = flag(False, "write a state at the end")
    save_last_n_epochs_state: int | None = flag(
        None,
        "keep the last n epochs' states; save_last_n_epochs if not given",
        check=at_least(1),
        off=(0,),
        idle=(
            STATES,
            EPOCH_FILES,
        ),
    )
    save_last_n_steps_state: int | None = flag(
        None,
        "keep states of the last n steps; save_last_n_steps if not given",
        check=at_least(1),
        off=(0,),
        idle=(
            STATES,
            STEP_FILES,
        ),
    )
    save_state_to_huggingface: bool = flag(
        False, "upload states too, with the file they belong to", idle=(UPLOADED,)
    )
    resume: str | None = flag(None, "state (a folder) to go on from", path=True)
    resume_from_huggingface: bool = flag(
        False,
        "resume names a state on Hugging Face: user/name/folder[:revision[:type]]; it is fetched first",
        idle=(RESUMED,),
    )
    resume_allow: tuple[str, ...] | None = flag(
        None,
        "settings that may differ from the state's, by the names that the error gives",
        idle=(RESUMED,),
    )
    resume_ignore_optimizer_mismatch: bool = flag(
        False, "start the optimizer afresh where it differs from the state's", idle=(RESUMED,)
    )
    initial_epoch: int | None = flag(
        None,
        "epoch to start at, from 1, whatever a state says",
        off=(0, 1),
        check=at_least(1),
        idle=(loses_to(lambda o: o.initial_step is not None, "initial_step decides"),),
    )
    initial_step: int | None = flag(
        None, "steps to count as done; wins over initial_epoch", check=at_least(0)
    )
    skip_until_initial_step: bool = flag(
        False,
        "start at the batch of initial_step, not at the first of its epoch",
        idle=(
            Idle(lambda o: o.resume and not given_step(o), "a resumed run goes on at its batch"),
            needs(given_step, "no step to skip to"),
        ),
    )

    @property
    def given_step(self) -> bool:
        """Whether the start of the run is given, not taken from a state."""
        return given_step(self)

    def problems(self) -> list[Problem]:
        named = self.resume_from_huggingface and self.resume
        if named and not REPOSITORY.fullmatch(named):
            types = ", ".join(REPOSITORY_TYPES)
            message = "resume_from_huggingface expects user/name/folder of the state, and if needed "
            message += f":revision and :type ({types})."
            return [Problem(message, f"resume = {named}")]
        return []
