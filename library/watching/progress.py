"""What the user sees of the loop: the bar, and the trackers that are fed at log points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from tqdm import tqdm

from library.errors import UserError
from library.training.learning_rates import shown_rate
from library.watching.step_logs import StepLogs, StepRow

if TYPE_CHECKING:
    from library.data.data_types import StepResult
    from library.train_util import StepPlan
    from library.watching.monitor import Monitor
    from library.watching.step_logs import StepRow
    from library.watching.trackers import Trackers


class RunProgress:
    """What the user sees of the loop: the progress bar, and the trackers fed at log points.

    monitor: judges what is read, and may end the run; without one everything is only shown
    start:   steps done before, by the run that this one goes on from
    readers: are given the rows of every log point too
    """

    BAR = "{desc} {bar:20} {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_inv_fmt}{postfix}]"

    def __init__(
        self,
        trackers: Trackers,
        plan: StepPlan,
        visible: bool,
        monitor: Monitor | None = None,
        start: int = 0,
    ) -> None:
        self.trackers, self.plan, self.monitor = trackers, plan, monitor
        self.logs = StepLogs(window=plan.steps_per_epoch)
        self.readers: list[Callable[[Sequence[StepRow]], None]] = []
        self.bar = tqdm(
            total=plan.total_steps,
            initial=start,
            unit="step",
            bar_format=self.BAR,
            disable=not visible,
        )

    def start_epoch(self, epoch: int) -> None:
        """epoch counts from 0."""
        self.bar.set_description_str(f"epoch {epoch + 1}/{self.plan.epochs}")

    def add(
        self,
        step: int,
        scalars: Mapping[str, Tensor],
        numbers: Mapping[str, float | Tensor],
        results: Sequence[StepResult] = (),
    ) -> None:
        """Count a step and keep its values on the device: reading them here would stall every step."""
        self.logs.add(step, scalars, numbers, results)
        self.bar.update()

    def write(self) -> None:
        """Read, judge and write all steps since the last call. Raises AlertError as the monitor does."""
        rows = self.logs.flush()
        if not rows:
            return
        alerts = self.monitor.judge(rows) if self.monitor else []
        for row in rows:
            self.trackers.log(row.step, row.values)
        for read in self.readers:
            read(rows)
        latest = rows[-1].values
        rate = shown_rate(latest)
        text = (
            f"loss={latest['loss/current']:.4f}, mean={latest['loss/average']:.4f}, lr={rate:.2e}"
        )
        self.bar.set_postfix_str(text)
        if self.monitor:
            try:
                self.monitor.act(alerts)
            except UserError:
                self.close()  # else the event file would lack the very steps that ended the run
                raise

    def close(self) -> None:
        self.bar.close()
        self.trackers.close()
