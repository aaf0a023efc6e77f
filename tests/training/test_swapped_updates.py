"""Weights that train and wait in RAM: gradients, weights, states and averages of the same bits as those that stay."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from library.memory.visits import SEATS, Visits
from library.settings.run_config import OptimizerOptions
from library.training.optimizers import create_optimizer
from library.training.single_updates import SingleUpdates
from library.training.swapped_updates import SwappedUpdates
from library.training.weight_average import SwappedAverage, WeightAverage
from networks._anima_arguments import component_of
from networks.model_layout import ModelLayout
from networks.whole_model import Whole
from tests.helpers.cards import CARD, WIDE, repeatable
from tests.helpers.late_lane import LateLane
from tests.helpers.memory_modes import OnlyCopied, assert_same_bits, loss_of, small_dit

BLOCKS, LIMIT = 4, 0.5
ADAFACTOR = ("relative_step=False", "scale_parameter=False", "warmup_init=False")
OPTIMIZERS = {
    "AdamW": OptimizerOptions(learning_rate=1e-2),
    "AdamW, not fused": OptimizerOptions(learning_rate=1e-2, optimizer_args=("foreach=False",)),
    "Adafactor": OptimizerOptions(
        optimizer_type="Adafactor", learning_rate=1e-2, optimizer_args=ADAFACTOR
    ),
    "by its own step size": OptimizerOptions(optimizer_type="Adafactor"),
}


class Run:
    """A small model that trains as a whole, all as it is in a run but for the loop around it."""

    def __init__(
        self, how, *, swapped=0, computed=torch.bfloat16, held=torch.float32, mode=None, rates=None,
        device="cpu", start=2, width=32,
    ):  # fmt: skip
        name, self.rounds, self.fused = how
        self.model = small_dit(BLOCKS, width).to(max(computed, held, key=lambda dtype: dtype.itemsize))
        subject = Whole(component_of, rates or {}, computed, lambda: ModelLayout({}, {}))
        self.model.requires_grad_(False)
        subject.mark(self.model)
        if mode:
            self.model.enable_gradient_checkpointing(**mode)
        if swapped:
            self.model.enable_block_swap(swapped, device)
        else:
            self.model.to(device)
        if swapped and device == "cpu":
            self.model.swap.lane = LateLane()
        self.network = subject.made_for(self.model)
        self.network.attach(self.model, held)
        groups, _ = self.network.prepare_optimizer_params(None, None, 1e-2)
        self.optimizer = create_optimizer(OPTIMIZERS[name], groups)
        trained = self.network.get_trainable_params()
        self.single = self.average = None
        if swapped:
            swap = self.network.swap
            self.single = SwappedUpdates(
                self.optimizer, self.network.pairs(), swap, rounds=self.rounds, is_fused=self.fused
            )
            self.average = SwappedAverage(trained, 0.9, start, swap, self.single.away)
            for visits in (self.single.visits, self.average.visits) if device == "cpu" else ():
                visits.going = LateLane()
        else:
            if self.rounds or self.fused:
                self.single = SingleUpdates(self.optimizer, self.network.pairs(), rounds=self.rounds)
                if self.fused:
                    self.single.fuse()
            self.average = WeightAverage(trained, 0.9, start)

    def train(self, first, last, micro_steps=1):
        for step in range(first, last):
            if self.single:
                self.single.begin(7, step)
            for micro_step in range(1 if self.fused else micro_steps):
                loss_of(self.model, seed=10 * step + micro_step).backward()
                if swap := self.network.swap:
                    assert all(weight.grad is None for group in swap.groups for weight in group)
            if self.single:
                self.single.step(self.single.norm(), LIMIT)
            else:
                self.network.gather_gradients()
                torch.nn.utils.clip_grad_norm_(self.network.get_trainable_params(), LIMIT)
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.network.show()
            if step + 1 >= self.average.start_step:
                self.average.update(step + 1)
        return self

    def found(self):
        """All that a file or a state has of it."""
        held = {name: tensor.detach().clone() for name, tensor in self.network.tensors().items()}
        shown = {f"shown {name}": p.detach().clone() for name, p in self.model.named_parameters()}
        states = {
            f"{number} {key}": torch.as_tensor(value).clone()
            for number, state in self.optimizer.state_dict()["state"].items()
            for key, value in state.items()
            if value is not None
        }
        average = {f"average {n}": t.clone() for n, t in enumerate(self.average.kept()["tensors"])}
        return held | shown | states | average


@pytest.mark.parametrize(
    "how, settings, micro_steps",
    [
        (("AdamW", False, False), {"mode": {"mode": "block"}}, 2),
        (("AdamW", False, True), {"mode": {"mode": "cheap"}, "swapped": 3}, 1),
        (("AdamW", True, False), {"held": torch.bfloat16}, 2),
        (("AdamW", False, False), {"held": torch.bfloat16, "mode": {"cpu_offload": True}}, 2),
        (("AdamW, not fused", False, False), {"computed": torch.float32, "rates": {"mod": 0.0}}, 1),
        (("Adafactor", True, True), {"held": torch.bfloat16, "mode": {"mode": "block"}}, 1),
        (
            ("by its own step size", False, False),
            {"rates": {"mlp": 1e-3, "self_attn": 0.0}, "start": 4},  # nobody waits between the steps
            3,
        ),
    ],
)
def test_all_that_trains_is_of_the_same_bits(how, settings, micro_steps):
    swapped = settings.pop("swapped", BLOCKS)
    stays = Run(how, **settings).train(0, 3, micro_steps).found()
    away = Run(how, swapped=swapped, **settings).train(0, 3, micro_steps)
    assert_same_bits(away.found(), stays)
    assert len(away.single.visits.seats) == SEATS and len(away.single.visits.leaving) <= SEATS


TOGETHER, ONE_BY_ONE = ("AdamW", False, False), ("AdamW", False, True)


@pytest.mark.parametrize("how", [TOGETHER, ONE_BY_ONE])
def test_nothing_computes_with_what_waits_in_ram(how):
    run = Run(how, swapped=BLOCKS, mode={"mode": "block"}).train(0, 3)
    single, average = run.single, run.average
    held = [single.pairs[number][1] for number in single.away]
    waits = [
        *(weight for group in run.model.swap.groups for weight in group),
        *(tensor for each in held for tensor in (each, *single._states(each).values())),
        *single.gradients.values(), *(average.tensors[number] for number in single.away),
    ]  # fmt: skip
    assert len(waits) == (5 if single.is_fused else 6) * len(single.away)
    with OnlyCopied(waits):
        run.train(3, 4)
        with pytest.raises(AssertionError, match="of a weight in RAM"):
            held[0].add(1)


@pytest.mark.gpu
@pytest.mark.parametrize("how", [TOGETHER, ONE_BY_ONE, ("Adafactor", True, False)])
@pytest.mark.parametrize("mode", [None, {"mode": "block"}])
def test_on_a_card_all_is_of_the_same_bits_and_what_waits_is_pinned(how, mode):
    """Wide enough that what is copied is waited for, where memory that was not written to is NaN."""
    held = torch.bfloat16 if how[1] else torch.float32
    settings = {"held": held, "mode": mode, "device": CARD, "width": WIDE // 2}
    with repeatable():
        stays = Run(how, **settings).train(0, 4, 2).found()
        away = Run(how, swapped=BLOCKS, **settings).train(0, 4, 2)
    single = away.single
    for number in single.away:
        weight, held = single.pairs[number]
        for tensor in (weight, held, *single._states(held).values(), away.average.tensors[number]):
            assert tensor.is_pinned()
    assert_same_bits(on_cpu(away.found()), on_cpu(stays))


def on_cpu(found):
    return {name: tensor.cpu() for name, tensor in found.items()}


class Called(TorchDispatchMode):
    """The names of the functions that are called within."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


def test_autograd_hands_gradients_on_where_they_were_made():
    """It copies what lies otherwise than its weight to where that is, and that is in RAM."""
    run = Run(TOGETHER, swapped=BLOCKS)
    for parameter in run.model.parameters():
        parameter.requires_grad_(any(parameter is p for group in run.model.swap.groups for p in group))
    loss = loss_of(run.model)
    with Called() as called:
        loss.backward()
    assert "aten::mm" in called.names and "aten::new_empty_strided" not in called.names


@pytest.mark.slow
@pytest.mark.parametrize("how", [TOGETHER, ONE_BY_ONE])
def test_compiled_blocks_train_to_the_same_bits(how):
    runs = [Run(how, swapped=swapped) for swapped in (0, BLOCKS)]
    for run in runs:
        run.model.compile_blocks(any_size=False, backend="aot_eager")
    stays, away = (run.train(0, 3).found() for run in runs)
    assert_same_bits(away, stays)


@pytest.mark.parametrize("how", [TOGETHER, ONE_BY_ONE])
def test_what_is_fetched_before_it_is_back_is_seen(how, monkeypatch):
    """What the lanes wait for each other for; without that the tests above would fail."""
    monkeypatch.setattr(LateLane, "follow", lambda self, mark: None)
    with pytest.raises(AssertionError):
        stays = Run(how).train(0, 3).found()
        assert_same_bits(Run(how, swapped=BLOCKS).train(0, 3).found(), stays)


def test_a_set_that_was_fetched_for_nothing_makes_room():
    homes = {key: [torch.full((key + 1,), float(key))] for key in range(6)}
    lane, back = LateLane(), LateLane()
    visits = Visits(torch.device("cpu"), homes.__getitem__, lane, back)
    for order in ([0, 1, 2, 3, 4, 5], [0, 5, 3, 1, 4], [5, 4, 3, 2, 1, 0]):
        visits.begin()
        for key in order:
            (here,) = visits.come(key)
            visits.leave(key, [(homes[key][0], here + 1)])
    visits.settle()
    counts = {0: 3, 1: 3, 2: 2, 3: 3, 4: 3, 5: 3}
    assert all((homes[key][0] == key + count).all() for key, count in counts.items())
    assert len(visits.seats) == SEATS
