"""The demo's VAE, learned: pictures to 16 channels of about unit scale, and back.

It learns from pieces of pictures, some in exchanged colors, so that it can show what the base has not
seen. The latents that its decoder learns from are noisy: a DiT's are never exact.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from library.anima_backend.modelling.vae import QwenImageVAE
from library.anima_runtime import model_loading
from tools._demo_layouts import Shapes
from tools._demo_learning import Learning, falling_to_zero
from tools._demo_pictures import PLACES
from tools._demo_variations import to_pixels, varied_picture

STEPS, BATCH, PIECE = 1500, 8, 64
RATE = 3e-3
PICTURES = 50  # of each place, half of them with somebody in front of it
NOISE = 0.1  # standard deviation of what is added to latents, in units of theirs
KEPT_SMALL = 3e-3  # weight of the latents' mean square in the loss
LEAST_SCALE = 0.3  # a channel that says less than this is not blown up to unit scale


def learn_vae(vae: QwenImageVAE, seed: int) -> QwenImageVAE:
    """Train `vae`, whose weights are random, in place."""
    soften_residuals(vae)
    pictures = to_pixels([
        varied_picture(place, random.Random(f"{seed}/vae/{place}/{number}"), figure=number % 2 == 1)
        for place in PLACES
        for number in range(PICTURES)
    ])  # fmt: skip
    vae.requires_grad_(True)
    learning = Learning(vae, falling_to_zero(RATE, STEPS))
    generator = torch.Generator().manual_seed(seed)
    for pixels in tqdm(pieces(pictures, seed), "VAE", total=STEPS):
        latents = vae.encode(pixels)
        noise = torch.randn(latents.shape, generator=generator)
        error = vae.decode(latents + NOISE * noise) - pixels
        loss = error.abs().mean() + error.square().mean() + KEPT_SMALL * latents.square().mean()
        learning.step(loss)
    learning.finish()
    vae.requires_grad_(False)
    scale_latents(vae, pictures)
    return vae


def soften_residuals(vae: QwenImageVAE) -> None:
    """At first the residual blocks add little: the rate can be high from the start."""
    for name, weight in vae.named_parameters():
        if name.endswith("conv2.weight"):
            weight.data.mul_(0.1)


def pieces(pictures: Tensor, seed: int) -> Iterator[Tensor]:
    """Batches (BATCH, 3, PIECE, PIECE), STEPS of them; a third in exchanged colors, half mirrored."""
    rng = random.Random(f"{seed}/pieces")
    last = pictures.shape[-1] - PIECE
    for _ in range(STEPS):
        batch = []
        for _ in range(BATCH):
            picture = pictures[rng.randrange(len(pictures))]
            y, x = rng.randint(0, last), rng.randint(0, last)
            piece = picture[:, y : y + PIECE, x : x + PIECE]
            if rng.random() < 0.33:
                piece = piece[rng.sample(range(3), 3)]
            batch.append(piece.flip(-1) if rng.random() < 0.5 else piece)
        yield torch.stack(batch)


@torch.no_grad()
def scale_latents(vae: QwenImageVAE, pictures: Tensor) -> None:
    """Give each channel of the latents mean 0 and scale 1 over `pictures`; what is decoded stays.

    The convolutions of size 1 next to the latents take the change up, on both sides.
    """
    latents = torch.cat([vae.encode(part) for part in pictures[::3].split(10)])
    mean = latents.mean((0, 2, 3))
    scale = latents.std((0, 2, 3)).clamp(min=LEAST_SCALE)
    into, out = vae.network.quant_conv, vae.network.post_quant_conv
    channels = len(mean)
    own_mean, own_std = vae.mean.flatten(), vae.std.flatten()
    # raw = own_std * latents + own_mean, before and after; latents' = (latents - mean) / scale
    center = own_mean + own_std * mean
    into.bias[:channels] = (into.bias[:channels] - center) / scale + own_mean
    into.weight[:channels] /= scale.view(-1, 1, 1, 1)
    out.bias += F.linear(center - scale * own_mean, out.weight.flatten(1))
    out.weight *= scale.view(1, -1, 1, 1)


def passed_tensors(vae: QwenImageVAE, layout: Shapes) -> dict[str, Tensor]:
    """What a picture passes, by the names of the true layout: convolutions are 2-D, none is in time."""
    names = model_loading.vae_entries("", {name: name for name in layout})
    state = vae.network.state_dict()
    return {names[key]: tensor for key, tensor in state.items() if "time_conv" not in key}


def in_true_layout(passed: Mapping[str, Tensor], layout: Shapes) -> dict[str, Tensor]:
    """The VAE with all its tensors: zeros in time, but for the last tap, which a picture meets."""
    whole = {}
    for name, shape in layout.items():
        tensor = passed.get(name)
        if tensor is None or tensor.shape != shape:
            whole[name] = torch.zeros(shape)
            if tensor is not None:
                whole[name][:, :, -1] = tensor
        else:
            whole[name] = tensor
    return whole
