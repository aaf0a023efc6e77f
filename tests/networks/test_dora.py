"""DoRA, trained: magnitudes beside LoRA and LoKr, as ComfyUI applies them."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.errors import AdapterFileError
from library.memory.quantised import QuantisedLinear, frozen_weight
from networks import lora_anima
from networks.kinds.adapter import Dropout
from networks.kinds.decomposed import Decomposed, DecomposedInputs
from networks.kinds.lora import LoRA
from networks.workshop.verifying import Written, differences
from tests.helpers.comfy_rules import weight_differences
from tests.helpers.tiny import loss_of, rel_l2, tiny_transformer
from tests.helpers.trained_networks import MODULES, OPTIONS, trained
from tests.helpers.written_adapters import live_differences

LAYER = "blocks.0.mlp.layer1"


@pytest.fixture(scope="module", params=["lora", "lokr low", "lokr full"])
def written(request, tmp_path_factory):
    network = trained(request.param, 2, dora_wd="true")
    file = tmp_path_factory.mktemp("dora") / "a.safetensors"
    network.save_weights(file, torch.bfloat16, None)
    return request.param, network, file


def gains(network):
    return {p.path: p.adapter.dora_gain for p in network.placements if not p.is_norm}


def test_fresh_magnitudes_change_nothing():
    model = tiny_transformer()
    base = loss_of(model).item()
    network = lora_anima.create_network(1.0, 3, 1, None, None, model, use_dora=True)
    network.apply_to(None, model)
    assert loss_of(model).item() == pytest.approx(base, rel=3e-7)
    base, adapter, x = layer()
    adapter.dora_gain.data.zero_()
    plain = adapter.inner(x, base.weight, None)
    assert torch.equal(adapter(x, base.weight, None), plain)
    assert network.network_args["dora_wd"] == "true"


def test_comfyui_makes_of_the_file_what_was_trained(tmp_path, written):
    _, network, _ = written
    network.save_weights(tmp_path / "a.safetensors", None, None)
    theirs = weight_differences(load_file(tmp_path / "a.safetensors"), tiny_transformer().state_dict())
    mine = live_differences(network)
    assert theirs.keys() == mine.keys() and len(mine) == 40 + 24
    for name, difference in mine.items():
        assert rel_l2(theirs[name], difference) < 3e-6, name


def test_magnitudes_are_written_in_float32_and_the_file_is_found_right(written):
    _, network, file = written
    tensors = load_file(file)
    kinds = {key.rpartition(".")[2]: tensor.dtype for key, tensor in tensors.items()}
    assert kinds["dora_scale"] == kinds["alpha"] == torch.float32
    assert torch.bfloat16 in kinds.values()
    assert differences(network, tensors, Written(torch.bfloat16)) == []
    key = f"diffusion_model.{LAYER}.dora_scale"
    (found,) = differences(network, {**tensors, key: 1.1 * tensors[key]}, Written(torch.bfloat16))
    assert "dora_scale" in found


def test_a_start_from_the_file_has_the_magnitudes(written):
    name, network, file = written
    kind, options = OPTIONS[name]
    options = {"network_dim": 3, **options}
    like, _ = MODULES[kind].create_network_from_weights(
        1.0, str(file), None, None, tiny_transformer()
    )
    fresh = MODULES[kind].create_network(
        1.0, options.pop("network_dim"), 1, None, None, tiny_transformer(), dora_wd=1, **options
    )
    fresh.load_weights(file)
    for other in (like, fresh):
        for path, gain in gains(other).items():
            torch.testing.assert_close(gain, gains(network)[path], rtol=0, atol=2e-7)
        assert {p.adapter.alpha for p in other.placements if not p.is_norm} <= {1.0, 2.0}


def test_merged_is_as_applied_at_any_strength(written):
    _, network, _ = written
    model = network.model
    for strength in (1.0, 0.4):
        network.set_multiplier(strength)
        live = loss_of(model).item()
        with network.merged():
            assert loss_of(model).item() == pytest.approx(live, rel=1e-5)
    network.set_multiplier(1.0)


def layer(**dropout):
    generator = torch.Generator().manual_seed(3)
    base = torch.nn.Linear(24, 40)
    base.weight.data.normal_(generator=generator)
    adapter = Decomposed(LoRA(24, 40, 4, 2.0, Dropout(**dropout)), base)
    for factor in adapter.factors().values():
        factor.data.normal_(std=0.2, generator=generator)
    return base, adapter, torch.randn(2, 5, 24, generator=generator, requires_grad=True)


def test_values_and_gradients_are_those_of_the_dense_weight():
    base, adapter, x = layer()
    inner, gain = adapter.inner, adapter.dora_gain
    wanted = [x, inner.lora_down, inner.lora_up, gain]
    dense = (base.weight.detach() + inner.scale * inner.lora_up @ inner.lora_down)
    expected = torch.nn.functional.linear(x, dense * (1 + gain)[:, None], base.bias.detach())
    found = adapter(x, base.weight.detach(), base.bias.detach())
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad(found.square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_module_dropout_leaves_out_both_or_neither():
    base, adapter, x = layer(module=0.5)
    whole = adapter.eval()(x, base.weight, base.bias)
    adapter.train()
    plain, seen = base(x), set()
    for _ in range(12):
        out = adapter(x, base.weight, base.bias)
        kept = torch.allclose(out, whole, atol=1e-4)
        assert kept or torch.allclose(out, plain, atol=1e-4)
        seen.add(kept)
    assert seen == {True, False}


def test_small_changes_of_magnitudes_survive_bfloat16():
    base, adapter, _ = layer()
    adapter.dora_gain.data.fill_(1e-4)
    x = torch.randn(64, 24).bfloat16()
    out = adapter(x, base.weight.detach().bfloat16(), None)
    (grad,) = torch.autograd.grad(out.float().square().sum(), [adapter.dora_gain])
    assert grad.dtype == torch.float32 and grad.abs().min() > 0
    assert adapter.dora_gain.to(torch.bfloat16).float().allclose(adapter.dora_gain, rtol=4e-3)


def test_a_file_with_magnitudes_needs_a_run_that_trains_them(tmp_path, written):
    name, _, file = written
    kind, options = OPTIONS[name]
    options = {"network_dim": 3, **options}
    plain = MODULES[kind].create_network(
        1.0, options.pop("network_dim"), 1, None, None, tiny_transformer(), **options
    )
    with pytest.raises(AdapterFileError, match="Set dora_wd=true in network_args"):
        plain.load_weights(file)
    tensors = load_file(file)
    tensors[f"diffusion_model.{LAYER}.dora_scale"] = torch.ones(3, 1)
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(AdapterFileError, match=r"dora_scale of shape \(3, 1\), expected"):
        MODULES[kind].create_network_from_weights(
            1.0, str(tmp_path / "b.safetensors"), None, None, tiny_transformer()
        )


INPUTS = {"dora_wd": "1", "wd_on_out": "false", "train_norm": False}


@pytest.fixture(scope="module", params=["lora", "lokr low", "loha"])
def of_inputs(request):
    return request.param, trained(request.param, 2, **INPUTS)


def test_magnitudes_of_inputs_are_applied_and_started_from_as_comfyui_reads_them(tmp_path, of_inputs):
    name, network = of_inputs
    file, base = tmp_path / "a.safetensors", tiny_transformer().state_dict()
    network.save_weights(file, None, None)
    theirs, mine = weight_differences(load_file(file), base), live_differences(network)
    assert theirs.keys() == mine.keys() and len(mine) == 40
    for path, difference in mine.items():
        assert rel_l2(theirs[path], difference) < 1e-5, path
    assert differences(network, load_file(file), Written(torch.float32)) == []
    kind, model = OPTIONS[name][0], tiny_transformer()
    like, _ = MODULES[kind].create_network_from_weights(1.0, str(file), None, None, model, train_norm=False)
    like.apply_to(None, model)
    like.set_multiplier(0.4)
    live = loss_of(model).item()
    with like.merged():
        assert loss_of(model).item() == pytest.approx(live, rel=1e-5)
    for path, gain in gains(like).items():
        torch.testing.assert_close(gain, gains(network)[path], rtol=0, atol=2e-6)


def test_fresh_magnitudes_of_inputs_change_nothing_and_need_dora_wd(caplog):
    model = tiny_transformer()
    before = loss_of(model).item()
    lora_anima.create_network(1.0, 3, 1, None, None, model, **INPUTS).apply_to(None, model)
    assert loss_of(model).item() == pytest.approx(before, rel=3e-7)
    lora_anima.create_network(1.0, 3, 1, None, None, tiny_transformer(), wd_on_output="false")
    assert "wd_on_out has no effect: dora_wd is not on" in caplog.text


def test_gradients_for_magnitudes_of_inputs_take_the_norm_for_a_constant():
    base, plain, x = layer()
    adapter = DecomposedInputs(plain.inner, base)
    adapter.dora_gain.data.normal_(std=0.2, generator=torch.Generator().manual_seed(4))
    inner, weight = adapter.inner, base.weight.detach()
    dense = weight + inner.scale * inner.lora_up @ inner.lora_down
    factor = (1 + adapter.dora_gain) * weight.norm(dim=0) / dense.detach().norm(dim=0)
    expected = torch.nn.functional.linear(x, dense * factor)
    found = adapter(x, weight, None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    wanted = [x, inner.lora_down, inner.lora_up, adapter.dora_gain]
    for mine, theirs in zip(
        torch.autograd.grad(found.square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_of_a_sum_with_a_quantised_weight_are_those_of_what_it_stands_for(dtype):
    base, plain, x = layer()
    base.requires_grad_(False)
    stored = QuantisedLinear.of(base, "fp8", torch.device("cpu"))
    weight = frozen_weight(stored)
    adapter = DecomposedInputs(plain.inner, stored)
    dense = weight.dense(torch.float32)
    total = dense + adapter.inner.delta()
    expected = dense.norm(dim=0) / total.norm(dim=0)
    torch.testing.assert_close(adapter.ratio(weight, dtype), expected, rtol=1e-2, atol=0)
    assert adapter(x.to(dtype), weight, None).dtype == dtype
