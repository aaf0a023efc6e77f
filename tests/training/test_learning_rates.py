"""What is logged as a learning rate is what acts, and the schedule stands where the run's steps say."""

import math
import warnings

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from library.saving.state_contents import class_name, restore_optimizer, restore_schedule
from library.settings.flags.optimizer import OptimizerOptions
from library.settings.flags.schedule import ScheduleOptions
from library.training.learning_rates import LearningRates, shown_rate
from library.training.optimizers import count_updates_before, create_optimizer
from library.training.schedulers import count_as_done, create_scheduler
from tests.helpers.optimizing import SCHEDULES, saved_optimizer, schedule_over
from tests.helpers.optimizing import rates as rates_of
from tests.helpers.reads import CountReads
from tests.helpers.running import (
    config_files,
    rows_of,
    train,
    trainer_at_its_first_step,
    with_lost_latents,
)


def optimizer_over(parameters, name, *args, lr=1.0):
    made = OptimizerOptions(optimizer_type=name, optimizer_args=args, learning_rate=lr)
    return create_optimizer(made, [{"params": parameters}])


def moved_by(optimizer, parameters, rates, steps):
    """The logged rates of each update, and how far the update moved the first element."""
    if hasattr(optimizer, "train"):
        optimizer.train()
    found = []
    for _ in range(steps):
        before = parameters[0].detach().clone()
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        with rates.of_update():
            optimizer.step()
        found.append((rates.latest, (before - parameters[0]).flatten()[0].item()))
    return found


def test_the_rate_that_prodigy_found_is_the_one_that_moved_the_weights():
    parameters = [torch.nn.Parameter(torch.full((4, 4), 5.0))]
    optimizer = optimizer_over(parameters, "Prodigy", "betas=0.0,0.99", "weight_decay=0.0")
    rates = LearningRates(optimizer, ["unet"])
    found = moved_by(optimizer, parameters, rates, 4)
    assert {tuple(latest) for latest, _ in found} == {("lr/unet", "lr/d*lr/unet")}
    assert [latest["lr/unet"] for latest, _ in found] == [1.0] * 4
    logged = [latest["lr/d*lr/unet"] for latest, _ in found]
    assert logged[0] == pytest.approx(1e-6) and logged[3] > logged[0]
    for step, (rate, (_, moved)) in enumerate(zip(logged, found)):
        if step == 0:
            assert moved == pytest.approx(rate / math.sqrt(1 - 0.99), rel=0.2)


def test_a_schedule_free_warm_up_is_in_the_logged_rate():
    parameters = [torch.nn.Parameter(torch.ones(4, 4))]
    optimizer = optimizer_over(parameters, "AdamWScheduleFree", "warmup_steps=4", lr=1e-2)
    rates = LearningRates(optimizer, ["unet"])
    logged = [latest["lr/unet"] for latest, _ in moved_by(optimizer, parameters, rates, 6)]
    assert logged == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_adafactors_own_step_size_is_logged_for_the_update_it_made():
    parameters = [torch.nn.Parameter(torch.ones(4, 4))]
    args = ("scale_parameter=False", "warmup_init=True")
    optimizer = optimizer_over(parameters, "Adafactor", *args)
    create_scheduler(ScheduleOptions(lr_scheduler="adafactor"), optimizer, total_steps=9)
    rates = LearningRates(optimizer, ["unet"])
    for step, (latest, moved) in enumerate(moved_by(optimizer, parameters, rates, 3), start=1):
        assert latest["lr/unet"] == pytest.approx(1e-6 * step)
        assert moved == pytest.approx(1e-6 * step, rel=0.1)


def test_a_rate_on_the_device_is_kept_as_it_was_and_not_read():
    parameter = torch.nn.Parameter(torch.ones(4, 4))
    rate, found = torch.tensor(0.5), torch.tensor(2e-4)
    optimizer = torch.optim.SGD([{"params": [parameter], "lr": rate, "d": found}])
    rates = LearningRates(optimizer, ["unet"])
    with CountReads() as counter, rates.of_update():
        pass
    rate.fill_(9.0)
    assert counter.reads == 0
    assert rates.latest["lr/unet"].item() == 0.5
    assert rates.latest["lr/d*lr/unet"].item() == pytest.approx(1e-4)


def test_the_bar_shows_the_rate_that_was_found():
    assert shown_rate({"lr/a": 1.0, "lr/d*lr/a": 1e-4, "lr/d*lr/b": 2e-4}) == 2e-4
    assert shown_rate({"lr/a": 1.0, "lr/b": 2.0, "loss/current": 9.0}) == 2.0


def test_a_run_logs_what_prodigy_found(demo, run_folder):
    settings = {"optimizer_type": "Prodigy", "learning_rate": 1.0, "max_train_steps": 3}
    trainer = train(demo, run_folder, settings)
    found = [row["lr/d*lr/unet"] for row in rows_of(trainer)]
    assert found[0] == pytest.approx(1e-6)
    assert [row["lr/unet"] for row in rows_of(trainer)] == [1.0] * 3
    assert found[-1] <= trainer.optimization.optimizer.param_groups[0]["d"]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", SCHEDULES)
def test_steps_that_count_as_done_bring_any_schedule_to_where_it_would_stand(name):
    whole = rates_of(*schedule_over(name), 20)
    optimizer, scheduler = schedule_over(name)
    count_as_done(scheduler, 7)
    assert rates_of(optimizer, scheduler, 13) == whole[7:]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_state_of_another_schedule_brings_any_to_where_it_would_stand(name):
    """Also one that keeps its own values in the optimizer's groups, which the state does not have."""
    whole = rates_of(*schedule_over(name), 20)
    other = "polynomial" if name != "polynomial" else "torch.optim.lr_scheduler.CosineAnnealingLR"
    optimizer, scheduler = schedule_over(other)
    rates_of(optimizer, scheduler, 7)
    saved = {"class": class_name(scheduler), "state": scheduler.state_dict()}
    kept = saved_optimizer(optimizer)
    optimizer, scheduler = schedule_over(name)
    restore_optimizer(optimizer, kept)
    if class_name(scheduler) == saved["class"]:
        saved["class"] = "another"
    restore_schedule(scheduler, saved, 7)
    assert rates_of(optimizer, scheduler, 13) == pytest.approx(whole[7:], rel=1e-12)


RUNS = {
    "linear": {"lr_scheduler": "linear", "lr_warmup_steps": 2, "gradient_accumulation_steps": 2},
    "StepLR from a state": {
        "lr_scheduler_type": "StepLR", "lr_scheduler_args": ["step_size=3", "gamma=0.5"],
        "save_state": True, "save_every_n_steps": 2,
    },
    "Adafactor": {
        "optimizer_type": "Adafactor",
        "optimizer_args": ["scale_parameter=False", "warmup_init=True"],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_after_initial_step_the_rates_are_those_of_the_whole_run(demo, run_folder, name):
    settings = {**RUNS[name], "max_train_steps": 6}
    whole = [row["lr/unet"] for row in rows_of(train(demo, run_folder, settings))]
    late = {"initial_step": 4}
    if "save_state" in settings:
        late["resume"] = str(run_folder / "out" / "run-step00000002-state")
    assert [row["lr/unet"] for row in rows_of(train(demo, run_folder, {**settings, **late}))] == whole[4:]


def test_what_adafactor_counts_as_done_is_kept_in_its_state():
    def after(steps, before=0, state=None):
        parameters = [torch.nn.Parameter(torch.ones(4, 4))]
        optimizer = optimizer_over(parameters, "Adafactor", "scale_parameter=False")
        create_scheduler(ScheduleOptions(lr_scheduler="adafactor"), optimizer, total_steps=9)
        if state:
            optimizer.load_state_dict(state)
        if before:
            count_updates_before(optimizer, before)
        rates = LearningRates(optimizer, ["unet"])
        return [r["lr/unet"] for r, _ in moved_by(optimizer, parameters, rates, steps)], optimizer

    first, optimizer = after(2, before=20_000)
    assert first == [1 / math.sqrt(20_001), 1 / math.sqrt(20_002)]
    assert after(1, state=optimizer.state_dict())[0] == [1 / math.sqrt(20_003)]


OPTIMIZERS = {
    "fused AdamW": {"optimizer_type": "AdamW"},
    "SGD": {"optimizer_type": "SGDNesterov"},
    "Adafactor": {"optimizer_type": "Adafactor", "optimizer_args": ["scale_parameter=False"]},
}


@pytest.mark.parametrize(
    "name, scaled", [("fused AdamW", False), ("Adafactor", False), ("fused AdamW", True), ("SGD", True)]
)
def test_the_schedule_counts_the_runs_steps_also_those_without_an_update(
    demo, run_folder, name, scaled
):
    """As fp16 leaves updates out while it looks for its scale; the first step is one of them."""
    settings = {**OPTIMIZERS[name], "lr_scheduler": "linear"}
    trainer, batches = trainer_at_its_first_step(config_files(demo, run_folder, settings))
    if scaled:
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
        inner, scaler = trainer.optimization.inner, trainer.accelerator.scaler
        trainer.optimization.optimizer = AcceleratedOptimizer(inner, False, scaler)
        guard = type(trainer.monitor.guard)(trainer.optimization.optimizer, "warn")
        trainer.monitor.guard = guard
    before = [p.detach().clone() for p in trainer.network.get_trainable_params()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before")
        trainer.train_step(with_lost_latents(batches[0]))
        unmoved = zip(before, trainer.network.get_trainable_params())
        assert all(torch.equal(a, b) for a, b in unmoved)
        for window in batches[1:3]:
            trainer.train_step(window)
    assert trainer.optimization.scheduler.last_epoch == trainer.state.step == 3
    if scaled:
        assert trainer.accelerator.scaler.get_scale() == 2**15
    if name != "Adafactor":
        rate = trainer.cfg.optimizer.learning_rate
        assert trainer.optimization.rates.latest["lr/unet"] == pytest.approx(rate * (1 - 2 / 4))
