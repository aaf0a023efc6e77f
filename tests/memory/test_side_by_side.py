"""Matrices that lie side by side: which do, what stays as it was, and what parts them."""

import pytest
import torch
from torch import nn

from library.memory.quantised import QuantisedLinear
from library.memory.side_by_side import SharesInput, gathered, input_gradient, joined, lay
from networks import lora_anima
from tests.helpers.memory_modes import attached, gradients, kept_by_forward, small_dit

CPU = torch.device("cpu")


def linears(count=3, inputs=64, outputs=16, **options):
    torch.manual_seed(0)
    made = [nn.Linear(inputs, outputs, bias=False, **options) for _ in range(count)]
    return [each.requires_grad_(False) for each in made]


def weights(made):
    return [each.weight for each in made]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_matrices_become_views_of_one_and_stay_what_they_were(device):
    made = linears(device=device)
    before, parameters = [w.clone() for w in weights(made)], weights(made)
    assert joined(parameters) is None
    lay(made)
    whole = joined(weights(made))
    assert whole is not None and whole.shape == (48, 64)
    assert all(a is b for a, b in zip(weights(made), parameters))
    assert joined(parameters[1:]).shape == (32, 64)
    assert joined([parameters[0], parameters[2]]) is None and joined(parameters[::-1]) is None
    if device == "cpu":
        assert torch.equal(whole, torch.cat(before))
    place = parameters[0].data_ptr()
    lay(made)  # nothing to do
    assert parameters[0].data_ptr() == place


def test_moving_and_casting_part_them_and_nothing_is_lost():
    made = linears()
    lay(made)
    before = [w.clone() for w in weights(made)]
    for each in made:
        each.to(torch.float64)
    assert joined(weights(made)) is None
    assert all(torch.equal(w.float(), b) for w, b in zip(weights(made), before))
    for each in made:
        each.to(CPU)
    lay(made)
    for each in made:
        each.to(CPU)  # where they are
    assert joined(weights(made)) is not None


def some(change):
    made = linears()
    if change == "trains":
        made[2].weight.requires_grad_()
    if change == "another dtype":
        made[1].half()
    if change == "another width":
        made[1] = linears(1, inputs=32)[0]
    if change == "computed in 8 bits":
        made = [QuantisedLinear.of(each, "int8_rotated", CPU) for each in made]
    if change == "of odd sizes":  # in a buffer of swapped weights there would be gaps
        made = linears(inputs=3, outputs=5)
    return made


@pytest.mark.parametrize(
    "change", ["trains", "another dtype", "another width", "computed in 8 bits", "of odd sizes"]
)
def test_those_that_cannot_be_one_stay_where_they_are(change):
    made = some(change)
    places = [w.data_ptr() for w in weights(made)]
    lay(made)
    assert [w.data_ptr() for w in weights(made)] == places


def test_gradients_are_gathered_where_they_lie_beside_each_other():
    whole = torch.randn(2, 3, 20).double()
    a, b, c = whole.split((8, 8, 4), -1)
    alone = torch.randn(2, 3, 5).double()
    assert [each.shape[1] for each in gathered([a, b, alone, c])] == [16, 5, 4]
    assert [each.shape[1] for each in gathered([b, a])] == [8, 8]
    assert [each.shape[1] for each in gathered([a, b.clone(), c])] == [8, 8, 4]
    weight = torch.randn(21, 6).double()
    found = input_gradient([a, b, alone], weight, None)
    torch.testing.assert_close(found, torch.cat([a, b, alone], -1) @ weight, rtol=1e-12, atol=1e-12)


DROPOUTS = {"rank_dropout": 0.2, "module_dropout": 0.1, "neuron_dropout": 0.1}


def model(is_laid, dtype, **options):
    made = small_dit().to(dtype).requires_grad_(False)
    if is_laid:
        made.lay_side_by_side()
    attached(made, lora_anima, options)
    return made


def test_a_model_has_the_gradients_it_had():
    """Dropout draws the same numbers in the same order."""
    together, alone = (
        model(each, torch.float64, train_norm="false", **DROPOUTS) for each in (True, False)
    )
    attentions = [each for each in together.modules() if isinstance(each, SharesInput)]
    assert len(attentions) == 2 * (len(together.blocks) + len(together.llm_adapter.blocks))
    assert all(joined(weights(each.of_one_input())) is not None for each in attentions)
    found, expected = gradients(together), gradients(alone)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("trains_norm, dtype", [("false", torch.float32), ("true", torch.bfloat16)])
def test_nothing_more_is_kept(trains_norm, dtype):
    """But for factors in float32, which are used as they are where each is used alone."""
    together, alone = (
        kept_by_forward(model(each, dtype, train_norm=trains_norm), 32) for each in (True, False)
    )
    factors = sum(p.nbytes for p in model(True, dtype).parameters() if p.requires_grad)
    assert alone <= together <= alone + factors * (dtype == torch.float32)
