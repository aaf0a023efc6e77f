"""The groups of options that every family has, with Anima's names where sd-scripts has none."""

from __future__ import annotations

from dataclasses import dataclass

from library.settings.effects import needs
from library.settings.flags.monitor import MonitorOptions
from library.settings.options import above, between, flag
from library.settings.run_config import GROUPS


@dataclass(frozen=True, kw_only=True)
class AnimaMonitorOptions(MonitorOptions):
    """Monitoring"""

    monitor_memory: bool = flag(
        MonitorOptions.monitor_memory, "watch the device's and the host's memory",
        names=("--anima_monitor_memory",),
    )  # fmt: skip
    monitor_alert_policy: str = flag(
        MonitorOptions.monitor_alert_policy, "an alert warns, or saves the weights and ends the run",
        names=("--anima_monitor_alert_policy",), choices=("warn", "raise"),
    )  # fmt: skip
    monitor_memory_warn_ratio: float = flag(
        MonitorOptions.monitor_memory_warn_ratio,
        "alert when more than this share of the memory is needed",
        check=between(0, 1),
        names=("--anima_monitor_memory_warn_ratio",),
        idle=(needs(lambda o: o.monitor_memory, "anima_monitor_memory is off"),),
    )
    monitor_loss_spike_ratio: float = flag(
        MonitorOptions.monitor_loss_spike_ratio,
        "alert when the loss is this many times what is usual at like sigma",
        check=above(0),
        names=("--anima_monitor_loss_spike_ratio",),
    )


SHARED_GROUPS: dict[str, type] = {**GROUPS, "monitor": AnimaMonitorOptions}
"""The groups of every family, with Anima's names where a family has names of its own."""
