"""The modulations of all blocks at once: as each makes them, whoever adapts, merges or swaps."""

import logging

import pytest
import torch

from networks import lora_anima
from tests.helpers.alive import Alive
from tests.helpers.cards import CARD, adapted_on, gradients_in_turn, repeatable
from tests.helpers.memory_modes import (
    adapted,
    assert_same_bits,
    gradients,
    loss_of,
    small_dit,
)

CPU = torch.device("cpu")


def one_by_one(model):
    """The model, each of whose modulations makes its own values."""
    model.modulations.stacked = lambda: None
    return model


def on_modulations(**swap):
    """A model whose modulations alone are adapted."""
    model = small_dit().requires_grad_(False)
    if swap:
        model.enable_block_swap(**swap)
    model.lay_side_by_side()  # as swapped ones lie
    network = lora_anima.create_network(
        1.0, 2, 1, None, None, model, target_modules="*adaln_modulation*", train_norm="false"
    )
    network.apply_to(None, model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.get_trainable_params():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    return model


def test_between_two_steps_the_weights_are_laid_where_they_wait():
    model, _ = adapted("lora linears")
    expected = gradients(model)
    there = model.modulations.stack
    model.enable_block_swap(2, CPU)
    assert there is not None and model.modulations.stack is not there
    assert_same_bits(gradients(model), expected)


@pytest.mark.gpu
def test_between_two_steps_the_weights_leave_the_card():
    with repeatable():
        model = adapted_on(CARD)
        expected = gradients_in_turn(model)
        model.enable_block_swap(model.num_blocks, CARD)
        weights = [linear.weight for linear in model.modulations.linears()]
        assert all(weight.is_pinned() for weight in weights)
        assert_same_bits(gradients_in_turn(model), expected)


def test_values_and_gradients_are_those_that_each_makes():
    model = small_dit(blocks=3).double().requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    embedded, shared = (
        torch.randn(2, 1, width, generator=draw, dtype=torch.float64).requires_grad_()
        for width in (32, 96)
    )
    found = torch.stack(tuple(model.steered((embedded, shared))))
    expected = torch.stack([torch.stack(b.modulated((embedded, shared))) for b in model.blocks])
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=draw, dtype=torch.float64)
    of_both = (
        torch.autograd.grad((out * weights).sum(), (embedded, shared)) for out in (found, expected)
    )
    for pair in zip(*of_both):
        torch.testing.assert_close(*pair)


@pytest.mark.parametrize("kind", ["lora linears", "norms"])
def test_training_is_that_of_modulations_one_by_one(kind):
    expected = gradients(one_by_one(adapted(kind)[0]))
    found = gradients(adapted(kind)[0])
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-6)


def test_parameters_stay_who_they_are_and_hold_what_they_did():
    model, plain = (small_dit().requires_grad_(False) for _ in range(2))
    before = dict(model.named_parameters())
    loss_of(model)
    assert model.modulations.stack is not None
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert_same_bits(model.state_dict(), plain.state_dict())


def test_a_weight_with_new_data_is_the_one_that_computes():
    """As merging and moving do it."""
    model, other = (small_dit().requires_grad_(False) for _ in range(2))
    loss_of(model)
    for each in (model, other):
        weight = each.blocks[1].adaln_modulation_mlp[2].weight
        weight.data = 2 * weight.data
    assert torch.equal(loss_of(model), loss_of(other))


def test_adapted_modulations_make_their_own_values(caplog):
    caplog.set_level(logging.INFO)
    model = on_modulations()
    found = gradients(model)
    assert model.modulations.stack is None
    assert len(found) == 2 * (2 * 2 * 3 + 2) and all(grad.any() for grad in found.values())
    swapped = on_modulations(blocks=2, device="cpu")
    assert swapped.modulations.away is not None
    assert_same_bits(gradients(swapped), found)
    assert swapped.modulations.away is None
    assert caplog.messages == ["modulation is adapted or trains: its 0 MiB stay on the device"]


def test_what_came_from_ram_is_not_kept_for_the_backward_pass():
    model = small_dit().requires_grad_(False)
    model.enable_block_swap(2, "cpu")
    home = model.modulations.stack
    time = (torch.ones(1, 1, 32, requires_grad=True), torch.ones(1, 1, 96))
    with Alive(home) as alive:
        steered = model.steered(time)
        assert alive.size() < home.up.nbytes / 2
    sum(each.sum() for each in steered).backward()
    assert time[0].grad.any()


@pytest.mark.parametrize("away", [False, True])
def test_matrices_of_8_bits_are_made_for_all_blocks_at_once_and_not_kept(away):
    model = small_dit().requires_grad_(False)
    model.quantise("fp8", CPU, llm_adapter=False)
    if away:
        model.enable_block_swap(2, "cpu")
    time = (torch.ones(1, 1, 32, requires_grad=True), torch.ones(1, 1, 96))
    expected = torch.stack([torch.stack(b.modulated(time)) for b in model.blocks])
    codes = model.modulations.settle() or model.modulations.stacked().homes()
    assert {each.dtype for each in codes} == {torch.int8}
    with Alive(model.parameters()) as alive:
        steered = torch.stack(tuple(model.steered(time)))
        assert alive.size() < codes[1].nbytes
    torch.testing.assert_close(steered, expected)
    of_both = [torch.autograd.grad(each.sum(), time[0])[0] for each in (steered, expected)]
    torch.testing.assert_close(*of_both)
    assert model.modulations.stack.holds(model.modulations.linears())
