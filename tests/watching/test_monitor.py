"""A run that watches itself: what is judged, what is told, and that bad gradients move nothing."""

import logging
import math
from itertools import pairwise

import pytest
import torch

from library.anima_runtime.shared_groups import AnimaMonitorOptions
from library.data.data_types import StepResult
from library.settings.options import written_names
from library.watching.monitor import (
    ADVICE,
    MIB,
    AlertKind,
    LossHistory,
    MemoryReading,
    Monitor,
    UpdateGuard,
    read_memory,
)
from library.watching.step_logs import StepLogs
from tests.helpers.reads import CountReads
from tests.helpers.running import resident

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
BAD = pytest.mark.parametrize("bad", [math.nan, math.inf])
OPTIMIZERS = {
    "fused AdamW": lambda p: torch.optim.AdamW([p], lr=0.1, fused=True),
    "fused Adam": lambda p: torch.optim.Adam([p], lr=0.1, fused=True, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW([p], lr=0.1),
    "fused SGD": lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.9, fused=True),
    "Adagrad": lambda p: torch.optim.Adagrad([p], lr=0.1),
}


def run_updates(make, gradients, policy="warn", device="cpu"):
    """The parameter after guarded updates with these gradients, the optimizer and the guard."""
    parameter = torch.nn.Parameter(torch.ones(3, device=device))
    optimizer = make(parameter)
    guard = UpdateGuard(optimizer, policy)
    for value in gradients:
        parameter.grad = torch.full_like(parameter, value)
        guard.step(parameter.grad.norm())
    return parameter.detach(), optimizer, guard


def state_of(optimizer):
    return [value for state in optimizer.state.values() for value in state.values()]


@BAD
@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_that_is_left_out_leaves_no_trace(name, bad, device):
    """Weights, moments and step counts are those of a run that never saw the bad gradients."""
    make = OPTIMIZERS[name]
    seen, seen_optimizer, _ = run_updates(make, [bad, 1.0, bad, -2.0], device=device)
    clean, clean_optimizer, _ = run_updates(make, [1.0, -2.0], device=device)
    assert torch.equal(seen, clean) and not torch.equal(clean, torch.ones_like(clean))
    for ours, expected in zip(state_of(seen_optimizer), state_of(clean_optimizer), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def reads_of(name, policy):
    with CountReads() as counter:
        run_updates(OPTIMIZERS[name], [1.0, math.nan, 1.0], policy)
    return counter.reads


def test_only_who_says_so_reads_the_norm_at_each_update():
    assert reads_of("fused AdamW", "warn") == 0
    assert reads_of("fused SGD", "warn") == reads_of("fused AdamW", "raise") == 3
    _, _, guard = run_updates(OPTIMIZERS["fused AdamW"], [])
    assert "waits" not in guard.describe()
    for name, policy in (("fused SGD", "warn"), ("fused AdamW", "raise")):
        _, _, guard = run_updates(OPTIMIZERS[name], [], policy)
        assert "each update waits" in guard.describe()


@pytest.mark.gpu
def test_on_a_gpu_the_fused_optimizer_skips_without_a_synchronisation():
    torch.cuda.set_sync_debug_mode("error")
    try:
        run_updates(OPTIMIZERS["fused AdamW"], [1.0, math.nan, 1.0], device="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("policy, tripped", [("warn", False), ("raise", True)])
def test_only_policy_raise_asks_for_the_end(policy, tripped):
    assert run_updates(OPTIMIZERS["AdamW"], [1.0, math.nan, 1.0], policy)[2].tripped is tripped


class Scaled:
    """What the guard sees of an optimizer that accelerate has given fp16's gradient scaler."""

    def __init__(self, optimizer):
        self.optimizer, self.scaler = optimizer, torch.amp.GradScaler("cpu")

    def step(self):
        self.scaler.step(self.optimizer)
        self.scaler.update()


def test_under_fp16_the_scaler_decides_and_an_overflow_is_no_alert():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = Scaled(OPTIMIZERS["fused AdamW"](parameter))
    settings = AnimaMonitorOptions(monitor_memory=False, monitor_alert_policy="raise")
    monitor = Monitor(settings, UpdateGuard(optimizer, "raise"), torch.device("cpu"))
    optimizer.scaler.scale((parameter * math.inf).sum()).backward()
    monitor.guard.step(parameter.grad.norm())
    assert torch.equal(parameter.detach(), torch.ones(3)) and not monitor.guard.tripped
    assert monitor.judge(rows([(0.5, 1.0)], norm=math.inf)) == []
    assert monitor.judge(rows([(0.5, math.nan)], norm=math.inf))[0].kind is AlertKind.NONFINITE_LOSS


def rows(samples, *, first_step=1, norm=1.0, batch=1):
    """Steps as the loop logs them; samples: (sigma, loss) of one picture after the other."""
    logs = StepLogs(window=10)
    for start in range(0, len(samples), batch):
        sigmas, losses = torch.tensor(samples[start : start + batch]).unbind(1)
        keys = tuple(f"picture {start + i}" for i in range(len(losses)))
        result = StepResult(loss=losses.mean(), per_sample=losses, sigma=sigmas, keys=keys)
        scalars = {"loss/current": result.loss, "norm/grad": torch.tensor(norm)}
        logs.add(first_step + start // batch, scalars, {"lr/unet": 1.0}, [result])
    return logs.flush()


def monitor_of(**settings):
    optimizer = OPTIMIZERS["fused AdamW"](torch.nn.Parameter(torch.ones(1)))
    probe = settings.pop("probe", None)
    options = AnimaMonitorOptions(**{"monitor_memory": False, **settings})
    guard = UpdateGuard(optimizer, options.monitor_alert_policy)
    return Monitor(options, guard, torch.device("cpu"), probe)


def usual_samples(count, seed=0):
    """Losses as a flow model has them: ten times higher near the image than near noise."""
    draw = torch.Generator().manual_seed(seed)
    sigmas = torch.rand(count, generator=draw)
    spread = 1 + 0.2 * torch.randn(count, generator=draw).clamp(-2, 2)
    return [(s, 10 ** (-s) * f) for s, f in zip(sigmas.tolist(), spread.tolist())]


def test_losses_that_differ_because_their_sigmas_do_are_no_spikes():
    samples = usual_samples(600)
    jumps = [later[1] / earlier[1] for earlier, later in pairwise(samples)]
    assert max(jumps) > 6  # against the previous step, the ratio of 3 would be passed many times
    monitor = monitor_of()
    judged = rows(samples)
    assert monitor.judge(judged) == []
    assert {row.values["alert/loss_spike"] for row in judged} == {0.0}


def test_a_loss_usual_at_one_sigma_is_a_spike_at_another():
    monitor = monitor_of()
    monitor.judge(rows(usual_samples(300)))
    judged = rows([(0.05, 0.8), (0.95, 0.8), (0.95, 0.12)], first_step=301)
    (alert,) = monitor.judge(judged)
    assert [row.values["alert/loss_spike"] for row in judged] == [0.0, 1.0, 0.0]
    assert [row.values["alert/any"] for row in judged] == [0.0, 1.0, 0.0]
    assert alert.kind is AlertKind.LOSS_SPIKE
    assert "step 302:" in alert.message and "picture 1." in alert.message


def test_the_spike_ratio_is_the_users():
    for ratio, count in ((3.0, 1), (30.0, 0)):
        monitor = monitor_of(monitor_loss_spike_ratio=ratio)
        monitor.judge(rows(usual_samples(300)))
        assert len(monitor.judge(rows([(0.95, 1.2)]))) == count


def test_nothing_is_called_a_spike_before_there_is_enough_to_compare_with():
    monitor = monitor_of()
    assert monitor.judge(rows([*usual_samples(LossHistory.ENOUGH - 1), (0.5, 1000.0)])) == []


def test_a_level_that_stays_becomes_usual():
    monitor = monitor_of()
    monitor.judge(rows(usual_samples(300)))
    higher = [(sigma, 5 * loss) for sigma, loss in usual_samples(600, seed=1)]
    judged = rows(higher)
    monitor.judge(judged)
    spikes = [row.values["alert/loss_spike"] for row in judged]
    assert sum(spikes[:50]) > 40 and sum(spikes[-100:]) == 0


def test_warnings_are_one_line_per_kind_and_name_steps_and_pictures(caplog):
    monitor = monitor_of()
    samples = [(0.5, 1.0), (0.5, math.nan), (0.5, math.inf), (0.5, 1.0)]
    judged = rows(samples) + rows([(0.5, 1.0)], first_step=5, norm=math.nan)
    with caplog.at_level(logging.WARNING):
        monitor.act(monitor.judge(judged))
    loss, gradient = [record.getMessage() for record in caplog.records]
    assert loss.startswith("steps 2, 3: the loss is not finite")
    assert "picture 1, picture 2" in loss and "learning_rate" in loss
    assert gradient.startswith("step 5: the gradient is not finite")
    assert [row.values["alert/nonfinite_loss"] for row in judged] == [0.0, 1.0, 1.0, 0.0, 0.0]
    assert [row.values["alert/any"] for row in judged] == [0.0, 1.0, 1.0, 0.0, 1.0]


def test_the_resident_memory_follows_what_is_allocated():
    before = resident()
    held = torch.ones(64 * MIB // 4)
    grown = resident() - before
    assert 60 * MIB < grown < 80 * MIB and held.numel()


def test_memory_near_a_declared_limit_is_told_once_as_long_as_it_stays(caplog):
    held = []
    limit = resident() + 96 * MIB

    def probe():
        return MemoryReading(limit=limit, in_use=resident(), resident=resident())

    ratio = 1 - 32 * MIB / limit
    monitor = monitor_of(monitor_memory=True, monitor_memory_warn_ratio=ratio, probe=probe)
    flags = []
    with caplog.at_level(logging.WARNING):
        for step, size in enumerate((0, 80, 80, 0), start=1):
            held = torch.ones(size * MIB // 4)
            judged = rows([(0.5, 1.0)], first_step=step)
            monitor.act(monitor.judge(judged))
            flags.append(judged[-1].values["alert/memory_near_limit"])
            assert judged[-1].values["host/mem_rss_mb"] > 0
            assert judged[-1].values["alert/any"] == flags[-1]
    assert flags == [0.0, 1.0, 1.0, 0.0] and not held.numel()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("step 2: ") and "batch_size" in warning


def test_what_the_allocator_keeps_in_reserve_is_not_in_use():
    """A GPU of 100 of which others have 10, and the allocator holds 85 for a peak of 40."""
    reading = MemoryReading(limit=100, in_use=10 + 40, allocated=30, reserved=85, peak=40)
    numbers = reading.numbers()
    assert numbers["gpu/mem_usage_ratio"] == 0.5
    assert set(numbers) == {
        f"gpu/mem_{name}"
        for name in ("allocated_mb", "reserved_mb", "peak_allocated_mb", "usage_ratio")
    }


@pytest.mark.gpu
def test_a_gpus_reading_tells_the_peak_and_forgives_the_reserve():
    device = torch.device("cuda")
    read_memory(device)
    held = torch.empty(512 * MIB, dtype=torch.uint8, device=device)
    del held
    first, second = read_memory(device), read_memory(device)
    assert first.peak >= 512 * MIB > second.peak and second.reserved >= 512 * MIB
    assert first.in_use - second.in_use >= 500 * MIB
    assert first.limit == torch.cuda.get_device_properties(device).total_memory


def test_without_memory_monitoring_nothing_is_read():
    def probe():
        raise AssertionError("read")

    judged = rows([(0.5, 1.0)])
    assert monitor_of(probe=probe).judge(judged) == []
    assert not any("mem" in key for key in judged[0].values)


def test_what_this_machine_does_not_tell_is_left_out():
    monitor = monitor_of(monitor_memory=True, probe=MemoryReading)
    judged = rows([(0.5, 1.0)])
    assert monitor.judge(judged) == []
    assert judged[0].values["alert/memory_near_limit"] == 0.0
    assert not any("mem_" in key and "alert" not in key for key in judged[0].values)


def test_advice_names_options_as_the_user_writes_them():
    written = written_names(AnimaMonitorOptions())
    texts = {kind: advice.format(**written) for kind, advice in ADVICE.items()}
    assert texts.keys() == set(AlertKind)
    assert f"raise {written['monitor_loss_spike_ratio']}." in texts[AlertKind.LOSS_SPIKE]
    assert f"raise {written['monitor_memory_warn_ratio']}." in texts[AlertKind.MEMORY_NEAR_LIMIT]
