"""A run that watches itself: what is not finite, jumps of the loss, memory near its limit.

Everything is judged at log points, from values that waited on the device until then. Only what must
never reach the weights is settled at each update, by `UpdateGuard`.
"""

from __future__ import annotations

import bisect
import logging
import math
import os
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from library.errors import UserError
from library.settings.options import written_names
from library.training.flat_updates import FlatUpdates
from library.training.optimizers import unwrapped
from library.training.single_updates import found_inf, skips_on_device
from library.utils import first_few, log_lines

if TYPE_CHECKING:
    from library.settings.flags.monitor import MonitorOptions
    from library.watching.step_logs import StepRow

logger = logging.getLogger(__name__)

MIB = 1024**2
NAMES_SHOWN = 3


class AlertKind(Enum):
    """What an alert is about, by the last part of its log key."""

    NONFINITE_LOSS = "nonfinite_loss"
    NONFINITE_GRADIENT = "nonfinite_gradient"
    LOSS_SPIKE = "loss_spike"
    MEMORY_NEAR_LIMIT = "memory_near_limit"

    @property
    def log_key(self) -> str:
        return f"alert/{self.value}"


ADVICE = {
    AlertKind.NONFINITE_LOSS: "Lower learning_rate, raise lr_warmup_steps or use mixed_precision = bf16; "
    "if it is always the same pictures, look at them and delete their caches.",
    AlertKind.NONFINITE_GRADIENT: "If no process reports its loss as well, lower learning_rate, "
    "or use mixed_precision = no to see whether the precision is the cause.",
    AlertKind.LOSS_SPIKE: "Look at the pictures and their captions; if they are in order, lower "
    "learning_rate or raise {monitor_loss_spike_ratio}.",
    AlertKind.MEMORY_NEAR_LIMIT: "Lower batch_size or the resolution, set gradient_checkpointing, close "
    "other programs, or raise {monitor_memory_warn_ratio}.",
}
"""What to do; in braces: options, by the names that the user writes."""


class AlertError(UserError):
    """An alert stopped the run (policy raise)."""


@dataclass(frozen=True)
class Alert:
    """Something to tell, and what happened at which steps."""

    kind: AlertKind
    message: str


@dataclass(frozen=True, kw_only=True)
class MemoryReading:
    """Bytes at one moment; None where the machine does not say.

    limit:    all that the device which trains has: a GPU's memory, or the host's when that trains
    in_use:   of the limit, what training cannot have back: the rest of the machine's, and the most
              this run needed at once. What torch merely keeps in reserve counts as free.
    resident: of this process, in the host's memory
    allocated, reserved, peak: of torch's allocator on a GPU, peak since the last reading
    """

    limit: int | None = None
    in_use: int | None = None
    resident: int | None = None
    allocated: int | None = None
    reserved: int | None = None
    peak: int | None = None

    @property
    def ratio(self) -> float | None:
        """in_use as a share of the limit."""
        return self.in_use / self.limit if self.limit and self.in_use is not None else None

    @property
    def used_of_limit(self) -> str:
        return f"{(self.in_use or 0) / MIB:.0f} of {(self.limit or 0) / MIB:.0f} MiB"

    def numbers(self) -> dict[str, float]:
        """What is known, by log key."""
        sizes = {
            "gpu/mem_allocated_mb": self.allocated,
            "gpu/mem_reserved_mb": self.reserved,
            "gpu/mem_peak_allocated_mb": self.peak,
            "host/mem_rss_mb": self.resident,
        }
        found = {key: size / MIB for key, size in sizes.items() if size is not None}
        if self.ratio is not None:
            found["host/mem_usage_ratio" if self.peak is None else "gpu/mem_usage_ratio"] = (
                self.ratio
            )
        return found


def read_memory(device: torch.device) -> MemoryReading:
    """The counters of the device and the host; on a GPU this starts its peak afresh."""
    resident = proc_bytes("/proc/self/status", "VmRSS")
    if device.type == "cpu":
        total = proc_bytes("/proc/meminfo", "MemTotal")
        available = proc_bytes("/proc/meminfo", "MemAvailable")
        used = None if total is None or available is None else total - available
        return MemoryReading(limit=total, in_use=used, resident=resident)
    if device.type != "cuda":
        return MemoryReading(resident=resident)
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return MemoryReading(
        limit=total,
        in_use=max(total - free - reserved, 0) + peak,
        resident=resident,
        allocated=torch.cuda.memory_allocated(device),
        reserved=reserved,
        peak=peak,
    )


def proc_bytes(path: str, name: str) -> int | None:
    """A size of Linux's /proc ("VmRSS:  1234 kB"), in bytes; None where there is none."""
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


class LossHistory:
    """Losses of single samples with their sigma, and what is usual at a sigma like theirs.

    Like sigma: in the same quarter of the sigmas seen lately, so that each quarter has as many samples
    whatever the distribution. Medians, so that the spikes themselves move them little.
    """

    LENGTH, ENOUGH = 512, 64

    def __init__(self) -> None:
        self.samples: deque[tuple[float, float]] = deque(maxlen=self.LENGTH)

    def add(self, sigmas: Sequence[float], losses: Sequence[float]) -> None:
        """Remember samples; those without a finite loss are left out."""
        self.samples.extend(pair for pair in zip(sigmas, losses) if math.isfinite(pair[1]))

    def usual(self, sigmas: Sequence[float]) -> list[float] | None:
        """The median loss at each sigma; None as long as there are too few samples to tell."""
        count = len(self.samples)
        if count < self.ENOUGH:
            return None
        ordered = sorted(self.samples)
        quarters = [ordered[count * i // 4 : count * (i + 1) // 4] for i in range(4)]
        tops = [quarter[-1][0] for quarter in quarters[:-1]]
        medians = [statistics.median(loss for _, loss in quarter) for quarter in quarters]
        return [medians[bisect.bisect_left(tops, sigma)] for sigma in sigmas]


class UpdateGuard:
    """Steps the optimizer, but never with a gradient that is not finite.

    fp16's gradient scaler does this already. Otherwise policy warn leaves it to the device, so that the
    host does not wait: to the optimizer's own kernel where that can skip, or the update is taken back
    where it is made over one buffer. Other optimizers and policy raise read the norm before every update.
    flat:    the optimizer's updates over one buffer, if they are
    single:  its updates of one weight after another, if they are: those leave out what is not finite
    tripped: policy raise has seen a gradient that is not finite
    """

    def __init__(
        self,
        optimizer: Optimizer,
        policy: str,
        flat: FlatUpdates | None = None,
        single: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.optimizer, self.flat, self.single = optimizer, flat, single
        self.inner = unwrapped(optimizer)
        self.has_scaler = getattr(optimizer, "scaler", None) is not None
        self.stops = policy == "raise"
        self.tripped = False

    def step(self, norm: Tensor) -> None:
        """One update with the gradients whose norm (a scalar, on the device) this is, or none."""
        if self.single is not None:
            self.single(norm)
            self.tripped = self.stops and not torch.isfinite(norm).item()
        elif self.has_scaler:
            self.optimizer.step()
        elif self.skips_on_device and not self.stops:
            with found_inf(self.inner, ~torch.isfinite(norm.detach())):
                self.optimizer.step()
        elif self.flat is not None and self.flat.undoes and not self.stops:
            with self.flat.undone_if(~torch.isfinite(norm)):
                self.optimizer.step()
        elif torch.isfinite(norm).item():  # the host waits here
            self.optimizer.step()
        else:
            self.tripped = self.stops

    @property
    def skips_on_device(self) -> bool:
        return skips_on_device(self.inner)

    def describe(self) -> str:
        """What happens to a gradient that is not finite, and what knowing it costs."""
        if self.has_scaler:
            return "gradients that are not finite: skipped by the gradient scaler of fp16"
        if self.stops:
            return "gradients that are not finite stop the run: each update waits for its norm"
        if self.single is not None:
            return "gradients that are not finite: left out weight by weight, told at log points"
        if self.skips_on_device:
            return "gradients that are not finite: skipped on the device, told at log points"
        if self.flat is not None and self.flat.can_undo:
            return "gradients that are not finite: taken back on the device, told at log points"
        name = type(self.inner).__name__
        return f"gradients that are not finite: skipped; with {name} each update waits for its norm"


class Monitor:
    """Judges the rows of each log point and acts by the policy: one warning per kind, or the end.

    probe: reads the memory; the real one unless a caller brings another
    """

    def __init__(
        self,
        options: MonitorOptions,
        guard: UpdateGuard,
        device: torch.device,
        probe: Callable[[], MemoryReading] | None = None,
    ) -> None:
        self.options = options
        self.written = written_names(options)
        self.guard = guard
        self.history = LossHistory()
        self.probe = probe or partial(read_memory, device)
        self.memory_was_near = False
        if options.monitor_memory:
            self.probe()  # peaks count from here: models and caches came before
        logger.info("%s", self.guard.describe())

    @property
    def must_stop(self) -> bool:
        """Whether the run should come to a log point now instead of at the next one due."""
        return self.guard.tripped

    def judge(self, rows: Sequence[StepRow]) -> list[Alert]:
        """What is wrong in the rows since the last log point; adds the log keys to their values."""
        judges = {
            AlertKind.NONFINITE_LOSS: self._nonfinite_loss,
            AlertKind.NONFINITE_GRADIENT: self._nonfinite_gradient,
            AlertKind.LOSS_SPIKE: self._loss_spike,
        }
        findings: dict[AlertKind, dict[int, list[str]]] = {kind: {} for kind in judges}
        for row in rows:
            found = {kind: judge(row) for kind, judge in judges.items()}
            flags = {kind.log_key: float(found[kind] is not None) for kind in found}
            row.values.update({**flags, "alert/any": max(flags.values())})
            if found[AlertKind.NONFINITE_LOSS] is not None:
                found[AlertKind.NONFINITE_GRADIENT] = None  # its consequence: told once
            for kind, pictures in found.items():
                if pictures is not None:
                    findings[kind][row.step] = pictures
        alerts = [Alert(kind, self._tell(kind, found)) for kind, found in findings.items() if found]
        return alerts + (self._judge_memory(rows[-1]) if self.options.monitor_memory else [])

    def act(self, alerts: Sequence[Alert]) -> None:
        """Warn of each; or raise AlertError, in every process if in one, so that none waits for ever."""
        texts = [f"{alert.message} {ADVICE[alert.kind].format(**self.written)}" for alert in alerts]
        if not self.guard.stops:
            log_lines(logger, texts, logging.WARNING)
            return
        from accelerate.utils import gather_object

        told = list(dict.fromkeys(gather_object(texts)))
        if told:
            policy = f"({self.written['monitor_alert_policy']} = raise)"
            raise AlertError(" ".join([*told, policy]))

    def _nonfinite_loss(self, row: StepRow) -> list[str] | None:
        """The pictures with such a loss; None when all is well."""
        lost = [k for k, x in zip(row.samples.keys, row.samples.losses) if not math.isfinite(x)]
        return lost if lost or not math.isfinite(row.values["loss/current"]) else None

    def _nonfinite_gradient(self, row: StepRow) -> list[str] | None:
        """No pictures, since all share it. Under fp16 an overflow is how the scaler finds its scale."""
        norm = row.values.get("norm/grad", 0.0)
        return None if self.guard.has_scaler or math.isfinite(norm) else []

    def _loss_spike(self, row: StepRow) -> list[str] | None:
        """The picture furthest above, if the mean loss is over the ratio times the usual one."""
        samples, limit = row.samples, self.options.monitor_loss_spike_ratio
        usual = self.history.usual(samples.sigmas)
        self.history.add(samples.sigmas, samples.losses)
        lost = not all(map(math.isfinite, samples.losses))
        if not usual or lost or not sum(samples.losses) > limit * sum(usual):
            return None
        excess = [loss - expected for loss, expected in zip(samples.losses, usual)]
        return [samples.keys[excess.index(max(excess))]]

    def _tell(self, kind: AlertKind, found: Mapping[int, Sequence[str]]) -> str:
        steps = ("steps " if len(found) > 1 else "step ") + first_few(
            [str(step) for step in found], NAMES_SHOWN
        )
        keys = list(dict.fromkeys(key for pictures in found.values() for key in pictures))
        pictures = f" Pictures: {first_few(keys, NAMES_SHOWN)}." if keys else ""
        if kind is AlertKind.LOSS_SPIKE:
            ratio = self.options.monitor_loss_spike_ratio
            return (
                f"{steps}: the loss is over {ratio:g} times what is usual at like sigma.{pictures}"
            )
        what = "loss" if kind is AlertKind.NONFINITE_LOSS else "gradient"
        return (
            f"{steps}: the {what} is not finite; no update was made from such a gradient.{pictures}"
        )

    def _judge_memory(self, row: StepRow) -> list[Alert]:
        """Told when the limit comes near, not again while it stays; the log keys are always there."""
        reading, limit = self.probe(), self.options.monitor_memory_warn_ratio
        ratio = reading.ratio
        near = ratio is not None and ratio > limit
        row.values.update({**reading.numbers(), AlertKind.MEMORY_NEAR_LIMIT.log_key: float(near)})
        row.values["alert/any"] = max(row.values["alert/any"], float(near))
        news, self.memory_was_near = near and not self.memory_was_near, near
        if not news:
            return []
        text = f"step {row.step}: {reading.used_of_limit} of memory are needed, over {limit:.0%}."
        return [Alert(AlertKind.MEMORY_NEAR_LIMIT, text)]
