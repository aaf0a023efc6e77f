"""rsLoRA: the scale alpha / sqrt(rank), in a file that other programs divide by the rank."""

import math

import pytest
import torch
from safetensors.torch import load_file

from networks import lokr_anima, lora_anima
from tests.helpers.comfy_rules import weight_differences
from tests.helpers.tiny import rel_l2, tiny_transformer
from tests.helpers.trained_networks import MODULES, OPTIONS, trained
from tests.helpers.written_adapters import live_differences

MLP_RANK = {"network_reg_dims": r".*mlp.*=5"}
MIXED = {**MLP_RANK, "network_reg_alphas": r".*cross_attn.*=0.5"}


@pytest.fixture(scope="module", params=["lora", "lokr low"])
def written(request, tmp_path_factory):
    network = trained(request.param, 2, rslora="true", **MIXED)
    file = tmp_path_factory.mktemp("rslora") / "a.safetensors"
    network.save_weights(file, None, None)
    return request.param, network, file


def scales(network):
    return {p.path: p.adapter.scale for p in network.placements if not p.is_norm}


def test_every_layer_has_the_scale_of_its_own_rank_and_comfyui_applies_it(written):
    _, network, file = written
    found = scales(network)
    assert found["blocks.0.mlp.layer1"] == pytest.approx(2 / math.sqrt(5))
    assert found["blocks.0.self_attn.q_proj"] == pytest.approx(2 / math.sqrt(3))
    assert found["blocks.0.cross_attn.q_proj"] == pytest.approx(0.5 / math.sqrt(3))
    theirs, mine = weight_differences(load_file(file)), live_differences(network)
    assert theirs.keys() == mine.keys()
    for name, difference in mine.items():
        assert rel_l2(theirs[name], difference) < 1e-6, name


def test_a_start_from_the_file_has_the_very_scales(written):
    name, network, file = written
    kind, options = OPTIONS[name]
    module = MODULES[kind]
    like, _ = module.create_network_from_weights(1.0, str(file), None, None, tiny_transformer())
    plain = module.create_network(1.0, 3, 7, None, None, tiny_transformer(), **MLP_RANK, **options)
    plain.load_weights(file)
    assert scales(like) == scales(plain) == scales(network)


def test_it_is_in_the_metadata_with_the_alpha_that_is_written(written):
    _, network, _ = written
    assert network.network_args["rslora"] == "true"
    assert network.alpha == torch.tensor(2 * math.sqrt(3)).item()


@pytest.mark.parametrize("word", ["rs_lora", "use_rslora"])
def test_its_other_names_are_read(word):
    network = lora_anima.create_network(1.0, 4, 1, None, None, tiny_transformer(), **{word: "1"})
    assert set(scales(network).values()) == {0.5}


def test_where_it_does_nothing_that_is_said(tmp_path, caplog):
    lokr_anima.create_network(1.0, 100_000, 1, None, None, tiny_transformer(), rslora=True)
    assert "rslora has no effect: no adapter has a rank" in caplog.messages
    trained("lora").save_weights(tmp_path / "a.safetensors", None, None)
    lora_anima.create_network_from_weights(
        1.0, str(tmp_path / "a.safetensors"), None, None, tiny_transformer(), rslora=True
    )
    assert any("no effect of rslora: dim_from_weights" in line for line in caplog.messages)
