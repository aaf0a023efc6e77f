"""The demo's DiT with its LLM adapter, learned: the six places by their captions.

The project's own path, loss and call of the model, on latents of the demo's VAE.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from library.anima_backend.modelling.attention import torch_attention
from library.anima_backend.modelling.dit import MIN_CONTEXT, Anima
from library.anima_backend.modelling.layers import Attention
from library.anima_backend.modelling.vae import QwenImageVAE
from library.data.data_types import TextOutputs
from library.settings.flags.loss import LossOptions
from library.strategy_anima import (
    AnimaConditioning,
    AnimaTextEncodingStrategy,
    AnimaTokenizeStrategy,
)
from library.training.flow_matching import Noising, SigmaSampling
from library.training.losses import elementwise_loss, reduce_to_samples
from library.utils import position_seed
from tools._demo_learning import Learning, falling_slowly
from tools._demo_pictures import PLACES
from tools._demo_variations import SIZES, UNTITLED, to_pixels, varied_caption, varied_picture

STEPS, BATCH = 1600, 16
RATE = 5e-3
PICTURES = (80, 10, 10)  # of each place, by size
CAPTIONS = 40  # of each place
WITHOUT_CAPTION = 0.12
NOISING = Noising(SigmaSampling(method="shift", shift=3.0))  # the layout is decided in much noise


@dataclass(frozen=True)
class Lesson:
    """What the DiT learns from.

    latents:  for each of SIZES, place to (N, 16, H, W)
    texts:    place to its encoded captions
    untitled: encoded captions that any picture may have
    """

    latents: Sequence[Mapping[str, Tensor]]
    texts: Mapping[str, Sequence[TextOutputs]]
    untitled: Sequence[TextOutputs]


def learn_dit(dit: Anima, lesson: Lesson, seed: int) -> None:
    """Train `dit`, whose weights are random, in place."""
    dit.requires_grad_(True)
    dit.final_layer.linear.weight.data.zero_()
    for name, part in dit.named_modules():
        if isinstance(part, Attention) and name.endswith("cross_attn"):
            vars(part)["forward"] = partial(attend_to_few, part)
    learning = Learning(dit, falling_slowly(RATE, 400))
    for number in tqdm(range(STEPS), "DiT"):
        rng = random.Random(f"{seed}/batch {number}")
        places = [rng.choice(tuple(PLACES)) for _ in range(BATCH)]
        (latents,) = rng.choices(lesson.latents, PICTURES)  # a batch is of one size
        clean = torch.stack([rng.choice(latents[place]) for place in places])
        texts = [
            rng.choice(lesson.untitled if rng.random() < WITHOUT_CAPTION else lesson.texts[place])
            for place in places
        ]
        noisy = NOISING.draw(clean, [position_seed(seed, number, place) for place in range(BATCH)])
        velocity = dit(noisy.latents, noisy.sigma, context=real_rows(dit, texts))
        elements = elementwise_loss(velocity, noisy.velocity, noisy.sigma, LossOptions())
        learning.step(reduce_to_samples(elements).mean())
    learning.finish()
    dit.requires_grad_(False)


def real_rows(dit: Anima, texts: Sequence[TextOutputs]) -> Tensor:
    """The contexts of a batch without the rows of zeros behind the longest of them."""
    batch = AnimaTextEncodingStrategy.collate(texts)
    assert isinstance(batch, AnimaConditioning), "texts are encoded, not contexts"
    rows = dit.preprocess_text_embeds(
        batch.qwen_hidden, batch.t5_ids, qwen_mask=batch.qwen_mask, t5_mask=batch.t5_mask
    )
    return rows[:, : batch.t5_ids.shape[1]]


def attend_to_few(part: Attention, x: Tensor, source: Tensor, rope: None = None) -> Tensor:
    """What cross-attention gives for `source` (B, T, X) padded to MIN_CONTEXT rows, in half the time.

    A row of zeros has a key and a value of zeros: all of them together are one, which weighs more.
    """
    split = (-1, part.head_dim)
    q = part.q_norm(part.q_proj(x).unflatten(-1, split))
    k = part.k_norm(part.k_proj(source).unflatten(-1, split))
    v = part.v_proj(source).unflatten(-1, split)
    k, v = (F.pad(t, (0, 0, 0, 0, 0, 1)) for t in (k, v))
    weight = torch.zeros(1, 1, 1, k.shape[1])
    weight[..., -1] = math.log(MIN_CONTEXT - source.shape[1])
    return part.output_proj(torch_attention(q, k, v, weight))


def make_lesson(
    vae: QwenImageVAE, tokenize: AnimaTokenizeStrategy, encoding: AnimaTextEncodingStrategy, seed: int
) -> Lesson:
    """Pictures and captions of all places, encoded."""

    def encoded(caption: str) -> TextOutputs:
        return encoding.encode_tokens(tokenize.tokenize(caption))

    latents = [
        {place: _latents(vae, place, size, seed) for place in PLACES}
        for size in range(len(SIZES))
    ]
    texts = {
        place: [
            encoded(varied_caption(place, random.Random(f"{seed}/caption/{place}/{number}")))
            for number in range(CAPTIONS)
        ]
        for place in PLACES
    }
    return Lesson(latents, texts, [encoded(caption) for caption in UNTITLED])


@torch.no_grad()
def _latents(vae: QwenImageVAE, place: str, size: int, seed: int) -> Tensor:
    """(N, 16, H, W) of pictures of a place in one of SIZES."""
    images = [
        varied_picture(place, random.Random(f"{seed}/dit/{place}/{size}/{number}"), size=SIZES[size])
        for number in range(PICTURES[size])
    ]
    return torch.cat([vae.encode(to_pixels(images[i : i + 10])) for i in range(0, len(images), 10)])
