"""The DiT in use: checkpointing, precisions, masks, attention backends."""


import pytest
import torch

from library.anima_backend.modelling import attention, kernels
from library.anima_backend.modelling.llm_adapter import key_mask
from tests.helpers.tiny import golden_vectors, rel_l2, tiny_transformer


def velocity(dit):
    v = golden_vectors()
    with torch.no_grad():
        return dit(v["in.x.sq"][:, :, 0], v["in.t.sq"], v["in.qwen_hidden.a"], v["in.t5_ids.a"])


def padded_batch():
    names = ("qwen_hidden", "t5_ids", "qwen_mask", "t5_mask")
    return {name: golden_vectors()[f"in.{name}_padded"].clone() for name in names}


def gradients(dit):
    v = golden_vectors()
    parameter = dit.get_parameter("blocks.0.self_attn.q_proj.weight").requires_grad_(True)
    text = {"qwen_hidden": v["in.qwen_hidden.a"], "t5_ids": v["in.t5_ids.a"]}
    dit(v["in.x.sq"][:, :, 0], v["in.t.sq"], **text).pow(2).mean().backward()
    return parameter.grad


@pytest.mark.parametrize("cpu_offload", [False, True])
def test_checkpointing_gives_the_same_gradients(cpu_offload):
    plain = gradients(tiny_transformer())
    dit = tiny_transformer()
    dit.enable_gradient_checkpointing(cpu_offload=cpu_offload)
    assert torch.equal(gradients(dit), plain)


@pytest.mark.parametrize("dtype, limit", [(torch.bfloat16, 0.05), (torch.float16, 0.005)])
def test_half_precision_stays_near_float32(dtype, limit):
    result = velocity(tiny_transformer(dtype))
    assert rel_l2(result.float(), velocity(tiny_transformer())) < limit


def test_float16_keeps_its_residual_stream_in_float32():
    dit = tiny_transformer(torch.float16)
    seen = []
    dit.blocks[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    result = velocity(dit)
    assert seen == [torch.float32] and result.dtype == torch.float32


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast_works_around_every_dtype_with_checkpointing(weights, autocast):
    expected = gradients(tiny_transformer())
    dit = tiny_transformer(weights)
    dit.enable_gradient_checkpointing()
    with torch.autocast("cpu", dtype=autocast):
        gradient = gradients(dit)
    assert gradient.dtype == weights and rel_l2(gradient, expected) < 0.05


@pytest.mark.parametrize("empty", [("qwen_mask",), ("t5_mask",), ("qwen_mask", "t5_mask")])
def test_a_text_that_is_all_padding_gives_no_nan(empty):
    given = padded_batch()
    for name in empty:
        given[name][1] = 0
    dit = tiny_transformer()
    parameter = dit.llm_adapter.blocks[0].self_attn.q_proj.weight.requires_grad_(True)
    context = dit.preprocess_text_embeds(**given)
    assert context.isfinite().all() and context[1].any() == ("t5_mask" not in empty)
    context.pow(2).sum().backward()
    assert parameter.grad.isfinite().all()


def test_every_row_of_a_key_mask_sees_something():
    """torch's CPU attention gives zeros for a row that sees nothing; other backends may give NaN."""
    seen = key_mask(torch.tensor([[0, 0, 0], [1, 1, 0], [0, 1, 0]]))[:, 0, 0]
    assert seen.tolist() == [[True, False, False], [True, True, False], [False, True, False]]
    assert key_mask(None) is None


@torch.no_grad()
def test_what_stands_at_padded_places_does_not_matter():
    given, dit = padded_batch(), tiny_transformer()
    expected = dit.preprocess_text_embeds(**given)
    given["qwen_hidden"][given["qwen_mask"] == 0] = 1e3
    given["t5_ids"][given["t5_mask"] == 0] = 7
    assert torch.equal(dit.preprocess_text_embeds(**given), expected)
    as_bool = {name: mask.bool() if "mask" in name else mask for name, mask in given.items()}
    assert torch.equal(dit.preprocess_text_embeds(**as_bool), expected)


def test_every_kernel_that_the_user_can_name_has_its_function():
    assert (*attention.FUNCTIONS,) == kernels.KERNELS
    words = {*kernels.FORKS_WORDS.values(), *kernels.SD_SCRIPTS_WORDS.values()}
    assert words == {*kernels.KERNELS, kernels.AUTO}


@pytest.mark.parametrize("kernel", kernels.KERNELS)
def test_on_a_cpu_every_kernel_is_torchs(kernel):
    dit = tiny_transformer()
    dit.set_attention_backend(kernel)
    dit.enable_gradient_checkpointing()
    assert torch.equal(velocity(dit), velocity(tiny_transformer()))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_xformers_gives_what_torch_gives(dtype):
    pytest.importorskip("xformers")
    v = golden_vectors()
    names = ("in.x.sq", "in.t.sq", "in.qwen_hidden.a", "in.t5_ids.a")
    x, sigma, hidden, ids = (v[name].cuda() for name in names)
    found = []
    for backend in ("torch", "xformers"):
        dit = tiny_transformer(dtype).cuda()
        dit.set_attention_backend(backend)
        parameter = dit.get_parameter("blocks.0.self_attn.q_proj.weight").requires_grad_(True)
        velocity = dit(x[:, :, 0], sigma, hidden, ids)
        velocity.pow(2).mean().backward()
        found.append((velocity.float().detach(), parameter.grad.float()))
    assert all(rel_l2(*pair) < 0.02 for pair in zip(*found))
