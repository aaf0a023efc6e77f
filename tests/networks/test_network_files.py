"""Adapter files: what ComfyUI makes of an export, reloading in every format, refusals, metadata."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from library.errors import AdapterFileError
from networks.codec import KeyStyle, encode
from networks.kinds.adapter import merged_parameters
from networks.kinds.norm import NormDelta
from networks.network import AdapterNetwork
from networks.network_settings import NetworkSettings
from networks.placements import Placement
from tests.helpers.comfy_rules import weight_differences
from tests.helpers.tiny import rel_l2, tiny_transformer
from tests.helpers.trained_networks import MODULES, OPTIONS, trained
from tests.helpers.written_adapters import live_differences

ALPHAS = [0, 1, 3, 100_000]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_comfyui_makes_of_an_export_what_the_live_adapter_does(tmp_path, name, alpha):
    network = trained(name, alpha)
    network.save_weights(tmp_path / "a.safetensors", None, None)
    theirs = weight_differences(load_file(tmp_path / "a.safetensors"))
    mine = live_differences(network)
    assert theirs.keys() == mine.keys() and len(mine) == 40 + 24
    for key, difference in mine.items():
        assert rel_l2(theirs[key], difference) < 1e-6, key


@pytest.mark.parametrize(
    ("alpha", "stored"), [(0, 3.0), (None, 3.0), (1, 1.0), (100_000, 100_000.0)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_alpha_is_written_in_float32_as_it_was_trained(tmp_path, alpha, stored, dtype):
    network = trained("lora", alpha, scale=1e-3)
    network.save_weights(tmp_path / "a.safetensors", dtype, {})
    file = load_file(tmp_path / "a.safetensors")
    for key, tensor in file.items():
        assert tensor.dtype == (torch.float32 if key.endswith(".alpha") else dtype)
        if key.endswith(".alpha"):
            assert tensor.shape == () and tensor.item() == stored


@pytest.mark.parametrize("name", ["lokr full", "lokr sentinel"])
def test_full_matrices_are_written_with_alpha_one(tmp_path, name):
    network = trained(name, 100_000)
    network.save_weights(tmp_path / "a.safetensors", None, None)
    file = load_file(tmp_path / "a.safetensors")
    assert {key.rpartition(".")[2] for key in file} == {"lokr_w1", "lokr_w2", "alpha", "w_norm"}
    assert {t.item() for key, t in file.items() if key.endswith(".alpha")} == {1.0}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_export_reloads_bit_for_bit_and_is_written_the_same_again(tmp_path, name):
    first = trained(name, 2)
    first.save_weights(tmp_path / "a.safetensors", None, {"ss_x": "1"})
    for index, other in enumerate((fresh_like(name), from_file(name, tmp_path / "a.safetensors"))):
        other.load_weights(tmp_path / "a.safetensors")
        other.save_weights(tmp_path / f"{index}.safetensors", None, {"ss_x": "1"})
        again, file = (
            load_file(tmp_path / f"{index}.safetensors"),
            load_file(tmp_path / "a.safetensors"),
        )
        assert again.keys() == file.keys()
        assert all(torch.equal(again[key], file[key]) for key in file)


def fresh_like(name, **kwargs):
    kind, options = OPTIONS[name]
    options = {"network_dim": 3, **options, **kwargs}
    dim = options.pop("network_dim")
    return MODULES[kind].create_network(1.0, dim, 7, None, None, tiny_transformer(), **options)


def from_file(name, file, **kwargs):
    module = MODULES[OPTIONS[name][0]]
    return module.create_network_from_weights(
        1.0, str(file), None, None, tiny_transformer(), **kwargs
    )[0]


def rewritten(network, style):
    """The network's tensors with the keys of another format."""
    tensors = {}
    for placement in network.placements:
        for name, factor in placement.adapter.factors().items():
            tensors[encode(placement.path, name, style)] = factor.detach().clone()
        if not placement.is_norm:
            tensors[encode(placement.path, "alpha", style)] = torch.tensor(
                [placement.adapter.alpha]
            )
    return tensors


@pytest.mark.parametrize("style", KeyStyle)
@pytest.mark.parametrize("name", ["lora", "lokr low"])
def test_every_format_loads_and_the_alpha_is_applied(tmp_path, name, style):
    network = trained(name, 2)
    save_file(rewritten(network, style), tmp_path / "a.safetensors")
    for other in (fresh_like(name), from_file(name, tmp_path / "a.safetensors")):
        other.load_weights(tmp_path / "a.safetensors")
        by_path = {p.path: p.adapter for p in other.placements}
        for placement in network.placements:
            mine, theirs = changes(placement.adapter), changes(by_path[placement.path])
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def changes(adapter):
    """What the adapter adds to each parameter of its base."""
    return adapter.changes() if isinstance(adapter, NormDelta) else {"weight": adapter.delta()}


def test_a_file_without_alpha_has_scale_one_and_with_alpha_zero_scale_zero(tmp_path):
    network = trained("lora", 2)
    tensors = network.export_tensors(torch.float32)
    for value, scale in ((None, 1.0), (0.0, 0.0)):
        changed = {k: t for k, t in tensors.items() if not k.endswith(".alpha")}
        if value is not None:
            changed |= {k: torch.tensor(value) for k in tensors if k.endswith(".alpha")}
        save_file(changed, tmp_path / "a.safetensors")
        loaded = from_file("lora", tmp_path / "a.safetensors")
        assert {p.adapter.scale for p in loaded.placements if not p.is_norm} == {scale}


def test_a_forks_whole_norm_weights_become_differences(tmp_path):
    network = trained("lora", target_modules="none")
    tensors = {}
    for placement in network.placements:
        merged = merged_parameters(placement.base, placement.adapter)["weight"]
        tensors[f"__anima_norm__.{placement.path}.weight"] = merged
    save_file(tensors, tmp_path / "a.safetensors")
    loaded = from_file("lora", tmp_path / "a.safetensors")
    loaded_changes = {p.path: p.adapter.w_norm for p in loaded.placements}
    for placement in network.placements:
        torch.testing.assert_close(loaded_changes[placement.path], placement.adapter.w_norm)


def test_targets_that_a_file_does_not_hold_start_fresh_and_are_named_once(tmp_path, caplog):
    small = trained("lora", target_modules="llm_adapter.blocks.*", train_norm=False)
    small.save_weights(tmp_path / "a.safetensors", None, None)
    caplog.set_level("INFO")
    network = fresh_like("lora")
    network.load_weights(tmp_path / "a.safetensors")
    lines = [line for line in caplog.messages if "start fresh" in line]
    expected = (
        "20 Linears and 24 norms are not in the file and start fresh: blocks.0.self_attn.q_proj"
    )
    assert len(lines) == 1 and expected in lines[0] and "and 39 more" in lines[0]


def test_training_from_a_files_ranks_adds_norms_unless_they_are_off(tmp_path):
    trained("lora", train_norm=False).save_weights(tmp_path / "plain.safetensors", None, None)
    trained("lora").save_weights(tmp_path / "norms.safetensors", None, None)

    def norms(file, **kwargs):
        network = from_file("lora", tmp_path / file, **kwargs)
        found = [placement for placement in network.placements if placement.is_norm]
        return len(found), sum(not placement.frozen for placement in found)

    assert norms("plain.safetensors") == (24, 24)
    assert norms("plain.safetensors", train_norm=False) == (0, 0)
    assert norms("plain.safetensors", for_inference=True) == (0, 0)
    assert norms("plain.safetensors", train_llm_adapter=False) == (9, 9)
    assert norms("norms.safetensors", train_norm=False) == (24, 0)


def test_ranks_come_from_the_file(tmp_path):
    network = trained("lora", network_reg_dims=r".*mlp.*=5")
    network.save_weights(tmp_path / "a.safetensors", None, None)
    ranks = {
        p.path: p.adapter.rank
        for p in from_file("lora", tmp_path / "a.safetensors").placements
        if not p.is_norm
    }
    assert from_file("lora", tmp_path / "a.safetensors").dim == 3
    assert set(ranks.values()) == {3, 5} and ranks["blocks.0.mlp.layer1"] == 5


@pytest.mark.parametrize(("module", "other"), [("lora", "lokr low"), ("lokr", "lora")])
def test_a_file_of_the_other_kind_names_the_module_to_use(tmp_path, module, other):
    trained(other).save_weights(tmp_path / "a.safetensors", None, None)
    advice = f"Use --network_module networks.{OPTIONS[other][0]}_anima"
    with pytest.raises(AdapterFileError, match=advice):
        MODULES[module].create_network_from_weights(
            1.0, str(tmp_path / "a.safetensors"), None, None, tiny_transformer()
        )
    with pytest.raises(AdapterFileError, match=advice):
        fresh_like("lora" if module == "lora" else "lokr low").load_weights(
            tmp_path / "a.safetensors"
        )


def test_all_keys_that_do_not_fit_are_named_at_once_and_nothing_is_loaded(tmp_path):
    network = trained("lora")
    tensors = network.export_tensors(torch.float32)
    key = "diffusion_model.blocks.0.mlp.layer1.lora_down.weight"
    tensors[key] = tensors[key][:2].clone()
    del tensors["diffusion_model.blocks.1.mlp.layer1.lora_up.weight"]
    save_file(tensors, tmp_path / "a.safetensors")
    fresh = fresh_like("lora", train_llm_adapter="off")
    with pytest.raises(AdapterFileError) as caught:
        fresh.load_weights(tmp_path / "a.safetensors")
    text = str(caught.value)
    assert f"{key}  has shape (2, 96), expected (3, 96)" in text
    assert "comes without lora_up" in text
    assert "llm_adapter.norm.w_norm" in text and "this run does not adapt this module" in text
    assert not any(p.adapter.lora_up.any() for p in fresh.placements if not p.is_norm)


def test_factors_that_do_not_fit_the_model_are_refused_when_ranks_come_from_the_file(tmp_path):
    tensors = {
        "diffusion_model.blocks.0.mlp.layer1.lora_down.weight": torch.zeros(2, 7),
        "diffusion_model.blocks.0.mlp.layer1.lora_up.weight": torch.zeros(9, 2),
        "diffusion_model.blocks.0.self_attn.q_norm.lora_up.weight": torch.zeros(9, 2),
        "diffusion_model.blocks.0.mlp.layer2.w_norm": torch.zeros(9),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(AdapterFileError) as caught:
        from_file("lora", tmp_path / "a.safetensors")
    assert "q_norm" in str(caught.value) and "layer2" in str(caught.value)
    save_file(dict(list(tensors.items())[:2]), tmp_path / "b.safetensors")
    with pytest.raises(AdapterFileError, match=r"has shape \(2, 7\), expected \(2, 96\)"):
        from_file("lora", tmp_path / "b.safetensors")


def test_a_lokr_whose_product_is_not_the_layers_shape_is_refused(tmp_path):
    path = "diffusion_model.blocks.0.mlp.layer1"
    tensors = {f"{path}.lokr_w1": torch.ones(4, 4), f"{path}.lokr_w2": torch.ones(4, 4)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(AdapterFileError, match=r"\(16, 16\)"):
        from_file("lokr low", tmp_path / "a.safetensors")


def test_metadata_is_kept_as_given_beside_the_hashes(tmp_path):
    metadata = {"ss_network_dim": "3", "modelspec.architecture": "Anima"}
    trained("lora").save_weights(tmp_path / "a.safetensors", torch.bfloat16, metadata)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        found = file.metadata()
    assert found.items() >= metadata.items()
    assert set(found) == {*metadata, "sshs_model_hash", "sshs_legacy_hash"}
    assert metadata.keys() == {"ss_network_dim", "modelspec.architecture"}


@pytest.mark.parametrize("name", ["lora", "lokr full"])
def test_norms_can_be_left_out_of_the_file(tmp_path, name):
    trained(name, norm_export="omit_trained").save_weights(tmp_path / "a.safetensors", None, None)
    assert not any(
        "norm." in key or "_norm" in key for key in load_file(tmp_path / "a.safetensors")
    )


def test_a_factor_that_is_not_finite_is_not_written(tmp_path):
    network = trained("lora")
    with torch.no_grad():
        network.placements[0].adapter.lora_up[0, 0] = torch.inf
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with pytest.raises(AdapterFileError, match=r"q_proj.lora_up.weight.*NaN or infinity"):
            network.save_weights(tmp_path / "b.safetensors", dtype, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["lora", "lokr full"])
@pytest.mark.parametrize(
    "change, lost",
    [
        (lambda factor: factor.view(-1)[0].fill_(70_000.0), {torch.float16}),  # beyond 65504
        (lambda factor: factor.mul_(1e-8), {torch.float16}),  # below 6e-8: all zeros
        (lambda factor: factor.view(-1)[0].fill_(3.4e38), {torch.float16, torch.bfloat16}),
        (lambda factor: factor.view(-1)[:2].mul_(1e-9), set()),  # some zeros are rounding
        (lambda factor: factor.zero_(), set()),
    ],
)
def test_what_a_precision_cannot_hold_is_written_in_float32(tmp_path, caplog, name, change, lost):
    network = trained(name)
    adapter = network.placements[0].adapter
    with torch.no_grad():
        change(list(adapter.factors().values())[-1])
    exact = network.export_tensors(torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        caplog.clear()
        network.save_weights(tmp_path / "a.safetensors", dtype, None)
        written = load_file(tmp_path / "a.safetensors")
        used = torch.float32 if dtype in lost else dtype
        assert {t.dtype for key, t in written.items() if not key.endswith("alpha")} == {used}
        assert ("so the file is written in float32" in caplog.text) is (dtype in lost)
        for key, tensor in written.items():
            torch.testing.assert_close(tensor.float(), exact[key].to(tensor.dtype).float())


def test_the_share_of_norm_differences_that_survives_bf16_weights_is_told(tmp_path, caplog):
    caplog.set_level("INFO")
    base = nn.LayerNorm(4).requires_grad_(False)
    network = norm_network(base)
    adapter = network.placements[0].adapter
    with torch.no_grad():
        adapter.w_norm.copy_(torch.tensor([0.0, 1e-4, 0.1, -0.1]))
        adapter.b_norm.copy_(torch.tensor([1e-4, 0.0, 0.0, 0.0]))
    network.save_weights(tmp_path / "a.safetensors", None, None)
    assert "75.0% of 4 changed entries survive" in caplog.text


def norm_network(base):
    placement = Placement("norm", base, NormDelta(4, bias=True))
    return AdapterNetwork([placement], NetworkSettings("LoRA"))


def test_a_norms_bias_is_exported_as_b_norm_and_reloads(tmp_path):
    model = nn.Sequential()
    model.add_module("norm", nn.LayerNorm(4))
    network = norm_network(model.norm)
    network.apply_to(None, model)
    with torch.no_grad():
        for parameter in network.get_trainable_params():
            parameter.copy_(torch.arange(4.0))
    network.save_weights(tmp_path / "a.safetensors", None, None)
    theirs = weight_differences(load_file(tmp_path / "a.safetensors"))
    assert theirs["norm.bias"].tolist() == theirs["norm.weight"].tolist() == [0, 1, 2, 3]
    other = norm_network(nn.LayerNorm(4))
    other.load_weights(tmp_path / "a.safetensors")
    assert torch.equal(other.placements[0].adapter.b_norm, torch.arange(4.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_adds_in_float32_at_the_given_strength(tmp_path, dtype):
    trained("lokr low").save_weights(tmp_path / "a.safetensors", None, None)
    model, before = tiny_transformer(dtype), tiny_transformer(dtype).state_dict()
    network, tensors = MODULES["lokr"].create_network_from_weights(
        0.5, str(tmp_path / "a.safetensors"), None, None, model, for_inference=True
    )
    network.merge_to(None, model, tensors)
    differences = weight_differences(load_file(tmp_path / "a.safetensors"))
    for name, value in model.state_dict().items():
        expected = before[name].float()
        if name in differences:
            expected = (expected + 0.5 * differences[name]).float()
        torch.testing.assert_close(value, expected.to(dtype))


def test_a_merge_that_is_not_finite_changes_nothing():
    network = trained("lora")
    tensors = network.export_tensors(torch.float32)
    tensors["diffusion_model.llm_adapter.norm.w_norm"][0] = 1e38
    model, before = tiny_transformer(), tiny_transformer().state_dict()
    merging, _ = MODULES["lora"].create_network_from_weights(
        1e3, None, None, None, model, weights_sd=tensors
    )
    with pytest.raises(AdapterFileError, match=r"llm_adapter.norm.weight.*NaN"):
        merging.merge_to(None, model, tensors)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
