"""What a record keeps of a run: series of any length, quarters of sigma, stages, changes for readers."""

import json
import math
import threading

import pytest
import torch

from library.reporting.record import Outline, RunRecord, Strengths
from library.reporting.series import LIMIT, Series
from library.reporting.stage_times import StageTimes
from library.reporting.strength import measure, places_of
from library.reporting.thumbnails import Picture, within
from library.watching.step_logs import StepSamples
from networks.kinds.adapter import NO_DROPOUT
from networks.kinds.lokr import LoKr, lokr_shape
from networks.kinds.lora import LoRA
from networks.kinds.norm import NormDelta
from networks.network import AdapterNetwork
from networks.network_settings import NetworkSettings
from networks.placements import Placement


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_series_of_any_length_keeps_mean_and_extremes():
    series, count = Series(), 9 * LIMIT + 3
    for step in range(1, count + 1):
        series.add(step, float(step))
    shown = series.shown()
    assert LIMIT <= len(shown["steps"]) <= 2 * LIMIT and shown["steps"][-1] == count
    assert (shown["low"][0], shown["high"][0]) == (1, series.stride)
    assert shown["mean"][0] == pytest.approx((1 + series.stride) / 2)
    assert shown["high"][-1] == count and max(shown["high"]) == count


def test_what_is_not_finite_leaves_a_gap_and_never_reaches_json():
    record = RunRecord()
    for step, value in enumerate((1.0, math.nan, math.inf, 2.0), 1):
        record.add_values(step, {"loss/current": value})
    assert record.document()["series"]["loss/current"]["mean"] == [1.0, None, None, 2.0]
    json.dumps(record.document(), allow_nan=False)


@pytest.mark.parametrize("cut", [1, 700, 2 * LIMIT, 5001])
def test_a_series_goes_on_as_if_it_had_never_stopped(cut):
    whole, first = Series(), Series()
    for step in range(6000):
        whole.add(step, step * 0.1)
        if step < cut:
            first.add(step, step * 0.1)
    resumed = Series.restored(json.loads(json.dumps(first.kept())))
    for step in range(cut, 6000):
        resumed.add(step, step * 0.1)
    assert resumed.shown() == whole.shown()


@pytest.mark.parametrize("damage", [{"stride": 0}, {"stride": "2"}, {"points": [[1, "a", 1, 1]]}, {"pending": [[1]]}])
def test_a_series_that_is_none_is_refused(damage):
    with pytest.raises(ValueError):
        Series.restored({"stride": 1, "points": [], "pending": [], **damage})


def test_losses_are_shown_by_the_quarter_of_sigma_they_fall_into():
    record = RunRecord()
    record.add_samples(3, StepSamples("abcde", (1.0, 3.0, 5.0, math.nan, 7.0), (0.1, 0.2, 0.5, 0.6, 1.0)))
    means = {name: shown["mean"] for name, shown in record.document()["series"].items()}
    assert means == {
        "loss/sigma_0.00-0.25": [2.0], "loss/sigma_0.50-0.75": [5.0], "loss/sigma_0.75-1.00": [7.0]
    }  # fmt: skip


def test_stages_count_for_themselves():
    clock = Clock()
    times = StageTimes(clock)
    with times.within("training"):
        clock.now = 5.0
        with times.within("validate"):
            clock.now = 7.0
            assert times.current == "validate"
        clock.now = 8.0
        times.add("save", 0.5)
        assert times.read() == {"training": 5.5, "validate": 2.0, "save": 0.5}
    assert times.read() == {"training": 5.5, "validate": 2.0, "save": 0.5} and not times.current


def test_the_time_that_is_left_follows_the_speed_of_late():
    clock = Clock()
    record = RunRecord(StageTimes(clock))
    record.begin(Outline(total_steps=100))
    for step in (10, 20, 30):
        clock.now += 5.0
        record.add_progress(step, clock.now)
    assert record.moment(40)["seconds_left"] == pytest.approx(30.0)


def test_readers_hear_every_change_or_that_they_are_too_late():
    record = RunRecord()
    record.add_values(1, {"loss/current": 1.0})
    record.is_watched = True
    version, changes = record.changes_since(record.version, 0.0)
    assert changes == []
    waiting: list = []
    reader = threading.Thread(target=lambda: waiting.append(record.changes_since(version, 10.0)))
    reader.start()
    record.add_note("WARNING", "look")
    reader.join(10.0)
    ((version, (change,)),) = waiting
    assert change["note"]["text"] == "look"
    assert record.changes_since(0, 0.0)[1] is None  # before it was watched nothing was kept
    assert record.changes_since(version + 1, 0.0)[1] is None  # of another run


def test_a_table_takes_whatever_others_have():
    record = RunRecord()
    record.add_table("ledger", ["picture", "ratio"], [("a", math.nan), (None, 1 / 3), ("b", 7)])
    record.add_table("ledger", ["picture", "ratio"], [("a", 2.0)])
    (table,) = record.document()["tables"]
    assert table["rows"] == [("a", 2.0)]


def adapters() -> AdapterNetwork:
    linear = torch.nn.Linear(12, 8, bias=False)
    shape = lokr_shape((8, 12), 2, 4, decompose_both=False, full_matrix=False)
    made = [LoRA(12, 8, 3, 6.0, NO_DROPOUT), LoKr(shape, 1.0, NO_DROPOUT), NormDelta(8, bias=True)]
    torch.manual_seed(0)
    for adapter in made:
        for factor in adapter.parameters():
            torch.nn.init.normal_(factor)
    paths = ["blocks.1.attn.q", "front.blocks.0.mlp.2", "head"]
    places = [Placement(path, linear, adapter) for path, adapter in zip(paths, made)]
    return AdapterNetwork(places, NetworkSettings(kind="LoRA"))


def test_the_strength_of_an_adapter_is_the_norm_of_what_it_adds():
    network = adapters()
    lora, lokr, norm = (placement.adapter for placement in network.placements)
    expected = [
        lora.delta().norm().item(), lokr.delta().norm().item(),
        torch.cat(list(norm.changes().values())).norm().item(),
    ]  # fmt: skip
    assert measure(network.changes(), 4) == Strengths(4, pytest.approx(expected, rel=1e-5))
    expected = [("blocks.1", "attn.q"), ("front.blocks.0", "mlp.2"), ("", "head")]
    assert places_of(network.paths()) == expected


def test_measuring_the_strength_changes_nothing():
    network, state = adapters(), torch.get_rng_state()
    before = [factor.clone() for factor in network.get_trainable_params()]
    measure(network.changes(), 1)
    after = network.get_trainable_params()
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert torch.equal(torch.get_rng_state(), state)


def test_pictures_that_are_too_much_for_a_page_give_way_step_by_step():
    pictures = [Picture(step, n, "p", 1, "f", "x" * 100) for step in range(10) for n in range(2)]
    kept = within(pictures, 1000)
    steps = [{picture.step for picture in kept if picture.image}, {0, 9}]
    assert len(kept) == 20 and steps[1] <= steps[0] and len(steps[0]) == 5
    assert within(pictures, 2000) == pictures
