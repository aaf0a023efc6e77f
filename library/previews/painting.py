"""A prompt drawn with a model: from its contexts to latents, and from latents to a picture's bytes.

What is drawn depends on nothing but what is given: no generator that others use is touched, and the
model is afterwards as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from library.device_utils import clean_memory_on_device
from library.previews.prompt_file import PreviewPrompt
from library.previews.sampling import Course, draw, guided, sigma_list, start_noise, to_uint8
from library.strategy_base import LatentsCachingStrategy

logger = logging.getLogger(__name__)

ROWS_WHEN_SHORT = 16  # of latents decoded at a time where a whole picture takes too much memory


@dataclass(frozen=True)
class Drawing:
    """What is to be drawn.

    prompt:  its steps, cfg, shift, sampler and scheduler count here; its words are in the contexts
    seed:    of the noise; a batch is one draw
    shape:   (B, C, H, W) of the latents
    start:   (B or 1, C, H, W), normalised latents of a picture to change, which `denoise` below 1 keeps
             a part of
    noise_on_device: draw the steps' noise on the model's device, as ComfyUI does on CUDA
    """

    prompt: PreviewPrompt
    seed: int
    shape: tuple[int, int, int, int]
    start: Tensor | None = None
    denoise: float = 1.0
    noise_on_device: bool = False

    def course(self) -> Course:
        """Raises ConfigError where the settings give no list of sigmas."""
        prompt = self.prompt
        sigmas = sigma_list(
            prompt.scheduler, prompt.steps, shift=prompt.shift, denoise=self.denoise,
            sampler=prompt.sampler,
        )  # fmt: skip
        return Course(
            sampler=prompt.sampler, sigmas=sigmas, seed=self.seed, shift=prompt.shift,
            noise_on_device=self.noise_on_device,
        )  # fmt: skip


@dataclass(frozen=True)
class Contexts:
    """What the model reads, (1, T, X) each, where it computes. negative: None where cfg is 1"""

    positive: Tensor
    negative: Tensor | None


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Within: no dropout and no gradients. After: every module trains or not, as before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def paint(
    model: nn.Module,
    drawing: Drawing,
    contexts: Contexts,
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """The drawn latents (B, C, H, W), normalised, float32, where the contexts are.

    on_step: called with (number of the step from 0, latents before it, the picture seen in them); what
             it raises ends the drawing
    """
    device = contexts.positive.device
    start = None if drawing.start is None else drawing.start.to(device, torch.float32)
    with undisturbed(model):
        return draw(
            guided(model, contexts.positive, contexts.negative, drawing.prompt.cfg),
            drawing.course(),
            start_noise(drawing.seed, drawing.shape).to(device),
            start=start,
            on_step=on_step,
        )


def developed(strategy: LatentsCachingStrategy, latents: Tensor, rows: int | None = None) -> Tensor:
    """(B, C, H, W) drawn latents -> (B, downscale*H, downscale*W, 3) uint8 on the CPU.

    rows: of latents decoded at a time; None: all, or few where memory is too short for that. Raises
    torch.OutOfMemoryError where it is too short for those as well.
    """
    if rows is None:
        try:
            return to_uint8(strategy.decode(latents)).cpu()
        except torch.OutOfMemoryError:
            logger.info("Memory is too short to decode a picture at once: decoded in bands.")
        clean_memory_on_device(latents.device)  # outside: the error holds what filled the memory
    return to_uint8(strategy.decode(latents, rows or ROWS_WHEN_SHORT)).cpu()
