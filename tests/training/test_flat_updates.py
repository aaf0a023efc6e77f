"""One tensor for each group updates as each factor by itself; states have the form they always had."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from library.saving.state_contents import identical, restore_optimizer
from library.settings.optimizer_names import OPTIMIZERS
from library.training.flat_updates import FlatUpdates, clip_norm
from library.training.optimizers import create_optimizer, optimizer_eval_mode, optimizer_train_mode
from library.watching.monitor import UpdateGuard
from tests.helpers.optimizing import options, saved_optimizer
from tests.helpers.reads import CountReads
from tests.helpers.running import config_files, trainer_at_its_first_step

SHAPES = ((64, 80), (128, 3), (320,), (16, 8))
ELEMENTWISE = [name for name, known in OPTIMIZERS.items() if known.elementwise]
MORE = {"AdamW": ("amsgrad=True", "weight_decay=0.1"), "Lion": ("weight_decay=0.1",)}
DTYPES = [torch.float32, torch.bfloat16]


def optimizer_over(name, dtype=torch.float32, args=None):
    pytest.importorskip(OPTIMIZERS[name].path.partition(".")[0])
    draw = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(s, generator=draw).to(dtype)) for s in SHAPES]
    groups = [{"params": made[:3], "lr": 1e-2}, {"params": made[3:]}]
    chosen = options(name, args=args, lr=3e-3)
    optimizer = create_optimizer(chosen, groups)
    flat = FlatUpdates.of(optimizer, chosen)
    optimizer_train_mode(optimizer)
    return optimizer, made, flat


def give_gradients(parameters, step):
    draw = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=draw).to(parameter)


def update(optimizer, parameters, flat, steps):
    """flat None: each parameter by itself."""
    for step in steps:
        give_gradients(parameters, step)
        if flat is not None:
            assert flat.gather()
            with flat.as_one():
                optimizer.step()
        else:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_what_is_called_elementwise_updates_as_each_tensor_by_itself(name, dtype):
    args = MORE.get(name)
    one, ours, flat = optimizer_over(name, dtype, args)
    other, theirs, _ = optimizer_over(name, dtype, args)
    update(one, ours, flat, range(4))
    update(other, theirs, None, range(4))
    assert identical(ours, theirs)
    assert identical(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_state_goes_from_either_form_to_the_other(name):
    whole, expected, _ = optimizer_over(name)
    update(whole, expected, None, range(6))
    for first_is_flat in (True, False):
        first, before, flat = optimizer_over(name)
        update(first, before, flat if first_is_flat else None, range(3))
        second, after, flat = optimizer_over(name)
        with torch.no_grad():
            for target, source in zip(after, before):
                target.copy_(source)
        restore_optimizer(second, saved_optimizer(first))
        update(second, after, None if first_is_flat else flat, range(3, 6))
        assert identical(after, expected)
        assert identical(second.state_dict(), whole.state_dict())


def test_what_is_one_for_all_in_the_averaging_of_weights_is_found_again():
    """Schedule-free optimizers average between updates, over the parameters as they are shown."""
    one, ours, flat = optimizer_over("AdamWScheduleFree")
    other, theirs, _ = optimizer_over("AdamWScheduleFree")
    for steps in (range(2), range(2, 4)):
        update(one, ours, flat, steps)
        update(other, theirs, None, steps)
        with optimizer_eval_mode(one), optimizer_eval_mode(other):
            assert identical(ours, theirs)
        assert identical(ours, theirs)


def test_optimizers_that_look_beyond_an_element_stay_as_they_are():
    sgd = torch.optim.SGD([nn.Parameter(torch.ones(2))])
    assert all(
        FlatUpdates.of(sgd, options(name)) is None for name in OPTIMIZERS if name not in ELEMENTWISE
    )
    assert FlatUpdates.of(sgd, options("torch.optim.SGD")) is None
    assert not {"AdamW8bit", "Adafactor", "Prodigy"} & set(ELEMENTWISE)


def test_a_factor_without_a_gradient_ends_it_and_nothing_is_lost(caplog):
    """It is left out, as torch does; so are moments and decay."""
    caplog.set_level("INFO")
    one, ours, flat = optimizer_over("AdamW")
    other, theirs, _ = optimizer_over("AdamW")
    update(one, ours, flat, range(2))
    update(other, theirs, None, range(2))
    for optimizer, parameters in ((one, ours), (other, theirs)):
        give_gradients(parameters, 2)
        parameters[1].grad = None
        if optimizer is one:
            assert not flat.gather()
        optimizer.step()
    assert identical(ours, theirs)
    assert identical(one.state_dict(), other.state_dict())
    assert one.state[ours[1]]["step"] == 2 and one.state[ours[0]]["step"] == 3
    give_gradients(ours, 3)
    assert not flat.gather() and caplog.text.count("each factor is updated by itself") == 1
    resumed, parameters, flat = optimizer_over("AdamW")
    restore_optimizer(resumed, saved_optimizer(one))
    give_gradients(parameters, 3)
    assert not flat.gather() and "other counts" in caplog.text


@pytest.mark.parametrize("dtype, off", [(torch.float32, 2e-7), (torch.bfloat16, 2e-7)], ids=str)
def test_the_norm_of_one_buffer_is_the_norm_to_rounding(dtype, off):
    """Two million elements; torch's own, one norm for each tensor, is about as far from the truth."""
    draw = torch.Generator().manual_seed(0)
    gradients = (1e-3 * torch.randn(2048, 1024, generator=draw)).to(dtype).flatten()
    truth = gradients.double().norm()
    expected = gradients.double() * 0.1 / truth
    norm = clip_norm(gradients, 0.1)
    assert norm.dtype == torch.float32 and abs(norm.double() / truth - 1) < off
    torch.testing.assert_close(
        gradients.double(), expected, rtol=1e-5 if dtype == torch.float32 else 2**-7, atol=0
    )
    kept = gradients.clone()
    assert clip_norm(gradients, math.inf) < 0.11 and torch.equal(gradients, kept)


def guarded(name, gradients):
    """What updates with these gradients for all leave, and the reads of those after the first three."""
    optimizer, parameters, flat = optimizer_over(name)
    guard, counter = UpdateGuard(optimizer, "warn", flat), CountReads()
    for number, value in enumerate(gradients):
        give_gradients(parameters, number)
        for parameter in parameters:
            parameter.grad.fill_(value)
        with counter if number > 2 else nullcontext():
            assert flat.gather()
            with flat.as_one():
                guard.step(clip_norm(flat.gradients, 1.0))
    return parameters, optimizer, counter, guard


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_update_is_taken_back_on_the_device_without_a_trace(name, bad):
    """Also the first one, before there is a state to go back to: that one is read."""
    ours, one, counter, guard = guarded(name, [bad, 1.0, bad, -2.0, bad, bad, 3.0])
    theirs, other, *_ = guarded(name, [1.0, -2.0, 3.0])
    assert identical(ours, theirs)
    assert identical(one.state_dict(), other.state_dict())
    assert counter.places == [] and "on the device" in guard.describe()


def test_a_state_that_is_saved_after_an_update_that_was_taken_back_has_not_counted_it():
    _, optimizer, *_ = guarded("AdamWScheduleFree", [1.0, -2.0, math.nan])
    assert optimizer.param_groups[0]["k"] == 3  # not known yet
    assert optimizer.state_dict()["param_groups"][0]["k"] == 2
    assert optimizer.param_groups[0]["k"] == 2


def test_a_schedule_that_moved_on_meanwhile_stays_where_it_is():
    optimizer, parameters, flat = optimizer_over("AdamWScheduleFree")
    update(optimizer, parameters, flat, [0])
    give_gradients(parameters, 1)
    assert flat.gather()
    with flat.as_one(), flat.undone_if(torch.tensor(True)):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5
    flat.settle()
    assert optimizer.param_groups[0]["lr"] == 0.5 and optimizer.param_groups[0]["k"] == 1


def trained(demo, folder, flat):
    """Factors and norms of four steps of accumulated gradients, with a limit on weight norms."""
    settings = {
        "gradient_accumulation_steps": 2, "max_grad_norm": 0.01, "scale_weight_norms": 0.4,
        "network_args": ["loraplus_lr_ratio=4"],
    }  # fmt: skip
    trainer, windows = trainer_at_its_first_step(config_files(demo, folder, settings, batch_size=1))
    if not flat:
        trainer.optimization.flat = None
    for window in windows[:4]:
        trainer.train_step(window)
    norms = [row.values["norm/grad"] for row in trainer.progress.logs.flush()]
    return [p.detach() for p in trainer.network.get_trainable_params()], norms, trainer


def test_a_run_is_the_same_but_for_the_rounding_of_the_norm(demo, run_folder):
    ours, norms, trainer = trained(demo, run_folder, flat=True)
    theirs, expected, _ = trained(demo, run_folder, flat=False)
    assert trainer.optimization.flat.has_updated and not trainer.optimization.flat.gave_up
    assert len(trainer.optimization.inner.param_groups) == 2
    assert norms == pytest.approx(expected, rel=1e-6) and min(norms) > 0.01
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
