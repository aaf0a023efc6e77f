"""Values of each step, kept on the device until a log point, then read in one transfer and shown."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from library.errors import UserError

if TYPE_CHECKING:
    from library.trackers import Trackers
    from library.train_util import StepPlan


class StepLogs:
    """Buffers scalars per step without reading them; `flush` is the one host synchronisation.

    window: number of steps in the running mean of the loss
    """

    def __init__(self, window: int) -> None:
        self.recent: deque[float] = deque(maxlen=window)
        self.steps: list[int] = []
        self.tensors: list[dict[str, Tensor]] = []
        self.numbers: list[dict[str, float]] = []

    def add(self, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        """Keep one step's scalar tensors (detached, any device) and plain numbers."""
        self.steps.append(step)
        self.tensors.append(dict(tensors))
        self.numbers.append(dict(numbers))

    def flush(self) -> list[tuple[int, dict[str, float]]]:
        """All rows since the last flush, with the running mean as loss/average; empties the buffer."""
        flat = [value.float() for row in self.tensors for value in row.values()]
        values = iter(torch.stack(flat).tolist() if flat else [])
        rows = []
        for step, tensors, numbers in zip(self.steps, self.tensors, self.numbers):
            row = {name: next(values) for name in tensors}
            self.recent.append(row["loss/current"])
            row["loss/average"] = sum(self.recent) / len(self.recent)
            rows.append((step, {**row, **numbers}))
        self.steps, self.tensors, self.numbers = [], [], []
        return rows


class RunProgress:
    """What the user sees of the loop: the progress bar, and the trackers fed at log points."""

    BAR = "{desc} {bar:20} {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_inv_fmt}{postfix}]"

    def __init__(self, trackers: Trackers, plan: StepPlan, visible: bool) -> None:
        self.trackers, self.plan = trackers, plan
        self.logs = StepLogs(window=plan.steps_per_epoch)
        self.bar = tqdm(
            total=plan.total_steps, unit="step", bar_format=self.BAR, disable=not visible
        )

    def start_epoch(self, epoch: int) -> None:
        """epoch counts from 0."""
        self.bar.set_description_str(f"epoch {epoch + 1}/{self.plan.epochs}")

    def add(self, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        """Count a step and keep its values on the device: reading them here would stall every step."""
        self.logs.add(step, tensors, numbers)
        self.bar.update()

    def write(self) -> None:
        """Read and write all steps since the last call. Raises UserError for a loss that is not finite."""
        rows = self.logs.flush()
        for step, values in rows:
            self.trackers.log(step, values)
            if not math.isfinite(values["loss/current"]):
                raise UserError(
                    f"The loss of step {step} is not a finite number. Nothing was saved after it. "
                    "Lower learning_rate, raise lr_warmup_steps, or use mixed_precision = bf16."
                )
        if rows:
            latest = rows[-1][1]
            rate = max(value for name, value in latest.items() if name.startswith("lr/"))
            self.bar.set_postfix_str(
                f"loss={latest['loss/current']:.4f}, mean={latest['loss/average']:.4f}, lr={rate:.2e}"
            )

    def close(self) -> None:
        self.bar.close()
        self.trackers.close()
