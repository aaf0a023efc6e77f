"""Pictures drawn by the demo's base that draws, and how far they are from others."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from library.anima_models import (
    load_anima_qwen_model,
    load_anima_qwen_tokenizer,
    load_anima_t5_tokenizer,
    load_anima_vae,
)
from library.previews.painting import Contexts, Drawing, paint
from library.previews.prompt_file import PreviewPrompt
from library.strategy_anima import AnimaTextEncodingStrategy, AnimaTokenizeStrategy

CELLS = 16  # of a picture's side, when pictures are compared


class Draughtsman:
    """The demo's encoders and its VAE: what a DiT needs around it to draw."""

    def __init__(self, models: Path) -> None:
        self.vae = load_anima_vae(models / "qwen_image_vae.safetensors")
        self.tokenize = AnimaTokenizeStrategy(
            load_anima_qwen_tokenizer(models / "qwen_tokenizer"),
            load_anima_t5_tokenizer(models / "t5_tokenizer"),
        )
        qwen = load_anima_qwen_model(models / "qwen_3_06b.safetensors", dtype=torch.float32)
        self.encoding = AnimaTextEncodingStrategy(self.tokenize, qwen)

    @torch.no_grad()
    def context(self, dit, text: str) -> Tensor:
        tokens = self.encoding.encode_tokens(self.tokenize.tokenize(text))
        read = self.encoding.collate([tokens])
        return dit.preprocess_text_embeds(
            read.qwen_hidden, read.t5_ids, qwen_mask=read.qwen_mask, t5_mask=read.t5_mask
        )

    @torch.no_grad()
    def draw(self, dit, text: str, *, seed: int, count: int = 1) -> Tensor:
        """(count, 3, 128, 128) in [-1, 1]."""
        prompt = PreviewPrompt(prompt=text, steps=12, cfg=3.0)
        contexts = Contexts(self.context(dit, text), self.context(dit, prompt.negative))
        latents = paint(dit, Drawing(prompt, seed, (count, 16, 16, 16)), contexts)
        return self.vae.decode(latents).clamp(-1, 1)


def coarse(pictures: Tensor) -> Tensor:
    """(B, 3, CELLS, CELLS): what is where, and in which color."""
    return F.adaptive_avg_pool2d(pictures, CELLS)


def distances(drawn: Tensor, others: Tensor) -> Tensor:
    """(B, N): the root mean square between coarse pictures."""
    return (coarse(drawn)[:, None] - coarse(others)[None]).square().mean((2, 3, 4)).sqrt()


def nearest(drawn: Tensor, groups: Sequence[Tensor]) -> list[int]:
    """For each drawn picture the number of the group with the picture that is nearest."""
    return torch.stack([distances(drawn, group).amin(1) for group in groups]).argmin(0).tolist()
