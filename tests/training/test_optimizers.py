"""Every optimizer name makes a real optimizer that learns; the checks; schedule-free modes."""

import logging
from types import SimpleNamespace

import pytest
import torch

from library.errors import ConfigError
from library.settings.flags.optimizer import OPTIMIZER_CHOICES
from library.settings.optimizer_names import OPTIMIZERS, optimizer_name
from library.training.optimizers import (
    check_optimizer,
    create_optimizer,
    is_schedule_free,
    optimizer_eval_mode,
    optimizer_train_mode,
)
from tests.helpers.optimizing import make_parameters, needs, options

SCHEDULE_DEFAULTS = {"lr_scheduler": "constant", "lr_scheduler_type": "", "lr_warmup_steps": 0}


def schedule(**changes):
    return SimpleNamespace(**{**SCHEDULE_DEFAULTS, **changes})


def train(optimizer, parameters, steps=8):
    """Pull the parameters towards 1; returns the loss before and after."""

    def loss():
        return sum(((p - 1) ** 2).sum() for p in parameters)

    optimizer_train_mode(optimizer)
    before = loss().item()
    for _ in range(steps):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    with optimizer_eval_mode(optimizer):
        return before, loss().item()


def test_the_help_names_every_optimizer_once():
    named = [text.removesuffix(" (default)") for text in OPTIMIZER_CHOICES.split(", ")]
    assert named == [*OPTIMIZERS, "or a dotted class path"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_name_makes_an_optimizer_that_lowers_the_loss(name):
    pytest.importorskip(OPTIMIZERS[name].path.partition(".")[0])
    if needs(name):
        pytest.skip("paged optimizers need a CUDA device")
    parameters = make_parameters()
    free = OPTIMIZERS[name].finds_own_lr
    groups = [{"params": parameters[:1], "lr": 1.0 if free else 1e-2}, {"params": parameters[1:]}]
    chosen = options(name.upper(), lr=1.0 if free else 1e-2)
    before, after = train(create_optimizer(chosen, groups), parameters)
    assert after < before


def test_no_name_is_fused_adamw_with_the_learning_rate_of_each_group():
    parameters = make_parameters()
    groups = [{"params": parameters[:1], "lr": 3e-4}, {"params": parameters[1:]}]
    optimizer = create_optimizer(options("", lr=1e-4), groups)
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["fused"]
    assert [group["lr"] for group in optimizer.param_groups] == [3e-4, 1e-4]
    assert "lr" not in groups[1]


def test_a_chosen_implementation_is_not_overridden():
    optimizer = create_optimizer(
        options("AdamW", ["foreach=True"]), [{"params": make_parameters()}]
    )
    assert optimizer.defaults["foreach"] and not optimizer.defaults["fused"]


def test_arguments_are_read_as_python_values():
    args = ["weight_decay=0.2", "betas=0.8,0.95", "amsgrad = True"]
    optimizer = create_optimizer(options("adamw", args), [{"params": make_parameters()}])
    assert optimizer.defaults["weight_decay"] == 0.2
    assert optimizer.defaults["betas"] == (0.8, 0.95)
    assert optimizer.defaults["amsgrad"] is True


def test_nesterov_keeps_momentum_unless_given():
    plain = create_optimizer(options("SGDNesterov"), [{"params": make_parameters()}])
    assert plain.defaults["momentum"] == 0.9 and plain.defaults["nesterov"]
    other = create_optimizer(
        options("SGDNesterov", ["momentum=0.5"]), [{"params": make_parameters()}]
    )
    assert other.defaults["momentum"] == 0.5


@pytest.mark.parametrize(
    "written, class_name",
    [("torch.optim.NAdam", "NAdam"), ("RMSprop", "RMSprop"), ("rmsprop", "RMSprop")],
)
def test_dotted_paths_and_torch_names_work(written, class_name):
    optimizer = create_optimizer(options(written), [{"params": make_parameters()}])
    assert type(optimizer).__name__ == class_name
    assert check_optimizer(options(written), schedule()) == []


@pytest.mark.parametrize(
    "written, name",
    [
        ("radam_schedulefree", "RAdamScheduleFree"),
        ("AdamW_ScheduleFree", "AdamWScheduleFree"),
        ("SGD_SCHEDULEFREE", "SGDScheduleFree"),
        ("adamw8BIT", "AdamW8bit"),
        (" Prodigy ", "Prodigy"),
    ],
)
def test_aliases_and_any_case(written, name):
    assert optimizer_name(options(written)) == name


def test_old_switches_choose_and_exclude():
    assert optimizer_name(options(use_8bit_adam=True)) == "AdamW8bit"
    assert optimizer_name(options(use_lion_optimizer=True)) == "Lion"
    both = options("Prodigy", use_8bit_adam=True)
    (problem,) = check_optimizer(both, schedule())
    assert "--use_8bit_adam and --optimizer_type" in problem.message


def test_an_unknown_name_offers_the_nearest():
    (problem,) = check_optimizer(options("Prodgy"), schedule())
    assert "Did you mean Prodigy?" in problem.message
    with pytest.raises(ConfigError, match="Did you mean AdamW8bit"):
        create_optimizer(options("AdmW8bit"), [{"params": make_parameters()}])


def test_every_unreadable_argument_is_named_at_once():
    args = ["weight_decay", "betas=0.9;0.99", "eps=__import__('os')", "fused=true"]
    problems = check_optimizer(options("AdamW", args), schedule())
    assert [problem.where for problem in problems] == args
    assert "Write fused=True" in problems[3].message


def test_an_argument_the_class_does_not_take_offers_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean weight_decay") as caught:
        create_optimizer(
            options("AdamW", ["weight_decai=0", "lr=1"]), [{"params": make_parameters()}]
        )
    assert "is set by --learning_rate" in str(caught.value)


def test_a_value_the_class_refuses_is_a_config_error():
    with pytest.raises(ConfigError, match=r"AdamW: Invalid beta.*The default is betas=\(0.9, 0.999\)"):
        create_optimizer(options("AdamW", ["betas=2.0,0.9"]), [{"params": make_parameters()}])


def test_a_missing_package_names_the_pip_command():
    with pytest.raises(ConfigError, match="pip install no_such_package_here"):
        create_optimizer(options("no_such_package_here.Fast"), [{"params": make_parameters()}])


def test_a_path_to_something_else_is_refused():
    with pytest.raises(ConfigError, match="not a torch.optim.Optimizer"):
        create_optimizer(options("torch.nn.Linear"), [{"params": make_parameters()}])
    with pytest.raises(ConfigError, match="Did you mean torch.optim.AdamW"):
        create_optimizer(options("torch.optim.AdmW"), [{"params": make_parameters()}])


def test_schedule_free_refuses_a_schedule_and_a_warm_up():
    chosen = options("radam_schedulefree")
    assert is_schedule_free(chosen) and check_optimizer(chosen, schedule()) == []
    assert is_schedule_free(options("prodigyplus.ProdigyPlusScheduleFree"))
    assert not is_schedule_free(options("AdamW"))
    problems = check_optimizer(chosen, schedule(lr_scheduler="cosine", lr_warmup_steps=10))
    assert ["constant" in problems[0].message, "lr_warmup_steps" in problems[1].message] == [
        True
    ] * 2


def test_own_rate_optimizers_warn_of_a_small_rate_and_refuse_two(caplog):
    groups = [{"params": [tensor]} for tensor in make_parameters()]
    with caplog.at_level(logging.WARNING):
        create_optimizer(options("Prodigy", lr=1e-4), groups)
    assert caplog.text.count("Set it to about 1") == 1
    caplog.clear()
    create_optimizer(options("Prodigy", lr=1.0), groups)
    assert caplog.text == ""
    groups[0]["lr"] = 0.5
    with pytest.raises(ConfigError, match="one learning rate"):
        create_optimizer(options("Prodigy", lr=1.0), groups)


def test_adafactor_sets_its_own_step_unless_told_otherwise(caplog):
    groups = [{"params": [tensor], "lr": 1e-3} for tensor in make_parameters()]
    with caplog.at_level(logging.WARNING):
        optimizer = create_optimizer(options("Adafactor"), groups)
    assert optimizer.defaults["relative_step"] and "no effect" in caplog.text
    assert [group["lr"] for group in optimizer.param_groups] == [None, None]
    fixed = ["relative_step=False", "scale_parameter=False"]
    optimizer = create_optimizer(options("Adafactor", fixed), groups)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-3]


def test_the_adafactor_schedule_needs_adafactor_with_its_own_step():
    follows = schedule(lr_scheduler="adafactor:1e-4")
    assert check_optimizer(options("Adafactor"), follows) == []
    assert len(check_optimizer(options("Adafactor", ["relative_step=False"]), follows)) == 1
    assert len(check_optimizer(options("AdamW"), follows)) == 1


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree"])
def test_saving_does_not_change_schedule_free_training_by_a_bit(name):
    pytest.importorskip("schedulefree")

    def run(saves):
        parameters = make_parameters()
        optimizer = create_optimizer(options(name), [{"params": parameters}])
        for _ in range(6):
            train(optimizer, parameters, steps=1)
            for _ in range(saves):
                kept = [p.detach().clone() for p in parameters]
                with optimizer_eval_mode(optimizer):
                    inside = [p.detach().clone() for p in parameters]
                    with optimizer_eval_mode(optimizer):
                        assert all(map(torch.equal, inside, parameters))
                assert all(map(torch.equal, kept, parameters))
        return kept if saves else [
            p.detach().clone() for p in parameters
        ], inside if saves else None

    (plain, _), (saved, averaged) = run(0), run(3)
    assert all(map(torch.equal, plain, saved))
    assert not torch.equal(saved[0], averaged[0])


def test_an_error_while_saving_still_restores_the_training_weights():
    pytest.importorskip("schedulefree")
    parameters = make_parameters()
    optimizer = create_optimizer(options("AdamWScheduleFree"), [{"params": parameters}])
    train(optimizer, parameters)
    kept = [p.detach().clone() for p in parameters]
    with pytest.raises(OSError), optimizer_eval_mode(optimizer):
        raise OSError("disk full")
    assert all(map(torch.equal, kept, parameters))
    train(optimizer, parameters, steps=1)


@pytest.fixture
def accelerator():
    """A CPU accelerator, whose process-wide state is given back."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_accelerates_wrapper_is_looked_through(accelerator):
    pytest.importorskip("schedulefree")
    parameters = make_parameters()
    plain = accelerator.prepare(torch.optim.AdamW(parameters))
    with optimizer_eval_mode(plain):
        pass
    inner = create_optimizer(options("AdamWScheduleFree"), [{"params": parameters}])
    wrapped = accelerator.prepare(inner)
    train(wrapped, parameters)
    before = parameters[0].detach().clone()
    with optimizer_eval_mode(wrapped):
        assert not torch.equal(parameters[0], before)
    assert torch.equal(parameters[0], before)
