"""Buffered step values: nothing is read before a flush, and the running mean is over the window."""

import pytest
import torch

from library.data.data_types import StepResult
from library.watching.step_logs import StepLogs, StepSamples
from tests.helpers.reads import CountReads


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
    assert [row.step for row in rows] == [1, 2, 3, 4, 5]
    assert [row.values["loss/average"] for row in rows] == [1.0, 1.5, 2.0, 3.0, 4.0]
    assert rows[-1].values["lr/unet"] == 0.1
    assert logs.flush() == []


def test_values_of_several_dtypes_survive_one_transfer():
    logs = StepLogs(window=1)
    logs.add(
        1, {"loss/current": torch.tensor(0.5, dtype=torch.bfloat16), "n": torch.tensor(2.0)}, {}
    )
    expected = {"loss/current": 0.5, "n": 2.0, "loss/average": 0.5}
    assert logs.flush()[0].values == pytest.approx(expected)


def result_of(keys, losses, sigmas):
    losses, sigmas = torch.tensor(losses), torch.tensor(sigmas)
    return StepResult(loss=losses.mean(), per_sample=losses, sigma=sigmas, keys=keys)


def test_samples_of_all_micro_steps_come_back_in_one_order():
    logs = StepLogs(window=1)
    results = [result_of(("a", "b"), [1.0, 2.0], [0.25, 0.5]), result_of(("c",), [3.0], [0.75])]
    for step in (1, 2):
        logs.add(step, {"loss/current": torch.tensor(7.0)}, {}, results)
    for row in logs.flush():
        assert row.samples == StepSamples(("a", "b", "c"), (1.0, 2.0, 3.0), (0.25, 0.5, 0.75))
        assert row.values["loss/current"] == 7.0


def test_a_loss_that_is_not_finite_does_not_hide_the_mean_of_the_others():
    logs = StepLogs(window=3)
    for step, loss in enumerate((1.0, float("nan"), 3.0), start=1):
        logs.add(step, {"loss/current": torch.tensor(loss)}, {})
    assert [row.values["loss/average"] for row in logs.flush()] == [1.0, 1.0, 2.0]
