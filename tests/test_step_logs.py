"""Buffered step values: nothing is read before a flush, and the running mean is over the window."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from library.step_logs import StepLogs


class CountReads(TorchDispatchMode):
    """Counts the operators that make the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.reads += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_adding_reads_nothing_from_the_device():
    logs = StepLogs(window=3)
    with CountReads() as counter:
        for step in range(1, 6):
            logs.add(step, {"loss/current": torch.tensor(float(step))}, {"lr/unet": 0.1})
    assert counter.reads == 0


def test_flush_returns_every_step_with_the_mean_over_the_window():
    logs = StepLogs(window=3)
    for step in range(1, 6):
        logs.add(step, {"loss/current": torch.tensor(float(step))}, {"lr/unet": 0.1})
    rows = logs.flush()
    assert [step for step, _ in rows] == [1, 2, 3, 4, 5]
    assert [values["loss/average"] for _, values in rows] == [1.0, 1.5, 2.0, 3.0, 4.0]
    assert rows[-1][1]["lr/unet"] == 0.1
    assert logs.flush() == []


def test_values_of_several_dtypes_survive_one_transfer():
    logs = StepLogs(window=1)
    logs.add(1, {"loss/current": torch.tensor(0.5, dtype=torch.bfloat16), "n": torch.tensor(2.0)}, {})
    assert logs.flush()[0][1] == pytest.approx({"loss/current": 0.5, "n": 2.0, "loss/average": 0.5})
