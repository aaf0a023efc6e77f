"""What trains: the exact set of names, what an optimizer step moves, groups and their rates."""

import copy

import pytest
import torch
from torch import nn

from library.errors import ConfigError
from networks import lokr_anima, lora_anima
from networks.kinds.linear import AdaptedLinear
from networks.kinds.norm import AdaptedNorm
from tests.helpers.tiny import loss_of, tiny_transformer

MODULES = {"lora": lora_anima, "lokr": lokr_anima}
OPTIONS = {
    "lora": ("lora", {}),
    "lora dropouts": ("lora", {"rank_dropout": 0.2, "module_dropout": 0.1, "neuron_dropout": 0.1}),
    "lokr full": ("lokr", {"lokr_full_matrix": True}),
    "lokr low": ("lokr", {"lokr_factor": 4}),
    "lokr both": ("lokr", {"lokr_decompose_both": True, "lokr_factor": -1, "network_dim": 1}),
    "lokr factor 1": ("lokr", {"factor": 1, "lokr_full_matrix": True}),
    "norms only": ("lora", {"target_modules": "none"}),
}


def attached(name="lora", dtype=torch.float32, **kwargs):
    torch.manual_seed(3)
    kind, options = OPTIONS[name]
    options = {"network_dim": 2, "network_alpha": 1, **options, **kwargs}
    model = tiny_transformer(dtype)
    network = MODULES[kind].create_network(
        1.0, options.pop("network_dim"), options.pop("network_alpha"), None, None, model, **options
    )
    network.apply_to(None, model)
    return model, network


def gradients(model, seed=0):
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    loss_of(model).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", OPTIONS)
def test_exactly_the_adapters_are_trainable(name):
    model, network = attached(name)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {n for n, _ in model.named_parameters() if ".adapter." in n}
    linears = [m for m in model.modules() if isinstance(m, AdaptedLinear)]
    norms = [m for m in model.modules() if isinstance(m, AdaptedNorm)]
    assert len(linears) == (0 if name == "norms only" else 2 * 10 + 2 * 10)
    assert len(norms) == 2 * 4 + 1 + 2 * 7 + 1
    assert sum(p.numel() for p in network.get_trainable_params()) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_steps_move_every_trainable_tensor_and_nothing_else(name, dtype):
    """Two, since a factor opposite a zero one has no gradient in the first; dropout needs more."""
    model, network = attached(name, dtype)
    before = copy.deepcopy(model.state_dict())
    network.on_epoch_start(None, model)
    groups, _ = network.prepare_optimizer_params(None, None, 1e-3)
    optimizer = torch.optim.AdamW(groups, weight_decay=0)
    network.check_trainables()
    for step in range(12 if "dropouts" in name else 2):
        optimizer.zero_grad()
        torch.manual_seed(step)
        loss_of(model).backward()
        optimizer.step()
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}


def test_base_keys_are_those_of_the_model_without_adapters():
    model, _ = attached()
    base = {name for name in model.state_dict() if ".adapter." not in name}
    assert base == set(tiny_transformer().state_dict())


@pytest.mark.parametrize("name", ["lora dropouts", "lokr low"])
def test_gradient_checkpointing_does_not_change_gradients(name):
    model, network = attached(name)
    with torch.no_grad():
        for parameter in network.get_trainable_params():
            parameter.add_(0.05 * torch.randn_like(parameter))
    network.on_epoch_start(None, model)
    plain = gradients(model)
    model.enable_gradient_checkpointing()
    recomputed = gradients(model)
    assert plain.keys() == recomputed.keys()
    for tensor_name, gradient in plain.items():
        torch.testing.assert_close(recomputed[tensor_name], gradient)


def test_freezing_the_base_again_does_not_freeze_the_adapters_unnoticed():
    model, network = attached()
    model.requires_grad_(False)
    with pytest.raises(AssertionError, match="differ"):
        network.check_trainables()
    network.prepare_grad_etc(None, model)
    network.check_trainables()


def test_a_base_weight_that_trains_is_noticed():
    model, network = attached()
    model.final_layer.linear.weight.requires_grad_(True)
    with pytest.raises(AssertionError, match="final_layer"):
        network.check_trainables()


def test_casting_the_model_does_not_cast_the_factors_unnoticed(caplog):
    model, network = attached()
    model.to(torch.bfloat16)
    with pytest.raises(AssertionError, match="another dtype"):
        network.check_trainables()
    network.cast_trainables(torch.bfloat16)
    network.check_trainables()
    assert "bfloat16" in caplog.text


def test_a_copy_of_the_model_is_independent_of_the_network():
    model, network = attached()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in network.get_trainable_params():
            parameter.add_(0.1)
    assert loss_of(copied).item() == pytest.approx(loss_of(tiny_transformer()).item(), rel=1e-5)
    assert loss_of(model).item() != pytest.approx(loss_of(copied).item(), rel=1e-3)


def test_removal_gives_the_very_modules_back():
    model = tiny_transformer()
    before = dict(model.named_modules())
    network = lora_anima.create_network(1.0, 2, 1, None, None, model)
    network.apply_to(None, model)
    network.remove()
    assert all(before[path] is module for path, module in model.named_modules())


def test_merged_adds_the_adapters_and_restores_every_bit():
    model, network = attached("lokr low", torch.bfloat16)
    with torch.no_grad():
        for parameter in network.get_trainable_params():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state, live = copy.deepcopy(model.state_dict()), loss_of(model).item()
    with pytest.raises(RuntimeError, match="inside"), network.merged():
        assert loss_of(model).item() == pytest.approx(live, rel=0.1)
        assert not torch.equal(
            model.blocks[0].self_attn.q_proj.weight, state["blocks.0.self_attn.q_proj.weight"]
        )
        raise RuntimeError("inside")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert loss_of(model).item() == live


def rates(network, unet_lr=None, learning_rate=1e-4):
    groups, names = network.prepare_optimizer_params(None, unet_lr, learning_rate)
    return {name: group["lr"] for name, group in zip(names, groups)}


def test_without_component_rates_there_is_one_group():
    _, network = attached()
    assert rates(network) == {"unet": 1e-4}
    assert rates(network, unet_lr=5e-5) == {"unet": 5e-5}
    groups, _ = network.prepare_optimizer_params(None, None, None)
    assert [list(group) for group in groups] == [["params"]]


def test_groups_hold_every_trainable_tensor_once():
    _, network = attached(llm_adapter_lr=1e-5, mlp_lr=2e-5, loraplus_lr_ratio=4)
    groups, _ = network.prepare_optimizer_params(None, None, 1e-4)
    found = [parameter for group in groups for parameter in group["params"]]
    assert len(found) == len(set(found)) == len(network.get_trainable_params())


def test_component_rates_make_groups_and_a_regex_wins_over_its_component():
    _, network = attached(
        llm_adapter_lr=1e-5, self_attn_lr="2e-5", network_reg_lrs=r"blocks\.0\.self_attn\..*=3e-5"
    )
    assert rates(network) == {
        "unet": 1e-4, "unet reg_lr 3e-05": 3e-5, "unet self_attn": 2e-5, "unet llm_adapter": 1e-5,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "factor"), [("lora", "lora_up"), ("lokr full", "lokr_w2")])
def test_loraplus_raises_the_rate_of_the_factor_that_starts_at_zero(name, factor):
    model, network = attached(name, loraplus_lr_ratio=2, loraplus_unet_lr_ratio=16)
    groups, names = network.prepare_optimizer_params(None, None, 1e-4)
    plus = groups[names.index("unet plus")]
    assert plus["lr"] == pytest.approx(16e-4)
    expected = {id(p) for n, p in model.named_parameters() if n.endswith(f".adapter.{factor}")}
    assert {id(parameter) for parameter in plus["params"]} == expected


def test_a_component_rate_of_zero_freezes_its_adapters_and_leaves_them_out_of_the_file():
    model, network = attached(llm_adapter_lr=0, mod_lr=0)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable and not any(n.startswith("llm_adapter") for n in trainable)
    network.prepare_grad_etc(None, model)
    network.check_trainables()
    assert not any("llm_adapter" in key for key in network.export_tensors(torch.float32))


def test_a_rate_for_a_component_without_adapters_is_an_error():
    with pytest.raises(ConfigError) as caught:
        attached(mod_lr=1e-4, llm_adapter_lr=1e-4, train_llm_adapter=False)
    assert "mod_lr=0.0001" in str(caught.value) and "llm_adapter_lr" in str(caught.value)


def test_modulation_layers_train_when_included():
    _, network = attached(include_patterns=r".*adaln_modulation.*", mod_lr=1e-5)
    assert rates(network)["unet mod"] == 1e-5


def test_nothing_to_train_is_an_error():
    with pytest.raises(ConfigError, match="nothing to train"):
        attached(target_modules="none", train_norm=False)


def test_a_linear_is_not_adapted_twice():
    model, _ = attached()
    assert isinstance(model.blocks[0].mlp.layer1, nn.Linear)
    with pytest.raises(AssertionError, match="already has an adapter"):
        lora_anima.create_network(1.0, 2, 1, None, None, model).apply_to(None, model)
