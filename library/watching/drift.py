"""How far training has moved the model away from the base, for prompts with and without its subject.

The relative change of the velocity, |with - without adapters| / |without|, at fixed noise and sigmas.
There is no picture behind a prompt: the noise is mixed with latents of zeros, the mean of all
pictures, and sigmas are high ones, where the prompt decides. A subject should move the prediction; what
prompts without it lose is forgetting.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from library.data.data_types import SampleRequest
from library.data.datasets import TrainDataset
from library.training.flow_matching import NoisyLatents, add_noise, noise_like
from library.utils import position_seed

if TYPE_CHECKING:
    from accelerate import Accelerator

    from library.data.catalogue import Catalogue

SIGMAS = (0.6, 0.8, 0.95)
LARGEST_EDGE = 64
"""Of the latents, a quarter of the work of those of large pictures."""
WITHOUT, WITH = "without_subject", "with_subject"


class Predict(Protocol):
    """The model's velocity (B, C, H, W) for one caption, the adapters at a strength; no gradients."""

    def __call__(self, noisy: NoisyLatents, caption: str, strength: float) -> Tensor: ...


class Drift:
    """The forgetting meter. The base's velocities are made once and kept in RAM, float32.

    prompts:   without the subject
    catalogue: of the run, which says what the subject is called
    """

    def __init__(self, prompts: Sequence[str], catalogue: Catalogue, seed: int) -> None:
        self.seed = seed
        self.folder = catalogue.images[0].path.parent
        subjects = with_subject(prompts, catalogue, seed) if prompts else []
        self.prompts = [(WITHOUT, p) for p in prompts] + [(WITH, p) for p in subjects]
        self.area = max(width * height for _, (width, height) in catalogue.buckets())
        self.base: dict[int, Tensor] = {}

    def plan_lines(self) -> list[str]:
        """What will be looked at, for the log."""
        if not self.prompts:
            return []
        sigmas = ", ".join(f"{sigma:g}" for sigma in SIGMAS)
        example = self.prompts[-1][1]
        text = f"drift: {len(self.prompts) // 2} prompts without the subject and as many with it"
        return [f"{text}, at sigma {sigmas}; the last of them: {example}"]

    def captions(self) -> dict[str, Path]:
        """Every text it uses, and a folder of a picture."""
        return {prompt: self.folder for _, prompt in self.prompts}

    def shape(self, channels: int, downscale: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents: square, of the run's largest pictures' area up to LARGEST_EDGE."""
        edge = min(LARGEST_EDGE, math.isqrt(self.area) // downscale // 2 * 2)
        return channels, edge, edge

    def noisy(self, number: int, shape: tuple[int, int, int], device: torch.device) -> NoisyLatents:
        """A prompt's noise at every one of SIGMAS, (S, C, H, W); its with and without share it."""
        pair = number % (len(self.prompts) // 2)
        seeds = [position_seed(self.seed, "drift", pair)] * len(SIGMAS)
        clean = torch.zeros(len(SIGMAS), *shape, device=device)
        noise = noise_like(clean.shape, seeds).to(device)
        return add_noise(clean, noise, torch.tensor(SIGMAS, device=device))

    @torch.no_grad()
    def run(
        self, predict: Predict, shape: tuple[int, int, int], accelerator: Accelerator
    ) -> dict[str, float]:
        """The mean relative change by log key; the prompts are shared among the processes."""
        if not self.prompts:
            return {}
        device = accelerator.device
        changes = torch.zeros(len(self.prompts), device=device)
        for number in range(
            accelerator.process_index, len(self.prompts), accelerator.num_processes
        ):
            noisy, (_, prompt) = self.noisy(number, shape, device), self.prompts[number]
            if number not in self.base:
                self.base[number] = predict(noisy, prompt, 0.0).float().cpu()
            now, base = predict(noisy, prompt, 1.0).float(), self.base[number].to(device)
            changes[number] = relative_change(now, base).mean()
        read = accelerator.reduce(changes).cpu().double()
        kinds = [kind for kind, _ in self.prompts]
        return {
            f"drift/{kind}": read[[each == kind for each in kinds]].mean().item()
            for kind in (WITHOUT, WITH)
        }


def relative_change(now: Tensor, base: Tensor) -> Tensor:
    """|now - base| / |base| of each sample (B, ...): (B,)."""
    return (now - base).flatten(1).norm(dim=1) / base.flatten(1).norm(dim=1)


def with_subject(prompts: Sequence[str], catalogue: Catalogue, seed: int) -> list[str]:
    """As many prompts with the trained subject: led by its trigger words, or by the class tokens of its
    folders; where there are neither, the captions of pictures."""
    own = [image for image in catalogue.images if not image.subset.is_reg]
    named_by = (
        i.subset.trigger_word or (i.caption is None and not i.has_text and i.subset.class_tokens)
        for i in own
    )
    words = list(dict.fromkeys(word for word in named_by if word))
    if words:
        named = itertools.cycle(words)
        return [f"{next(named)}, {prompt}" for prompt in prompts]
    plain = catalogue.plain(own)
    dataset = TrainDataset(plain, seed=seed)
    captions = {dataset.caption_of(SampleRequest(n, 0, 0)) for n in range(len(plain.images))}
    order = sorted(captions, key=lambda caption: position_seed(seed, "drift", caption))
    return list(itertools.islice(itertools.cycle(order), len(prompts)))


def describe(values: Mapping[str, float]) -> list[str]:
    """The line for the log, if there are prompts."""
    if not values:
        return []
    without, with_it = (values[f"drift/{kind}"] for kind in (WITHOUT, WITH))
    text = f"the prediction has moved by {without:.2%} for prompts without the subject"
    return [f"{text}, by {with_it:.2%} with it"]
