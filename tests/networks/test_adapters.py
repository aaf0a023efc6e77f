"""The holders of factors and the layers that adopt a base module."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from networks.kinds.adapter import Dropout, keep_mask, merged_parameters
from networks.kinds.linear import AdaptedLinear
from networks.kinds.lokr import LoKr, lokr_shape
from networks.kinds.lora import LoRA
from networks.kinds.norm import AdaptedNorm, NormDelta

NO_DROPOUT = Dropout()


def fill(adapter, seed=0):
    """Every factor random, so that nothing is hidden behind a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in adapter.factors().values():
            factor.copy_(0.3 * torch.randn(factor.shape, generator=generator))
    return adapter


def lora(dropout=NO_DROPOUT, rank=3, alpha=2.0):
    return fill(LoRA(12, 20, rank, alpha, dropout))


def lokr(dropout=NO_DROPOUT, rank=2, alpha=1.0, **options):
    return fill(LoKr(lokr_shape((20, 12), rank, 4, **options), alpha, dropout))


KINDS = {
    "lora": lora,
    "lokr full": lambda d=NO_DROPOUT: lokr(d, full_matrix=True),
    "lokr low": lokr,
    "lokr both": lambda d=NO_DROPOUT: lokr(d, rank=1, decompose_both=True),
    "lokr factor 1": lambda d=NO_DROPOUT: fill(LoKr(lokr_shape((20, 12), 50, 1), 1.0, d)),
}
NORMS = {
    "rms": lambda: nn.RMSNorm(12, eps=1e-6),
    "layer": lambda: nn.LayerNorm(12, eps=1e-5),
    "layer without bias": lambda: nn.LayerNorm(12, bias=False),
}


def adopted(kind, dropout=NO_DROPOUT, dtype=torch.float32, bias=True):
    torch.manual_seed(1)
    base = nn.Linear(12, 20, bias=bias, dtype=dtype).requires_grad_(False)
    return AdaptedLinear.adopt(base, KINDS[kind](dropout)), base


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 12), (2, 5, 12), (2, 1, 3, 4, 12)])
def test_an_adapted_linear_equals_the_linear_with_its_merged_weight(kind, shape):
    layer, base = adopted(kind)
    layer.adapter.multiplier = 0.7
    x = torch.randn(shape)
    merged = merged_parameters(base, layer.adapter)["weight"]
    torch.testing.assert_close(layer(x), F.linear(x, merged, base.bias))


@pytest.mark.parametrize("kind", KINDS)
def test_multiplier_zero_gives_the_base_output_exactly(kind):
    layer, base = adopted(kind)
    layer.adapter.multiplier = 0.0
    x = torch.randn(2, 12)
    assert torch.equal(layer(x), base(x))


@pytest.mark.parametrize("kind", KINDS)
def test_adopting_keeps_the_parameter_objects_and_keys_and_release_gives_the_original(kind):
    layer, base = adopted(kind)
    assert layer.weight is base.weight and layer.bias is base.bias
    assert set(layer.state_dict()) == {
        "weight",
        "bias",
        *(f"adapter.{n}" for n in layer.adapter.factors()),
    }
    assert layer.release() is base
    assert type(base) is nn.Linear


def test_a_new_adapter_changes_nothing_and_only_its_last_factor_is_zero():
    shapes = [
        lokr_shape((20, 12), 2, 4),
        lokr_shape((20, 12), 9, 4),
        lokr_shape((20, 12), 1, 4, decompose_both=True),
    ]
    for adapter in [LoRA(12, 20, 3, 1.0), *(LoKr(shape, 1.0) for shape in shapes)]:
        assert not adapter.delta().any()
        zeros = [name for name, factor in adapter.factors().items() if not factor.any()]
        assert zeros == [adapter.zero_factor]
        assert all(factor.dtype == torch.float32 for factor in adapter.factors().values())


@pytest.mark.parametrize("kind", KINDS)
def test_factors_stay_float32_over_a_bf16_base_and_get_float32_gradients(kind):
    layer, _ = adopted(kind, dtype=torch.bfloat16)
    x = torch.randn(2, 5, 12)
    out = layer(x.bfloat16())
    assert out.dtype == torch.bfloat16
    exact, _ = adopted(kind)
    exact.weight.copy_(layer.weight), exact.bias.copy_(layer.bias)
    torch.testing.assert_close(out.float(), exact(x.bfloat16().float()), rtol=0.05, atol=0.05)
    out.float().square().sum().backward()
    assert all(f.dtype == f.grad.dtype == torch.float32 for f in layer.adapter.factors().values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_the_precision_only(kind, dtype):
    layer, _ = adopted(kind, dtype=dtype)
    x = torch.randn(2, 5, 12).to(dtype)
    expected = gradients_of(layer, lambda: layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        found = gradients_of(layer, lambda: layer(x))
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, expected[name], rtol=0.1, atol=0.1)


def gradients_of(module, run):
    module.zero_grad()
    run().float().square().mean().backward()
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_recomputes_the_same_dropout_masks(kind):
    layer, _ = adopted(kind, Dropout(neuron=0.3, rank=0.3, module=0.3))
    layer.train()
    x = torch.randn(4, 5, 12)
    for seed in range(4):
        torch.manual_seed(seed)
        plain = gradients_of(layer, lambda: layer(x))
        torch.manual_seed(seed)
        recomputed = gradients_of(layer, lambda: checkpoint(layer, x, use_reentrant=False))
        assert plain.keys() == recomputed.keys()
        assert all(torch.equal(plain[n], recomputed[n]) for n in plain)


def test_a_deep_copy_is_independent():
    layer, base = adopted("lora")
    copied = copy.deepcopy(layer)
    with torch.no_grad():
        copied.adapter.lora_up.zero_()
        copied.weight.zero_()
    assert layer.adapter.lora_up.any() and layer.weight.any()
    assert copied.release().weight is copied.weight is not base.weight


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_off_outside_training(kind):
    layer, _ = adopted(kind, Dropout(0.5, 0.5, 0.5))
    plain, _ = adopted(kind)
    x = torch.randn(3, 12)
    layer.eval()
    assert torch.equal(layer(x), plain(x))


@pytest.mark.parametrize("kind", KINDS)
def test_module_dropout_gives_all_or_nothing_and_always_a_gradient(kind):
    layer, base = adopted(kind, Dropout(module=0.5))
    layer.train()
    x, full = torch.randn(3, 12), copy.deepcopy(layer).eval()
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        out = layer(x)
        seen.add("nothing" if torch.equal(out, base(x)) else "all")
        if not torch.equal(out, base(x)):
            torch.testing.assert_close(out, full(x))
        layer.zero_grad()
        out.sum().backward()
        assert all(factor.grad is not None for factor in layer.adapter.factors().values())
    assert seen == {"all", "nothing"}


@pytest.mark.parametrize("kind", ["lora", "lokr low", "lokr both"])
def test_rank_dropout_keeps_the_mean(kind):
    adapter = KINDS[kind](Dropout(rank=0.4)).train()
    x = torch.randn(1, 12)
    with torch.no_grad():
        mean = torch.stack([adapter.added(x) for _ in range(6000)]).mean(0)
        expected = adapter.eval().added(x)
    assert (mean - expected).norm() / expected.norm() < 0.1


def test_rank_dropout_of_lora_draws_one_mask_of_ranks_per_sample():
    adapter = lora(Dropout(rank=0.5), rank=3).train()
    x = torch.randn(1, 1, 12).expand(6, 4, 12)
    out = adapter.added(x)
    assert torch.equal(out[:, :1].expand_as(out), out)  # the same for all tokens of a sample
    assert len(torch.unique(out[:, 0], dim=0)) > 1


def test_rank_dropout_has_no_effect_on_full_matrices():
    adapter = KINDS["lokr full"](Dropout(rank=0.9)).train()
    x = torch.randn(3, 12)
    assert torch.equal(adapter.added(x), adapter.eval().added(x))


def test_a_mask_holds_zeros_and_the_inverse_of_what_is_kept():
    torch.manual_seed(0)
    mask = keep_mask((10_000,), 0.25, torch.zeros(1), rescale=True)
    assert mask.unique().tolist() == pytest.approx([0, 4 / 3])
    assert mask.mean().item() == pytest.approx(1, abs=0.05)


def adopted_norm(name, dtype=torch.float32):
    torch.manual_seed(2)
    base = NORMS[name]().to(dtype).requires_grad_(False)
    base.weight.copy_(1 + 0.1 * torch.randn(12))
    adapter = NormDelta(12, bias=getattr(base, "bias", None) is not None)
    return AdaptedNorm.adopt(base, adapter), base


@pytest.mark.parametrize("name", NORMS)
def test_an_adapted_norm_starts_as_the_norm_and_equals_the_norm_with_merged_weights(name):
    layer, base = adopted_norm(name)
    x = torch.randn(4, 12)
    assert torch.equal(layer(x), base(x))
    fill(layer.adapter)
    layer.adapter.multiplier = 0.5
    expected = NORMS[name]()
    expected.load_state_dict(merged_parameters(base, layer.adapter))
    torch.testing.assert_close(layer(x), expected(x))
    layer.adapter.multiplier = 0.0
    assert torch.equal(layer(x), base(x))
    assert layer.release() is base


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_norms_weight_is_the_sum_in_float32(dtype):
    layer, base = adopted_norm("layer", dtype)
    torch.manual_seed(0)
    with torch.no_grad():
        layer.adapter.w_norm.normal_()
    assert torch.equal(layer.adapter.weight(base.weight), base.weight.float() + layer.adapter.w_norm)


def test_a_norm_difference_too_small_for_bf16_still_acts_and_moves():
    layer, base = adopted_norm("layer", torch.bfloat16)
    before = base.weight.clone()
    optimizer = torch.optim.AdamW(layer.adapter.parameters(), lr=1e-4, weight_decay=0)
    for _ in range(300):
        optimizer.zero_grad()
        layer(torch.ones(1, 12).bfloat16() * torch.arange(12)).float().sum().backward()
        optimizer.step()
    assert layer.adapter.w_norm.abs().min() > 0.01
    assert layer.adapter.b_norm.abs().min() > 0.01
    assert torch.equal(base.weight, before)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_keeps_the_input_dtype_inside_and_outside_autocast(name, dtype):
    layer, base = adopted_norm(name, dtype)
    x = torch.randn(4, 12).to(dtype)
    torch.testing.assert_close(layer(x), base(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == dtype
        torch.testing.assert_close(layer(x), base(x))
