"""Outputs and gradients equal those of ComfyUI's own code (tests/golden), in float32."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from library.anima_backend.modelling.layers import sinusoid
from library.anima_backend.modelling.rope import image_rope
from library.anima_backend.modelling.vae import QwenImageVAE
from tests.helpers.tiny import (
    assert_matches_golden,
    golden,
    golden_vectors,
    rel_l2,
    tiny_qwen,
    tiny_transformer,
    tiny_vae,
)

pytestmark = pytest.mark.golden

V = golden_vectors()
DIT = tiny_transformer()
BATCH = {
    "qwen_hidden": V["in.qwen_hidden_padded"],
    "t5_ids": V["in.t5_ids_padded"],
    "qwen_mask": V["in.qwen_mask_padded"],
    "t5_mask": V["in.t5_mask_padded"],
}


def frame(name: str) -> Tensor:
    """A golden tensor (B, C, 1, H, W) without its frame axis."""
    return V[name][:, :, 0]


def prompt(name: str) -> dict[str, Tensor]:
    return {"qwen_hidden": V[f"in.qwen_hidden.{name}"], "t5_ids": V[f"in.t5_ids.{name}"]}


@pytest.mark.parametrize("name", ["a", "b", "uncond"])
@torch.no_grad()
def test_llm_adapter(name):
    given = prompt(name)
    rows = DIT.llm_adapter(given["qwen_hidden"], given["t5_ids"])
    assert_matches_golden(rows, V[f"out.adapter.{name}"])


@torch.no_grad()
def test_context_is_padded_with_zeros_to_512_rows():
    context = DIT.preprocess_text_embeds(**prompt("a"))
    assert_matches_golden(context, V["out.ctx_512.a"])
    assert context.shape[1] == 512 and not context[:, 9:].any()


@torch.no_grad()
def test_prompt_weights_multiply_rows():
    weights = V["in.t5_weights.a"][:, None]
    assert_matches_golden(V["out.adapter.a"] * weights, V["out.ctx_weighted.a"])


@torch.no_grad()
def test_a_padded_batch_gives_each_prompt_its_own_context():
    context = DIT.preprocess_text_embeds(**BATCH)
    for row, name in enumerate("ab"):
        length = V[f"in.t5_ids.{name}"].shape[1]
        assert_matches_golden(context[row : row + 1, :length], V[f"out.adapter.{name}"])
        assert not context[row, length:].any()


@torch.no_grad()
def test_a_prompt_longer_than_512_is_not_cut():
    ids = torch.randint(2, 500, (1, 600), generator=torch.Generator().manual_seed(0))
    assert DIT.preprocess_text_embeds(V["in.qwen_hidden.a"], ids).shape[1] == 600


@pytest.mark.parametrize("case, name", [("sq", "a"), ("ns", "b")])
@torch.no_grad()
def test_dit_of_one_picture(case, name):
    velocity = DIT(frame(f"in.x.{case}"), V[f"in.t.{case}"], **prompt(name))
    assert_matches_golden(velocity, frame(f"out.dit.{case}"))


@torch.no_grad()
def test_dit_of_a_batch_with_padded_prompts():
    assert_matches_golden(DIT(frame("in.x.b2"), V["in.t.b2"], **BATCH), frame("out.dit.b2"))


@torch.no_grad()
def test_a_given_context_skips_the_adapter():
    velocity = DIT(frame("in.x.sq"), V["in.t.sq"], context=V["out.ctx_512.a"])
    assert_matches_golden(velocity, frame("out.dit.sq"))
    clean = frame("in.x.sq") - V["in.t.sq"].view(-1, 1, 1, 1) * velocity
    assert_matches_golden(clean, frame("out.denoised.sq"))


@torch.no_grad()
def test_the_zero_rows_of_the_context_matter():
    unpadded = DIT(frame("in.x.sq"), V["in.t.sq"], context=V["out.adapter.a"])
    assert_matches_golden(unpadded, frame("out.dit.sq_ctx_unpadded"))
    assert rel_l2(unpadded, frame("out.dit.sq")) > 0.1


@torch.no_grad()
def test_timestep_features_and_patches():
    features = sinusoid(V["in.t.b2"], DIT.params.model_dim)
    assert_matches_golden(features, V["tap.t_sin.b2"])
    assert_matches_golden(DIT.t_embedding_norm(features), V["tap.t_norm.b2"])
    assert_matches_golden(DIT.t_embedder(features), V["tap.adaln_lora.b2"])
    masked = torch.nn.functional.pad(frame("in.x.ns"), (0, 0, 0, 0, 0, 1))
    assert_matches_golden(DIT.x_embedder(masked), V["tap.x_embed.ns"].flatten(1, 3))


def test_rotary_angles():
    cos, sin = image_rope(3, 6, DIT.params.head_dim, torch.device("cpu"))
    assert_matches_golden(cos, V["tap.rope_cos.ns"])
    assert_matches_golden(sin, V["tap.rope_sin.ns"])


def test_one_training_step_with_gradients():
    dit = tiny_transformer()
    names = [key[len("train.grad.") :] for key in V if key.startswith("train.grad.")]
    for name in names:
        dit.get_parameter(name).requires_grad_(True)
    velocity = dit(frame("fm.noisy"), V["fm.sigma"], **BATCH)
    assert_matches_golden(velocity, frame("train.velocity"))
    loss = ((velocity - frame("fm.target")) ** 2).mean()
    assert_matches_golden(loss.detach()[None], V["train.loss"])
    loss.backward()
    assert len(names) == 5 and any(name.startswith("llm_adapter") for name in names)
    for name in names:
        assert_matches_golden(dit.get_parameter(name).grad, V[f"train.grad.{name}"])


@pytest.mark.parametrize("name", ["a", "b"])
@torch.no_grad()
def test_qwen_states(name):
    states = tiny_qwen()(V[f"in.qwen_ids.{name}"], use_cache=False).last_hidden_state
    assert_matches_golden(states, V[f"out.qwen_last.{name}"])


@torch.no_grad()
def test_qwen_states_of_a_padded_batch_and_of_the_empty_prompt():
    qwen = tiny_qwen()
    mask = V["in.qwen_mask_padded"]
    states = qwen(V["in.qwen_ids_padded"], attention_mask=mask, use_cache=False).last_hidden_state
    for row, name in enumerate("ab"):
        length = int(mask[row].sum())
        assert_matches_golden(states[row : row + 1, :length], V[f"out.qwen_last.{name}"])
    empty = qwen(torch.tensor([[0]]), use_cache=False).last_hidden_state
    assert_matches_golden(empty, V["out.qwen_last.empty"])


@torch.no_grad()
def test_vae_both_ways():
    vae = tiny_vae()
    latents = vae.encode(V["in.image"])
    assert_matches_golden(latents, frame("out.vae.latent"))
    mean, std = vae.mean, vae.std
    assert_matches_golden(latents * std + mean, frame("out.vae.mu"))
    decoded = vae.decode(frame("out.vae.latent"))
    assert_matches_golden(decoded, frame("out.vae.decoded"))


@torch.no_grad()
def test_a_batch_of_pictures_encodes_as_each_alone():
    vae = tiny_vae()
    images = torch.cat([V["in.image"], V["in.image"].flip(-1)])
    torch.testing.assert_close(vae.encode(images)[1:], vae.encode(images[1:]), atol=1e-5, rtol=1e-5)


def vae_with_3d_convolutions():
    from diffusers import AutoencoderKLQwenImage
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    whole = AutoencoderKLQwenImage(base_dim=4).eval()
    whole.load_state_dict(
        convert_wan_vae_to_diffusers(load_file(golden("qwen_image_vae_tiny.safetensors")))
    )
    return QwenImageVAE(whole, single_frame=False)


@torch.no_grad()
def test_the_single_frame_convolutions_equal_the_3d_ones_both_ways():
    folded, whole, latents = tiny_vae(), vae_with_3d_convolutions(), frame("out.vae.latent")
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(folded.encode(V["in.image"]), whole.encode(V["in.image"]), **close)
    torch.testing.assert_close(folded.decode(latents), whole.decode(latents), **close)


@torch.no_grad()
def test_decoded_pixels_are_not_clamped():
    """The reference picture lies within [-1, 1] and cannot tell; a stronger last layer leaves it."""
    folded, whole, latents = tiny_vae(), vae_with_3d_convolutions(), frame("out.vae.latent")
    for vae in (folded, whole):
        vae.network.decoder.conv_out.weight.mul_(3)
    raw = (latents * whole.std + whole.mean)[:, :, None]
    clamped = whole.network.decode(raw).sample[:, :, 0]  # diffusers' own decode
    decoded = folded.decode(latents)
    assert clamped.max() == 1 and decoded.max() > 1.1
    torch.testing.assert_close(decoded.clamp(-1, 1), clamped, atol=1e-4, rtol=1e-4)
