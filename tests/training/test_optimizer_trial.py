"""Settings of optimizers and schedules that fail at a step: each is told beforehand, by its flag."""

import random
import sys

import pytest
import torch

import anima_train_network
from library.anima_doctor import report as doctor
from library.errors import ConfigError
from library.settings.flags.optimizer import OptimizerOptions
from library.settings.flags.schedule import ScheduleOptions
from library.training.optimizer_trial import ONE_MATRIX, STEPS_TRIED, try_optimizer, try_schedule
from tests.helpers.running import config_files, make_trainer

GROUPS = [{"params": [torch.empty(4, 80, device="meta")], "lr": 1e-3}]


class EndsTheProgram(torch.optim.SGD):
    """As some libraries do where something is missing."""

    def __init__(self, params, lr, when="made"):
        super().__init__(params, lr=lr)
        self.when = when
        if when == "made":
            print("first install the other thing")
            sys.exit()

    def step(self, closure=None):
        sys.exit(0)


class Draws(torch.optim.SGD):
    """An optimizer that draws from every generator."""

    def step(self, closure=None):
        torch.rand(3), random.random()
        return super().step(closure)


class OfOneMatrix(torch.optim.SGD):
    def step(self, closure=None):
        if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
            raise RuntimeError("matrices only")
        return super().step(closure)


class Unlogged(torch.optim.lr_scheduler.LRScheduler):
    """A schedule that works for a while."""

    def get_lr(self):
        return [1e-3] if self.last_epoch < 7 else [1e-3 / (7 - self.last_epoch)]


HERE = __name__
BAD_OPTIMIZERS = [
    ("Adafactor", "eps=1e-8"),
    ("Adafactor", "relative_step=False decay_rate='x'"),
    ("AdamW", "fused=True foreach=True"),
    ("AdamW", "betas=0.9,0.99,0.999"),
    ("AdamW", "betas=2.0,0.9"),
    ("AdamW", "betas='a'"),
    ("AdamW", "eps=None"),
    ("AdamW", "weight_decay='0.1'"),
    ("AdamW", "differentiable=True"),
    ("AdamW8bit", "betas=0.9"),
    ("AdamW8bit", "block_wise=False"),
    ("ASGD", "t0='x'"),
    ("Adagrad", "lr_decay=None"),
    ("Lion", "use_triton=True"),
    ("Lion", "betas=0.9"),
    ("Prodigy", "slice_p=0"),
    ("Prodigy", "betas=(0.9,)"),
    ("Prodigy", "d0=0"),
    ("RAdamScheduleFree", "r='x'"),
    ("AdamWScheduleFree", "warmup_steps='5'"),
    ("Rprop", "etas=2"),
    ("SGD", "momentum='x'"),
    ("SGDNesterov", "momentum=0"),
    ("torch.optim.Adafactor", "eps=1e-8"),
    (f"{HERE}.EndsTheProgram", "when='made'"),
    (f"{HERE}.EndsTheProgram", "when='later'"),
    ("LBFGS", ""),
    ("SparseAdam", ""),
]
BAD_SCHEDULES = [
    ("OneCycleLR", "max_lr=0.1 total_steps=5"),
    ("OneCycleLR", "max_lr=(0.1,0.2) total_steps=99"),
    ("StepLR", "step_size=0"),
    ("StepLR", "step_size='x'"),
    ("MultiStepLR", "milestones=5"),
    ("CosineAnnealingLR", "T_max=0"),
    ("CosineAnnealingWarmRestarts", "T_0=3 T_mult=2.5"),
    ("CyclicLR", "base_lr=0.1 max_lr=1 step_size_up=0"),
    ("ExponentialLR", "gamma=5e200"),
    ("ExponentialLR", "gamma=-0.5"),
    ("LambdaLR", "lr_lambda=3"),
    ("polynomial", "lr_end=1"),
    ("cosine_with_min_lr", "min_lr='x'"),
    (f"{HERE}.Unlogged", ""),
]
GOOD = [
    ("AdamW", "", "cosine", ""),
    ("AdamW", "capturable=False foreach=True", "OneCycleLR", "max_lr=0.1 total_steps=20"),
    ("AdamW8bit", "", "StepLR", "step_size=30"),
    ("Adafactor", "", "adafactor:1e-4", ""),
    ("Adafactor", "relative_step=False warmup_init=False", "linear", ""),
    ("Prodigy", "safeguard_warmup=True", "cosine", ""),
    ("RAdamScheduleFree", "", "constant", ""),
    ("Muon", "", "constant", ""),
    (f"{HERE}.OfOneMatrix", "", "constant", ""),
]


def optimizer_of(name, args=""):
    return OptimizerOptions(
        optimizer_type=name, optimizer_args=tuple(args.split()), learning_rate=1e-3
    )


def schedule_of(name, args=""):
    kind = "lr_scheduler_type" if name[0].isupper() or "." in name else "lr_scheduler"
    return ScheduleOptions(**{kind: name, "lr_scheduler_args": tuple(args.split())})


@pytest.mark.parametrize("name, args", BAD_OPTIMIZERS)
def test_an_optimizer_that_fails_is_told_by_its_flag(name, args):
    (problem,) = try_optimizer(optimizer_of(name, args))
    assert problem.source == ("--optimizer_args" if args else "--optimizer_type")
    assert not args or args.split("=")[0] in problem.where + problem.message
    assert "\n" not in problem.message


@pytest.mark.parametrize("name, args", BAD_SCHEDULES)
def test_a_schedule_that_fails_on_the_way_is_told_by_its_flag(name, args):
    (problem,) = try_schedule(optimizer_of("AdamW"), schedule_of(name, args), GROUPS, 20)
    assert problem.source == ("--lr_scheduler_args" if args else "--lr_scheduler_type")


@pytest.mark.parametrize("name, args, schedule, more", GOOD)
def test_what_works_has_no_problem(name, args, schedule, more):
    optimizer = optimizer_of(name, args)
    assert try_optimizer(optimizer) == try_optimizer(optimizer, GROUPS) == []
    assert try_schedule(optimizer, schedule_of(schedule, more), GROUPS, 20) == []


def test_the_step_and_the_cure_are_named():
    schedule = schedule_of("OneCycleLR", "max_lr=0.1 total_steps=5")
    (problem,) = try_schedule(optimizer_of("AdamW"), schedule, GROUPS, 20)
    assert "fails after step 6 of 20: ValueError: Tried to step 6 times" in problem.message
    assert problem.message.endswith("Change lr_scheduler_args, or choose another lr_scheduler_type.")
    (problem,) = try_optimizer(optimizer_of("LBFGS"))
    assert "closure" in problem.message
    assert problem.message.endswith(". Choose another optimizer_type.")


def test_what_a_library_prints_before_it_ends_the_program_is_told(capsys):
    (problem,) = try_optimizer(optimizer_of(f"{HERE}.EndsTheProgram", "when='made'"))
    assert "ended the program, saying: first install the other thing." in problem.message
    assert capsys.readouterr().out == ""


def test_a_schedule_longer_than_is_tried_fails_at_its_end_too():
    total = 10 * STEPS_TRIED
    schedule = schedule_of("OneCycleLR", f"max_lr=0.1 total_steps={total - 1}")
    (problem,) = try_schedule(optimizer_of("AdamW"), schedule, GROUPS, total)
    assert f"after step {total} of {total}" in problem.message


def test_what_the_tensors_of_the_run_do_not_suit_is_found_with_them():
    optimizer = optimizer_of(f"{HERE}.OfOneMatrix")
    with_a_norm = [{"params": [*GROUPS[0]["params"], torch.empty(7, device="meta")]}]
    assert try_optimizer(optimizer, ONE_MATRIX) == []
    assert "matrices only" in try_optimizer(optimizer, with_a_norm)[0].message


def test_a_trial_takes_no_random_number_of_the_runs():
    def draws():
        return torch.rand(2).tolist(), random.random()

    torch.manual_seed(3), random.seed(3)
    expected = draws()
    torch.manual_seed(3), random.seed(3)
    assert try_optimizer(optimizer_of(f"{HERE}.Draws")) == []
    assert try_schedule(optimizer_of(f"{HERE}.Draws"), ScheduleOptions(), GROUPS, 5) == []
    assert draws() == expected


def test_a_keyboard_interrupt_is_no_problem_of_a_setting(monkeypatch):
    def interrupted(self, closure=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(Draws, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        try_optimizer(optimizer_of(f"{HERE}.Draws"))


def test_a_run_tells_it_with_its_other_problems_before_anything_is_cached(demo, run_folder):
    (run_folder / "taken").write_text("a file")
    settings = {
        "optimizer_type": "Lion", "optimizer_args": ["use_triton=True"],
        "output_dir": str(run_folder / "taken"),
    }  # fmt: skip
    with pytest.raises(ConfigError) as told:
        make_trainer(config_files(demo, run_folder, settings)).prepare()
    assert "use_triton=True" in str(told.value) and "output_dir" in str(told.value)
    settings = {
        **settings, "lr_scheduler_type": "StepLR", "lr_scheduler_args": ["step_size=0"],
        "output_dir": str(run_folder / "out"),
    }  # fmt: skip
    trainer = make_trainer(config_files(demo, run_folder, settings))
    with pytest.raises(ConfigError) as told:
        trainer.prepare()
    assert "use_triton=True" in str(told.value) and "step_size=0" in str(told.value)
    assert not hasattr(trainer, "dataset")


def test_doctor_tells_it_with_the_other_problems(demo, run_folder):
    settings = {
        "optimizer_type": "Prodigy", "optimizer_args": ["slice_p=0"],
        "lr_scheduler_type": "StepLR", "lr_scheduler_args": ["step_size=0"],
        "mixed_precision": "fp17",
    }  # fmt: skip
    argv = config_files(demo, run_folder, settings)
    for more, also in ([], "fp17"), (["--mixed_precision", "no"], "step_size=0"):
        text, code = doctor.report(
            [*argv, *more], anima_train_network.load_run, anima_train_network.AnimaNetworkTrainer
        )
        result = text.rpartition("== Result")[2]
        assert code == 2 and also in result and "unexpected" not in result
        assert result.count("slice_p=0") == 1
