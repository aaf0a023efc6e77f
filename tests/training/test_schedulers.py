"""Schedules at named steps, by tables worked by hand and by transformers and diffusers themselves."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch

from library.errors import ConfigError
from library.settings.schedule_names import SCHEDULES
from library.training.schedulers import check_schedule, create_scheduler, in_steps

LR = 0.01


def options(lr_scheduler="constant", **changes):
    values = {
        "lr_scheduler": lr_scheduler,
        "lr_scheduler_type": "",
        "lr_scheduler_args": None,
        "lr_warmup_steps": 0,
        "lr_decay_steps": 0,
        "lr_scheduler_num_cycles": 1,
        "lr_scheduler_power": 1,
        "lr_scheduler_timescale": None,
        "lr_scheduler_min_lr_ratio": None,
    }
    assert set(changes) <= set(values)
    return SimpleNamespace(**{**values, **changes})


def make_optimizer(lr=LR):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def curve(chosen, total=100, optimizer=None):
    """The learning rate of each update of a run, as a factor, and the one after the last."""
    optimizer = optimizer or make_optimizer()
    scheduler = create_scheduler(chosen, optimizer, total_steps=total)
    factors = []
    for _ in range(total + 1):
        factors.append(scheduler.get_last_lr()[0] / LR)
        optimizer.step()
        scheduler.step()
    return factors


def half_cosine(progress):
    return 0.5 * (1 + math.cos(math.pi * progress))


CASES = [
    ("constant", {}, {0: 1, 50: 1, 99: 1}),
    ("constant_with_warmup", {"lr_warmup_steps": 10}, {0: 0, 5: 0.5, 10: 1, 99: 1}),
    ("linear", {}, {0: 1, 25: 0.75, 50: 0.5, 99: 0.01}),
    ("linear", {"lr_warmup_steps": 20}, {0: 0, 10: 0.5, 20: 1, 60: 0.5, 99: 1 / 80}),
    ("cosine", {}, {0: 1, 25: half_cosine(0.25), 50: 0.5, 75: half_cosine(0.75), 100: 0}),
    ("cosine", {"lr_scheduler_num_cycles": 3}, {0: 1, 50: 0.5, 100: 0}),
    ("cosine_with_restarts", {}, {0: 1, 50: 0.5, 99: half_cosine(0.99)}),
    ("cosine_with_restarts", {"lr_scheduler_num_cycles": 0.5}, {50: half_cosine(0.25), 100: 0}),
    (
        "cosine_with_restarts",
        {"lr_scheduler_num_cycles": 1.5},
        {0: 1, 30: half_cosine(0.45), 67: half_cosine(0.005), 80: half_cosine(0.2)},
    ),
    ("cosine_with_restarts", {"lr_scheduler_num_cycles": 4}, {24: half_cosine(0.96), 25: 1, 50: 1}),
    ("polynomial", {}, {0: 1, 50: 0.5 + 0.5e-5, 100: 1e-5}),
    ("polynomial", {"lr_scheduler_power": 2}, {50: 0.25 * (1 - 1e-5) + 1e-5}),
    ("polynomial", {"lr_scheduler_args": ["lr_end=0.005"]}, {0: 1, 50: 0.75, 100: 0.5}),
    ("inverse_sqrt", {"lr_warmup_steps": 25}, {0: 0, 25: 1, 100: 0.5}),
    ("inverse_sqrt", {"lr_scheduler_timescale": 30}, {0: 1, 90: 0.5}),
    ("cosine_with_min_lr", {"lr_scheduler_min_lr_ratio": 0.2}, {0: 1, 50: 0.6, 100: 0.2}),
    (
        "cosine_with_min_lr",
        {"lr_scheduler_min_lr_ratio": 0.2, "lr_scheduler_num_cycles": 1.5},
        {25: 0.2 + 0.8 * half_cosine(0.375), 50: 0.2 + 0.8 * half_cosine(0.75), 100: 0.6},
    ),
    (
        "warmup_stable_decay",
        {"lr_warmup_steps": 10, "lr_decay_steps": 0.4, "lr_scheduler_min_lr_ratio": 0.1},
        {0: 0.1, 5: 0.55, 10: 1, 59: 1, 80: 0.55, 100: 0.1},
    ),
    (
        "warmup_stable_decay",
        {"lr_decay_steps": 50, "lr_scheduler_args": ["decay_type='linear'"]},
        {0: 1, 50: 1, 75: 0.5, 100: 0},
    ),
    (
        "piecewise_constant",
        {"lr_scheduler_args": ["step_rules='1:10,0.1:20,0.005'"]},
        {0: 1, 9: 1, 10: 0.1, 19: 0.1, 20: 0.005, 99: 0.005},
    ),
]


@pytest.mark.parametrize("name, changes, table", CASES)
def test_the_rate_at_named_steps(name, changes, table):
    found = curve(options(name, **changes))
    for step, factor in table.items():
        assert found[step] == pytest.approx(factor, abs=1e-9), step


def test_every_name_has_a_case():
    assert {name for name, _, _ in CASES} | {"adafactor"} == set(SCHEDULES)


def test_piecewise_constant_equals_diffusers():
    optimization = pytest.importorskip("diffusers.optimization")
    rules = "1:3,0.5:40,2:41,0.25"
    theirs = optimization.get_piecewise_constant_schedule(make_optimizer(), rules).lr_lambdas[0]
    found = curve(options("piecewise_constant", lr_scheduler_args=[f"step_rules='{rules}'"]))
    assert found == pytest.approx([theirs(step) for step in range(101)])


@pytest.mark.parametrize(
    "value, steps", [(0, 0), (0.1, 10), (0.29, 29), (1, 1), (10, 10), (10.0, 10)]
)
def test_below_one_is_a_fraction_of_the_run(value, steps):
    assert in_steps(value, 100, "lr_warmup_steps") == steps


def test_steps_that_are_not_whole_are_refused():
    with pytest.raises(ConfigError, match="whole steps"):
        in_steps(10.5, 100, "lr_warmup_steps")


def test_each_group_keeps_its_own_rate():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [parameters[0]], "lr": 1.0}, {"params": [parameters[1]], "lr": 0.1}]
    optimizer = torch.optim.AdamW(groups)
    scheduler = create_scheduler(options("linear"), optimizer, total_steps=4)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([0.5, 0.05])


def test_a_state_continues_the_curve():
    whole = curve(options("cosine", lr_warmup_steps=10))
    optimizer = make_optimizer()
    first = create_scheduler(options("cosine", lr_warmup_steps=10), optimizer, total_steps=100)
    for _ in range(37):
        optimizer.step()
        first.step()
    second = create_scheduler(options("cosine", lr_warmup_steps=10), optimizer, total_steps=100)
    second.load_state_dict(first.state_dict())
    optimizer.step()
    second.step()
    assert second.get_last_lr()[0] / LR == pytest.approx(whole[38])


@pytest.mark.parametrize("path", ["StepLR", "torch.optim.lr_scheduler.StepLR"])
def test_a_class_by_its_path(path):
    chosen = options(
        "cosine", lr_scheduler_type=path, lr_scheduler_args=["step_size=30", "gamma=0.5"]
    )
    found = curve(chosen)
    assert [found[29], found[30], found[60]] == pytest.approx([1, 0.5, 0.25])


def test_mistakes_in_a_class_path_or_its_arguments_are_named():
    optimizer = make_optimizer()

    def make(path, *args):
        chosen = options(lr_scheduler_type=path, lr_scheduler_args=list(args))
        create_scheduler(chosen, optimizer, total_steps=10)

    with pytest.raises(ConfigError, match="Did you mean torch.optim.lr_scheduler.StepLR"):
        make("SteppLR")
    with pytest.raises(ConfigError, match="Did you mean step_size"):
        make("StepLR", "stepsize=3")
    with pytest.raises(ConfigError, match="StepLR: .*step_size"):
        make("StepLR")
    with pytest.raises(ConfigError, match="needs a measurement"):
        make("ReduceLROnPlateau")
    with pytest.raises(ConfigError, match="not a learning-rate schedule"):
        make("torch.nn.Linear")


@pytest.mark.parametrize(
    "chosen, text",
    [
        (options("constant", lr_warmup_steps=10), "constant_with_warmup"),
        (options("cosin"), "no known schedule"),
        (options("warmup_stable_decay"), "lr_decay_steps"),
        (options("cosine_with_min_lr"), "lr_scheduler_min_lr_ratio"),
        (options("piecewise_constant"), "step_rules="),
        (options("piecewise_constant", lr_scheduler_args=["step_rules='1:20,1:10,1'"]), "increase"),
        (options("piecewise_constant", lr_scheduler_args=["step_rules='1-20'"]), "found 1-20"),
        (options("adafactor:fast"), "initial rate"),
        (options("linear", lr_warmup_steps=-1), "not below 0"),
        (options("linear", lr_scheduler_args=["lr_end"]), "key=value"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(chosen, text):
    (problem,) = check_schedule(chosen)
    assert text in problem.message


@pytest.mark.parametrize("name, changes, _", CASES)
def test_a_good_choice_has_no_problem(name, changes, _):
    assert check_schedule(options(name, **changes)) == []


def test_warm_up_and_decay_longer_than_the_run_is_an_error():
    chosen = options("warmup_stable_decay", lr_warmup_steps=60, lr_decay_steps=0.5)
    with pytest.raises(ConfigError, match="more than the 100 steps"):
        curve(chosen)


def test_an_argument_the_schedule_does_not_take_is_an_error():
    with pytest.raises(ConfigError, match="Did you mean lr_end"):
        curve(options("polynomial", lr_scheduler_args=["lr_ende=0"]))


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "cosine_with_restarts"])
def test_a_warm_up_as_long_as_the_run_is_said_and_rises_to_its_end(name, caplog):
    found = curve(options(name, lr_warmup_steps=10), total=10)
    assert found[:10] == pytest.approx([step / 10 for step in range(10)])
    assert "never reached" in caplog.text


def test_adafactor_with_its_own_step_reports_its_own_rate(caplog):
    from transformers.optimization import Adafactor

    parameter = torch.nn.Parameter(torch.ones(4, 4))
    groups = [{"params": [parameter], "lr": None}]
    optimizer = Adafactor(groups, scale_parameter=False, relative_step=True, warmup_init=False)
    with caplog.at_level(logging.WARNING):
        scheduler = create_scheduler(options("adafactor:0.5"), optimizer, total_steps=10)
        assert scheduler.get_last_lr() == [0.5] and caplog.text == ""
        create_scheduler(options("cosine"), optimizer, total_steps=10)
    assert "the schedule cosine has no effect" in caplog.text
    (parameter**2).sum().backward()
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [pytest.approx(0.01)]


def test_the_adafactor_schedule_without_adafactor_is_an_error():
    with pytest.raises(ConfigError, match="needs optimizer_type = Adafactor"):
        curve(options("adafactor"))
