"""Weights of 8 bits: how near they are, the gradients of the dense weight, what is kept of them."""

import pytest
import torch
from torch import nn

from library.memory.quantised import FORMS, Quantised, QuantisedLinear
from tests.helpers.memory_modes import assert_same_bits, gradients, kept_by_forward, small_dit
from tests.helpers.stored_weights import CPU, storing

DENSE = [form for form in FORMS if form != "int8_rotated"]  # whose products are those of floats
MODES = [None, {"mode": "cheap"}, {"mode": "block"}, {"cpu_offload": True}]
OF_A_VALUE = {"fp8": 2**-4, "int8": 0.5 / 127}  # of the value itself, of its row's largest


@pytest.mark.parametrize("form", DENSE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_value_is_near_and_a_row_has_its_own_scale(form, dtype):
    torch.manual_seed(0)
    weight = torch.randn(8, 64) * torch.logspace(-3, 3, 8)[:, None]
    weight[5] = 0
    stored = Quantised.of(weight.to(dtype), form)
    assert stored.codes.dtype == FORMS[form] and stored.scale.shape == (8, 1)
    wide, found = weight.to(dtype).float(), stored.dense(torch.float32)
    largest = wide.abs().amax(1, keepdim=True)
    of = wide.abs() if form == "fp8" else largest
    smallest_step = largest / 448 * 2**-10  # where fp8 has no more digits
    bound = of * OF_A_VALUE[form] + (smallest_step if form == "fp8" else 0)
    assert ((found - wide).abs() <= bound * (1 + 1e-5)).all()
    assert torch.allclose(found.abs().amax(1, keepdim=True), largest, rtol=1e-6)
    assert found[5].eq(0).all()
    assert torch.equal(stored.dense(dtype), found.to(dtype))


@pytest.mark.parametrize("form", DENSE)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["lora dropouts", "lokr full", "lokr low", "norms"])
def test_gradients_are_those_of_the_dense_weight(kind, mode, form):
    expected = gradients(storing(kind, form, dense=True)[0])
    assert_same_bits(gradients(storing(kind, form, mode=mode)[0]), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_swapped_blocks_give_the_same_bits(mode, dtype):
    expected = gradients(storing("lora dropouts", dtype=dtype, dense=True)[0])
    model, _ = storing("lora dropouts", dtype=dtype, mode=mode, swapped=2)
    assert {weight.dtype for group in model.swap.groups for weight in group} >= {FORMS["fp8"]}
    assert_same_bits(gradients(model), expected)
    assert_same_bits(gradients(model), expected)


@pytest.mark.parametrize("llm_adapter", [False, True])
def test_blocks_and_llm_adapter_are_stored_and_what_modulates_in_int8(llm_adapter):
    model = small_dit().requires_grad_(False)
    before = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    model.quantise("fp8", CPU, llm_adapter=llm_adapter)
    linears = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    parts = ("blocks.", "llm_adapter.") if llm_adapter else ("blocks.",)
    expected = {n for n in linears if n.startswith(parts)}
    assert {n for n, m in model.named_modules() if isinstance(m, QuantisedLinear)} == expected
    after = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    weights = {
        f"{n}.weight": torch.int8 if "modulation" in n else torch.float8_e4m3fn for n in expected
    }
    scales = {f"{name}.weight_scale": torch.float32 for name in expected}
    assert after == before | weights | scales


def test_nothing_of_the_dense_weight_is_kept():
    plain, _ = storing("lora linears", dense=True)
    stored, _ = storing("lora linears")
    for model in (plain, stored):
        model.modulations.settle()
    assert kept_by_forward(stored, 8) == kept_by_forward(plain, 8)


def test_removing_adapters_gives_the_stored_linear_back():
    model, network = storing("lora")
    network.set_multiplier(0)
    layer = model.blocks[0].mlp.layer1
    x = torch.randn(3, layer.in_features)
    expected = layer(x)
    network.remove()
    layer = model.blocks[0].mlp.layer1
    assert isinstance(layer, QuantisedLinear) and layer.weight.dtype == FORMS["fp8"]
    assert torch.equal(layer(x), expected)


def test_no_adapter_is_merged_into_a_stored_weight():
    """Its codes alone are other numbers."""
    _, network = storing("lora")
    with pytest.raises(AssertionError, match="cannot be merged"), network.merged():
        pass
