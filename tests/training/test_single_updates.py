"""Updates of one weight after another: equal to those of all together, and rounded by chance in bf16."""

import pytest
import torch
from torch import nn

from library.settings.flags.optimizer import OptimizerOptions
from library.training.optimizers import create_optimizer
from library.training.rounding import stochastically_rounded
from library.training.single_updates import SingleUpdates
from tests.helpers.reads import CountReads

NO_LIMIT = float("inf")
OPTIMIZERS = {
    "AdamW": OptimizerOptions(learning_rate=1e-2),
    "AdamW, not fused": OptimizerOptions(learning_rate=1e-2, optimizer_args=("foreach=False",)),
    "Adafactor": OptimizerOptions(
        optimizer_type="Adafactor", learning_rate=1e-2,
        optimizer_args=("relative_step=False", "scale_parameter=False", "warmup_init=False"),
    ),
    "Adafactor by its own step size": OptimizerOptions(optimizer_type="Adafactor"),
}  # fmt: skip


def weights(dtype=torch.float32) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(1)
    shapes = [(8, 4), (4,), (2, 8)]
    return [nn.Parameter(torch.randn(shape, generator=draw).to(dtype)) for shape in shapes]


def give_gradients(parameters, step: int) -> None:
    draw = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=draw).to(parameter.dtype)


def groups(parameters):
    """Two, as of components with rates of their own."""
    return [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 1e-3}]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_after_another_is_the_same_as_all_together(name):
    together, single = weights(), weights()
    optimizer = create_optimizer(OPTIMIZERS[name], groups(together))
    alone = create_optimizer(OPTIMIZERS[name], groups(single))
    updates = SingleUpdates(alone, [(each, each) for each in single], rounds=False)
    for step in range(3):
        give_gradients(together, step)
        give_gradients(single, step)
        norm = torch.nn.utils.clip_grad_norm_(together, 0.5)
        optimizer.step()
        updates.begin(0, step)
        torch.testing.assert_close(found := updates.norm(), norm)
        updates.step(found, 0.5)
    for one, other in zip(together, single):
        torch.testing.assert_close(other, one)
    assert alone.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    assert alone.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()


def test_rates_act_that_were_set_after_a_state_was_loaded():
    """As a schedule sets them; loading makes new groups, and a run's optimizer is loaded once at least."""
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = create_optimizer(OPTIMIZERS["AdamW"], [{"params": [weight]}])
    updates = SingleUpdates(optimizer, [(weight, weight)], rounds=False)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    weight.grad = torch.ones_like(weight)
    updates.begin(0, 0)
    updates.step(updates.norm(), NO_LIMIT)
    assert torch.equal(weight, torch.ones(2, 2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_that_is_not_finite_leaves_no_trace_and_is_not_read(name):
    single = weights()
    optimizer = create_optimizer(OPTIMIZERS[name], groups(single))
    updates = SingleUpdates(optimizer, [(each, each) for each in single], rounds=False)

    def update(step, factor):
        give_gradients(single, step)
        single[1].grad *= factor
        updates.begin(0, step)
        updates.step(updates.norm(), NO_LIMIT)

    update(0, 1.0)
    before = [each.detach().clone() for each in single]
    kept = [{k: v.clone() for k, v in optimizer.state[p].items() if torch.is_tensor(v)} for p in single]
    with CountReads() as reads:
        update(1, float("nan"))
    reads_its_own = name not in ("AdamW", "Adafactor")  # the others look at a count or a norm
    assert reads_its_own or not reads.reads, reads.places
    assert all(torch.equal(one, other) for one, other in zip(before, single))
    for parameter, state in zip(single, kept):
        for key, value in state.items():
            assert torch.equal(optimizer.state[parameter][key], value), key


def test_rounding_gives_one_of_the_neighbours_as_often_as_the_other_is_far():
    values = torch.tensor([1.0, 1.0 + 0.25 * 2**-7, -(1.0 + 0.75 * 2**-7), 0.0, 1e-39, 65536.0 * 3])
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([stochastically_rounded(values, generator).float() for _ in range(4000)])
    assert set(draws[:, 1].tolist()) == {1.0, 1.0 + 2**-7}
    assert set(draws[:, 2].tolist()) == {-1.0, -(1.0 + 2**-7)}
    torch.testing.assert_close(draws.double().mean(0), values.double(), rtol=2e-4, atol=1e-40)
    exact = torch.tensor([0.0, -2.5, torch.inf, -torch.inf, torch.nan])
    kept = stochastically_rounded(exact, generator).float()
    torch.testing.assert_close(kept, exact, equal_nan=True, rtol=0, atol=0)


def updated(rounds: bool, steps: int, seed: int = 5) -> torch.Tensor:
    """A bf16 weight of ones after updates of 1e-4 each, far below what bf16 can add to 1."""
    weight = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    options = OptimizerOptions(learning_rate=1e-4, optimizer_args=("weight_decay=0",))
    optimizer = create_optimizer(options, [{"params": [weight]}])
    updates = SingleUpdates(optimizer, [(weight, weight)], rounds=rounds)
    for step in range(steps):
        weight.grad = torch.ones_like(weight)
        updates.begin(seed, step)
        updates.step(updates.norm(), NO_LIMIT)
    assert optimizer.state[weight]["exp_avg"].dtype is (torch.float32 if rounds else torch.bfloat16)
    return weight.detach().float()


def test_small_updates_are_not_lost_on_average():
    assert (updated(rounds=False, steps=20) == 1.0).all()
    moved = 1.0 - updated(rounds=True, steps=20)
    assert moved.mean().item() == pytest.approx(20 * 1e-4, rel=0.1)


def test_chance_is_drawn_from_the_position_and_from_nothing_else():
    state = torch.get_rng_state()
    one, same, other = (updated(rounds=True, steps=2, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_a_master_takes_the_update_and_the_model_its_rounding():
    masters, alone = weights(), [each.detach().clone().requires_grad_() for each in weights()]
    shown = [nn.Parameter(each.detach().bfloat16()) for each in masters]
    give_gradients(shown, 0)
    for parameter, weight in zip(alone, shown):
        parameter.grad = weight.grad.float()
    create_optimizer(OPTIMIZERS["AdamW"], groups(alone)).step()
    optimizer = create_optimizer(OPTIMIZERS["AdamW"], groups(masters))
    updates = SingleUpdates(optimizer, list(zip(shown, masters)), rounds=False)
    updates.begin(0, 0)
    updates.step(updates.norm(), NO_LIMIT)
    for expected, master, weight in zip(alone, masters, shown):
        assert torch.equal(master, expected) and torch.equal(weight, expected.bfloat16())
        assert weight.grad is None and master.grad is None
