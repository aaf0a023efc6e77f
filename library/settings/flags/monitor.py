"""What is monitored; the family declares the flags."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MonitorOptions:
    """Monitoring; the family has the flags, under names of its own.

    monitor_memory:            watch the device's and the host's memory
    monitor_alert_policy:      warn, or raise: save the weights and end the run
    monitor_memory_warn_ratio: alert when more than this share of the memory is needed
    monitor_loss_spike_ratio:  alert when the loss is this many times what is usual at like sigma
    """

    monitor_memory: bool = True
    monitor_alert_policy: str = "warn"
    monitor_memory_warn_ratio: float = 0.95
    monitor_loss_spike_ratio: float = 3.0
