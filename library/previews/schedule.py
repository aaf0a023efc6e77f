"""When pictures are drawn during a run."""

from __future__ import annotations

from dataclasses import dataclass

from library.settings.flags.preview import PreviewOptions


@dataclass(frozen=True)
class Moment:
    """A place in a run at which pictures are drawn. epoch: after which, from 1; None: at a step."""

    step: int
    epoch: int | None = None

    @property
    def name(self) -> str:
        """As sd-scripts puts it into the names of pictures."""
        return f"{self.step:06d}" if self.epoch is None else f"e{self.epoch:06d}"

    @property
    def title(self) -> str:
        """For people."""
        return f"step {self.step}" if self.epoch is None else f"epoch {self.epoch}"

    @property
    def order(self) -> tuple[int, int]:
        return self.step, self.epoch or 0


@dataclass(frozen=True)
class Schedule:
    """Says what is due; without an interval, only the end of the run is."""

    options: PreviewOptions
    total_steps: int

    def at_first(self, step: int) -> Moment | None:
        """What is due before the first update of a run that begins with `step`."""
        is_due = self.options.sample_prompts and self.options.sample_at_first
        return Moment(step) if is_due else None

    def at_step(self, step: int) -> Moment | None:
        """What is due after update `step`, from 1."""
        every, last = self.options.sample_every_n_steps, self.total_steps
        if not self.options.sample_prompts:
            return None
        if every or self.options.sample_every_n_epochs:
            return Moment(step) if every and step % every == 0 else None
        return Moment(step) if step == last else None

    def after_epoch(self, epoch: int, step: int) -> Moment | None:
        """What is due after an epoch, from 1, that ended with `step`."""
        every = self.options.sample_every_n_epochs
        if not (self.options.sample_prompts and every) or epoch % every:
            return None
        return Moment(step, epoch)
