"""Adapter files made for ComfyUI, loaded here, give ComfyUI's outputs (tests/golden)."""

import pytest
import torch

from networks import lokr_anima, lora_anima
from networks.kinds.adapter import merged_parameters
from tests.helpers.tiny import assert_matches_golden, golden, golden_vectors, tiny_transformer
from tests.helpers.workshop import outputs

pytestmark = pytest.mark.golden
FILES = {"lora": lora_anima, "lokr_full": lokr_anima, "lokr_low": lokr_anima}


def loaded(name):
    model = tiny_transformer()
    network, _ = FILES[name].create_network_from_weights(
        1.0, str(golden(f"adapter_{name}.safetensors")), None, None, model, for_inference=True
    )
    return model, network


def check_outputs(model, name):
    vectors = golden_vectors()
    velocity, context = outputs(model)
    assert_matches_golden(velocity, vectors[f"out.{name}.velocity_sq"][:, :, 0])
    adapter = vectors[f"out.{name}.adapter.a"]
    assert_matches_golden(context[:, : adapter.shape[1]], adapter)


@pytest.mark.parametrize("name", FILES)
def test_an_applied_file_gives_comfyuis_velocity_and_context(name):
    model, network = loaded(name)
    network.apply_to(None, model)
    check_outputs(model, name)


@pytest.mark.parametrize("name", FILES)
def test_a_merged_file_gives_comfyuis_velocity_and_context(name):
    model, network = loaded(name)
    network.merge_to(None, model, None)
    check_outputs(model, name)


@pytest.mark.parametrize("name", FILES)
def test_the_differences_of_weights_are_comfyuis(name):
    _, network = loaded(name)
    vectors, seen = golden_vectors(), 0
    for placement in network.placements:
        expected = vectors.get(f"out.{name}.delta.{placement.path}")
        if expected is not None:
            merged = merged_parameters(placement.base, placement.adapter)["weight"]
            assert_matches_golden(merged - placement.base.weight, expected)
            seen += 1
    assert seen == (3 if name == "lokr_full" else 2)


@pytest.mark.parametrize("name", FILES)
def test_strength_zero_and_removal_give_the_base_outputs(name):
    model, network = loaded(name)
    before = outputs(tiny_transformer())
    network.apply_to(None, model)
    network.set_multiplier(0.0)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), before))
    network.set_multiplier(1.0)
    assert not torch.equal(outputs(model)[0], before[0])
    network.remove()
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), before))
