"""Files over a model's weights: what ComfyUI makes of them, one over the other, and the base again."""

import pytest
import torch
from safetensors.torch import save_file

from library.errors import AdapterFileError
from networks.overlay import Overlay
from tests.helpers.comfy_rules import weight_differences
from tests.helpers.tiny import golden_vectors, rel_l2, tiny_transformer
from tests.helpers.written_adapters import (
    DOTTED,
    FLAT,
    dora_of_rows,
    loha,
    prefix,
    write_lokr,
    write_lora,
    write_norms,
)


@pytest.fixture(scope="module")
def model():
    return tiny_transformer()


@pytest.fixture
def base(model):
    """The weights, which are the same again after the test."""
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    yield weights
    assert_is(model, weights)


@pytest.fixture
def overlay(model, base):
    made = Overlay(model)
    yield made
    made.lay([])


def assert_is(model, weights):
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def assert_changed(model, base, expected):
    for name, weight in model.state_dict().items():
        if name in expected:
            change = weight.double() - base[name].double()
            torch.testing.assert_close(change, expected[name], atol=1e-6, rtol=1e-5)
        else:
            assert torch.equal(weight, base[name]), name


def saved(folder, name, tensors):
    save_file(tensors, folder / name)
    return str(folder / name)


@pytest.mark.parametrize("style", [*DOTTED, *FLAT])
def test_every_style_of_keys_is_laid_over(tmp_path, model, base, overlay, style):
    written = write_lora(base, style)
    write_norms(written, base, style)
    assert overlay.lay([(saved(tmp_path, "a.safetensors", written.tensors), 0.7)])
    assert_changed(model, base, {name: 0.7 * change for name, change in written.expected.items()})


def test_files_add_up_change_their_strength_and_go(tmp_path, model, base, overlay):
    one, other = write_lora(base), write_lokr(base)
    files = [
        saved(tmp_path, "a.safetensors", one.tensors),
        saved(tmp_path, "b.safetensors", other.tensors),
    ]
    rules = [weight_differences(each.tensors) for each in (one, other)]
    for strengths in ((1.0, 0.5), (-0.3, 1.0), (0.0, 2.0), (1.0, 0.0)):
        assert overlay.lay(list(zip(files, strengths)))
        expected: dict = {}
        for rule, strength in zip(rules, strengths):
            for name, change in rule.items():
                expected[name] = expected.get(name, 0) + strength * change
        assert_changed(model, base, expected)
    assert not overlay.lay([(files[0], 1.0)])
    assert overlay.lay([(files[0], 0.0)])
    assert_is(model, base)


@pytest.mark.parametrize("make", [loha, dora_of_rows])
def test_kinds_that_are_not_trained_are_laid_over(tmp_path, model, base, overlay, make):
    path = "blocks.0.mlp.layer1"
    tensors, change = make(base, path)
    named = {prefix("comfy", path) + name: tensor for name, tensor in tensors.items()}
    overlay.lay([(saved(tmp_path, "a.safetensors", named), 0.5)])
    assert_changed(model, base, {f"{path}.weight": 0.5 * change})


def test_the_sum_is_rounded_once(tmp_path, base):
    model = tiny_transformer(torch.bfloat16)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    written = write_lora(base)
    files = [saved(tmp_path, f"{n}.safetensors", written.tensors) for n in "ab"]
    made = Overlay(model)
    made.lay([(files[0], 1.0), (files[1], -0.9999)])
    for name, weight in model.state_dict().items():
        change = written.expected.get(name, torch.zeros(()))
        once = (weights[name].double() + 0.0001 * change).bfloat16()
        assert (weight != once).float().mean() < 1e-3, name  # sums of float32 that are nearly ties
    made.lay([])
    assert_is(model, weights)


def test_what_does_not_fit_is_named_and_the_base_comes_back(tmp_path, model, base, overlay):
    tensors = {"diffusion_model.blocks.9.mlp.layer1.lora_down.weight": torch.ones(2, 2)}
    with pytest.raises(AdapterFileError, match="blocks.9.mlp.layer1"):
        overlay.lay([(saved(tmp_path, "a.safetensors", tensors), 1.0)])
    large = {key: tensor * 1e30 for key, tensor in write_lora(base).tensors.items()}
    with pytest.raises(AdapterFileError, match="infinity in its weight"):
        overlay.lay([(saved(tmp_path, "b.safetensors", large), 1.0)])
    overlay.lay([])
    assert_is(model, base)


def test_the_model_computes_with_what_is_laid_over_it(tmp_path, model, base, overlay):
    """Modulations too, whose weights the model gathers in one piece when it is first called."""
    vectors = golden_vectors()
    inputs = [vectors[f"in.{name}"] for name in ("x.sq", "t.sq", "qwen_hidden.a", "t5_ids.a")]

    @torch.no_grad()
    def velocity(of):
        return of(inputs[0].squeeze(2), *inputs[1:])

    before = velocity(model)
    paths = ("blocks.0.adaln_modulation_mlp.2", "blocks.1.adaln_modulation_self_attn.1")
    changes = {path: torch.randn_like(base[f"{path}.weight"]) for path in paths}
    tensors = {prefix("comfy", path) + "diff": change for path, change in changes.items()}
    overlay.lay([(saved(tmp_path, "a.safetensors", tensors), 0.5)])
    alone = tiny_transformer()
    for path, change in changes.items():
        weight = alone.get_parameter(f"{path}.weight")
        weight.data = weight + 0.5 * change
    assert rel_l2(velocity(model), velocity(alone)) < 1e-6
    assert rel_l2(velocity(model), before) > 1e-3
    overlay.lay([])
    assert torch.equal(velocity(model), before)
