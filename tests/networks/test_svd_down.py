"""svd_down: a LoRA that starts on the main inputs of the weight it adapts."""

import math

import pytest
import torch
from torch import nn

from library.settings.flags.network import NetworkOptions
from networks import lokr_anima, lora_anima
from networks.arguments import parse_network_args
from networks.kinds.principal import principal_inputs
from networks.loading import make_network
from tests.helpers.tiny import golden, loss_of, tiny_transformer


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_rows_are_the_first_singular_vectors(rank):
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.randn(60, 40, generator=generator) for _ in range(2))
    weight = left @ torch.diag(0.8 ** torch.arange(40)) @ right.T
    rows = principal_inputs(weight, rank)
    exact = torch.linalg.svd(weight, full_matrices=False).Vh[:rank]
    torch.testing.assert_close(rows @ rows.T, torch.eye(rank), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.T @ rows, exact.T @ exact, atol=2e-3, rtol=0)


def test_a_rank_above_the_weights_own_leaves_the_other_rows_random():
    assert principal_inputs(torch.randn(5, 9), 7).shape == (5, 9)


def network_of(model, **kwargs):
    torch.manual_seed(4)
    network = lora_anima.create_network(1.0, 3, 1, None, None, model, train_norm=False, **kwargs)
    return network, torch.rand(1)


def test_it_changes_nothing_at_first_and_draws_what_a_plain_start_draws():
    model = tiny_transformer()
    base = loss_of(model).item()
    plain, after = network_of(tiny_transformer())
    network, after_too = network_of(model, svd_down="true")
    assert torch.equal(after, after_too)
    for one, other in zip(network.placements, plain.placements):
        down = one.adapter.lora_down.detach()
        weight = model.get_submodule(one.path).weight
        torch.testing.assert_close(down, principal_inputs(weight, 3) / math.sqrt(3))
        assert down.norm() == pytest.approx(other.adapter.lora_down.norm().item(), rel=0.3)
    network.apply_to(None, model)
    assert loss_of(model).item() == base
    assert network.network_args["svd_down"] == "true"


def test_it_belongs_to_lora_and_needs_no_memory_for_a_trial():
    (problem,) = lokr_anima.check_network_args(4, 1, svd_down=True)
    assert "networks.lora_anima" in problem.message
    with torch.device("meta"):
        base = nn.Linear(8, 6)
    assert principal_inputs(base.weight, 2).is_meta


@pytest.mark.parametrize("alpha, args", [(2, []), (1, ["svd_down=true"]), (2, ["rslora=true"])])
def test_what_a_file_decides_instead_is_said(alpha, args, caplog):
    """The file's 40 adapters have alpha 2."""
    file = str(golden("adapter_lora.safetensors"))
    options = NetworkOptions(
        network_weights=file, network_dim=3, network_alpha=alpha, network_args=args
    )
    kwargs = parse_network_args(args)
    network = make_network(lora_anima, options, kwargs, tiny_transformer())
    said = [line for line in caplog.messages if "--network_weights" in line]
    assert {p.adapter.alpha for p in network.placements if not p.is_norm} == {2.0}
    other_alpha = alpha != 2 or "rslora=true" in args
    assert len(said) == other_alpha + ("svd_down=true" in args)
    assert ("40 adapters take their alpha" in "".join(said)) is other_alpha
    assert ("svd_down has no effect" in "".join(said)) is ("svd_down=true" in args)
