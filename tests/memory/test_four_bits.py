"""Weights of 4 bits: bitsandbytes' own numbers, the gradients of the dense weight, what is kept of them."""

import pytest
import torch
from torch._subclasses import CrossRefFakeMode

from library.memory.four_bits_trial import why_not, why_too_old
from library.memory.quantised import BLOCK, FourBits
from networks import loha_anima, lokr_anima, lora_anima, oft_anima
from tests.helpers.cards import CARD
from tests.helpers.memory_modes import assert_same_bits, gradients, kept_by_forward, small_dit
from tests.helpers.stored_weights import CPU, assert_compiled_is_the_same, storing

functional = pytest.importorskip("bitsandbytes").functional

LINEARS = {"train_norm": "false"}
KINDS = {  # and an adapter that begins from the weight itself
    "lora": "lora dropouts",
    "lokr": "lokr low",
    "loha": (loha_anima, {}),
    "oft": (oft_anima, LINEARS),
    "dora": (lora_anima, {**LINEARS, "dora_wd": "true"}),
    "pissa": (lora_anima, {**LINEARS, "pissa": "true"}),
}
MODES = ({"mode": "cheap"}, {"mode": "block"}, {"cpu_offload": True})


@pytest.mark.parametrize("shape", [(8, 64), (96, 96), (7, 48), (5, 10), (24, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_values_are_those_of_bitsandbytes(shape, dtype):
    """Of a weight in one row, as rows that do not fill blocks are too much for its kernel for CPUs."""
    torch.manual_seed(0)
    weight = torch.randn(shape)
    stored = FourBits.of(weight, "nf4")
    codes, state = functional.quantize_4bit(weight.flatten(), blocksize=BLOCK, quant_type="nf4")
    state.dtype = dtype
    expected = functional.dequantize_4bit(codes, state).view(shape)
    assert torch.equal(stored.dense(dtype), expected)
    assert (stored.codes.shape, stored.codes.dtype) == ((shape[0], shape[1] // 2), torch.uint8)
    assert stored.scale.shape == (-(-weight.numel() // BLOCK),)
    blocks = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    assert torch.equal(stored.scale, blocks.abs().amax(1))
    apart = (stored.dense(torch.float32) - weight).norm() / weight.norm()
    assert apart < 0.11


@pytest.mark.gpu
def test_on_a_card_weights_are_stored_and_made_again_as_on_a_cpu():
    assert why_not(CARD) is None
    weight = torch.randn(96, 192, generator=torch.Generator().manual_seed(0))
    here, there = FourBits.of(weight, "nf4"), FourBits.of(weight.to(CARD), "nf4")
    assert torch.equal(there.scale.cpu(), here.scale)
    assert (there.codes.cpu() != here.codes).float().mean() < 1e-3  # of values amid two
    moved = FourBits(*(each.to(CARD) for each in here))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        torch.testing.assert_close(moved.dense(dtype).cpu(), here.dense(dtype))


def test_a_weight_of_zeros_stays_one():
    assert FourBits.of(torch.zeros(4, 64), "nf4").dense(torch.bfloat16).eq(0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_dense_weight(kind):
    expected = gradients(storing(KINDS[kind], "nf4", dense=True)[0])
    assert_same_bits(gradients(storing(KINDS[kind], "nf4")[0]), expected)


def test_memory_modes_give_the_same_bits(dtype=torch.bfloat16):
    expected = gradients(storing("lora dropouts", "nf4", dtype, dense=True)[0])
    for mode in MODES:
        assert_same_bits(gradients(storing("lora dropouts", "nf4", dtype, mode)[0]), expected)
    model, _ = storing("lora dropouts", "nf4", dtype, swapped=2)
    assert torch.uint8 in {weight.dtype for group in model.swap.groups for weight in group}
    assert_same_bits(gradients(model), expected)


def test_nothing_of_the_dense_weight_is_kept_and_less_than_a_quarter_is_stored():
    plain, stored = (storing("lora linears", "nf4", dense=dense)[0] for dense in (True, False))
    for model in (plain, stored):
        model.modulations.settle()
    assert kept_by_forward(stored, 8) == kept_by_forward(plain, 8)
    layer = stored.blocks[0].mlp.layer1
    bits = 8 * (layer.weight.nbytes + layer.weight_scale.nbytes)
    assert bits == 4.5 * layer.in_features * layer.out_features


@pytest.mark.parametrize("kind, module", [("lora", lora_anima), ("lokr", lokr_anima), ("loha", loha_anima)])
def test_a_file_goes_on_a_stored_model(tmp_path, kind, module):
    """Its shapes are compared with the Linear's, not with those of the codes."""
    _, network = storing(KINDS[kind], "nf4")
    file = tmp_path / "adapter.safetensors"
    network.save_weights(file, torch.float32, {})
    model = small_dit().requires_grad_(False)
    model.quantise("nf4", CPU, llm_adapter=True)
    again, _ = module.create_network_from_weights(1.0, str(file), None, None, model)
    assert_same_bits(again.export_tensors(torch.float32), network.export_tensors(torch.float32))


def test_a_compiled_product_is_the_same():
    assert_compiled_is_the_same("nf4")


def test_the_operator_gives_what_a_compiler_is_told_of_it():
    """Which for a weight in one dimension its kernel for CPUs does not."""
    stored = FourBits.of(torch.randn(8, 64), "nf4")
    with CrossRefFakeMode():
        stored.dense(torch.bfloat16)


def test_a_package_that_works_here_is_taken_and_others_are_refused_with_what_to_do():
    assert why_not(CPU) is None
    assert "does not work on meta" in why_not(torch.device("meta"))
    assert why_too_old("0.50.0") is None and why_too_old("1.0") is None
    assert "0.43.3 is too old. Run: pip install" in why_too_old("0.43.3")
