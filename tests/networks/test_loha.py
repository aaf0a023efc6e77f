"""LoHa, trained: against its dense form and ComfyUI's reading of the file; LyCORIS: test_lycoris.py."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from networks import loha_anima
from networks.kinds.adapter import NO_DROPOUT, Dropout
from networks.kinds.loha import LoHa
from networks.norm_limit import limit_norms
from networks.workshop.verifying import Written, differences
from tests.helpers.comfy_rules import weight_differences
from tests.helpers.tiny import loss_of, rel_l2, tiny_transformer
from tests.helpers.trained_networks import trained
from tests.helpers.written_adapters import live_differences

RANKS = [2, 12]  # applied by its factors, and as the difference itself


def filled(rank, alpha=3.0, dropout=NO_DROPOUT):
    adapter = LoHa(24, 40, rank, alpha, dropout)
    generator = torch.Generator().manual_seed(1)
    for factor in adapter.factors().values():
        factor.data.normal_(std=0.4, generator=generator)
    assert adapter.is_factored == (rank == 2)
    return adapter


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("plain", [True, False])
def test_values_and_gradients_are_those_of_the_dense_difference(rank, plain):
    adapter = filled(rank)
    weight = torch.randn(40, 24)
    x = torch.randn(2, 5, 24, requires_grad=True)
    a1, b1, a2, b2 = adapter.factors().values()
    expected = nn.functional.linear(x, weight + adapter.scale * (a1 @ b1) * (a2 @ b2))
    found = nn.functional.linear(x, weight) + adapter.added(x) if plain else adapter(x, weight, None)
    torch.testing.assert_close(found, expected)
    wanted = [x, a1, b1, a2, b2]
    for mine, theirs in zip(
        torch.autograd.grad(found.square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", RANKS)
def test_its_norm_is_that_of_the_difference_and_can_be_limited(rank):
    adapter = filled(rank)
    before = adapter.delta().detach().clone()
    torch.testing.assert_close(adapter.change_norm(), before.norm())
    limit_norms([adapter], 0.5)
    torch.testing.assert_close(adapter.delta(), 0.5 * before / before.norm())


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("kind", ["neuron", "rank", "module"])
def test_dropout_leaves_the_mean_and_every_gradient(rank, kind):
    adapter = filled(rank, dropout=Dropout(**{kind: 0.25}))
    weight, x = torch.zeros(40, 24), torch.randn(1, 2, 24)
    torch.manual_seed(0)
    outs = torch.stack([adapter(x, weight, None) for _ in range(400)])
    assert any(not torch.equal(outs[0], other) for other in outs)
    kept = 0.75 if kind == "module" else 1.0
    assert rel_l2(outs.mean(0), kept * adapter.eval()(x, weight, None)) < 0.15
    outs.sum().backward()
    assert all(factor.grad.any() for factor in adapter.factors().values())


@pytest.fixture(scope="module", params=[{}, {"dora_wd": "1"}], ids=["plain", "with magnitudes"])
def network(request):
    return trained("loha", 2, **request.param)


def test_comfyui_makes_of_the_file_what_was_trained(tmp_path, network):
    network.save_weights(tmp_path / "a.safetensors", None, None)
    file = load_file(tmp_path / "a.safetensors")
    theirs = weight_differences(file, tiny_transformer().state_dict())
    mine = live_differences(network)
    assert theirs.keys() == mine.keys() and len(mine) == 40 + 24
    for name, difference in mine.items():
        assert rel_l2(theirs[name], difference) < 3e-6, name
    assert differences(network, file, Written(torch.float32)) == []


def test_a_start_from_the_file_is_the_same_network(tmp_path, network):
    network.save_weights(tmp_path / "a.safetensors", None, None)
    model = tiny_transformer()
    like, _ = loha_anima.create_network_from_weights(
        1.0, str(tmp_path / "a.safetensors"), None, None, model
    )
    like.apply_to(None, model)
    assert loss_of(model).item() == pytest.approx(loss_of(network.model).item(), rel=1e-6)
    like.merge_to(None, model, None)
    like.set_multiplier(0)
    assert loss_of(model).item() == pytest.approx(loss_of(network.model).item(), rel=1e-5)


def test_a_fresh_network_changes_nothing():
    model = tiny_transformer()
    base = loss_of(model).item()
    loha_anima.create_network(1.0, 3, 1, None, None, model, train_norm=False).apply_to(None, model)
    assert loss_of(model).item() == base
