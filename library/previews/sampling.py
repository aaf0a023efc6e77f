"""Drawing a picture as ComfyUI draws it: the list of sigmas, guidance, the way from noise, the end.

Latents are 4-D (B, C, H, W), normalised, float32 throughout; only what the model reads is cast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from library.errors import ConfigError
from library.previews.noise import BrownianNoise, DrawnNoise, StepNoise
from library.previews.samplers import SAMPLERS, Journey, Predict, below_one
from library.previews.sigma_rules import RULES, Sigmas

WHOLE = 0.9999  # a denoise above it is 1


def sigma_list(
    scheduler: str, steps: int, *, shift: float = 3.0, denoise: float = 1.0, sampler: str = "euler"
) -> Tensor:
    """(n+1,) float32, falling, its last one 0. n is `steps`; beta and ddim_uniform may differ.

    denoise: in (0, 1], the part of the way that is gone; the list is the end of a longer one
    Raises ConfigError for what no list can be made of.
    """
    if steps < 1 or not 0 < denoise <= 1:
        raise ConfigError(f"{steps} steps, denoise {denoise}: at least one step, in (0, 1], is needed.")
    if scheduler == "kl_optimal" and steps == 1:
        raise ConfigError("kl_optimal needs at least two steps.")
    every = steps if denoise > WHOLE else int(steps / denoise)
    shortens = SAMPLERS[sampler].shortens
    values = RULES[scheduler](every + shortens, Sigmas(shift))
    values = [*(values[:-1] if shortens else values), 0.0]
    if denoise <= WHOLE:
        values = values[-(steps + 1) :]
    return torch.tensor(values, dtype=torch.float32)


def start_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers, float32, on the CPU: one draw for a whole batch."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def guided(dit: nn.Module, positive: Tensor, negative: Tensor | None, cfg: float) -> Predict:
    """What the model takes for the picture: x0 = x - sigma v, moved away from the negative.

    positive, negative: contexts (1 or B, T, X); without a negative, or where cfg is 1, it is not asked
    Latents with odd sides are wrapped around to even ones for the model.
    """
    if negative is None or math.isclose(cfg, 1.0):
        contexts = [positive]
    else:
        contexts = [positive, negative]

    def predict(x: Tensor, sigma: float) -> Tensor:
        height, width = x.shape[-2:]
        even = F.pad(x, (0, width % 2, 0, height % 2), mode="circular")
        velocities = _velocities(dit, even, sigma, contexts)
        clean = [x - sigma * v[..., :height, :width] for v in velocities]
        return clean[0] if len(clean) == 1 else clean[1] + cfg * (clean[0] - clean[1])

    return predict


def _velocities(
    dit: nn.Module, x: Tensor, sigma: float, contexts: list[Tensor]
) -> list[Tensor]:
    """The model's velocity for each context, float32; contexts of one length in one call."""
    count = x.shape[0]
    wide = [context.expand(count, -1, -1) for context in contexts]
    alike = len({context.shape for context in wide}) == 1
    calls = [(x.repeat(len(wide), 1, 1, 1), torch.cat(wide))] if alike else [(x, w) for w in wide]
    found = [
        dit(each, each.new_full((each.shape[0],), sigma), context=context).float()
        for each, context in calls
    ]
    return list(found[0].split(count)) if alike else found


@dataclass(frozen=True, kw_only=True)
class Course:
    """How noise is led to a picture.

    sigmas: (n+1,), falling, the last one 0
    seed:   of the noise that a sampler adds
    noise_on_device: draw that on the latents' device, as ComfyUI does on CUDA
    """

    sampler: str
    sigmas: Tensor
    seed: int
    shift: float = 3.0
    noise_on_device: bool = False


@torch.no_grad()
def draw(
    predict: Predict,
    course: Course,
    noise: Tensor,
    *,
    start: Tensor | None = None,
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """The drawn latents, normalised.

    noise:   where the way begins; it comes from start_noise
    start:   latents to change instead of empty ones; the sigmas are then of a denoise below 1
    on_step: called with (number of the step from 0, latents before it, the picture seen in them)
    """
    kind = SAMPLERS[course.sampler]
    values = course.sigmas.tolist()
    x = noise * values[0]
    if start is not None:
        x = x + start * (1 - values[0])
    if kind.noise == "brownian":
        lowest = min(value for value in values if value > 0)
        step_noise: StepNoise = BrownianNoise(course.seed, x, lowest, max(values))
    else:
        step_noise = DrawnNoise(course.seed, x, on_device=course.noise_on_device)
    if kind.below_one:
        values = below_one(values, course.shift)
    return kind.run(Journey(predict, values, step_noise, on_step), x)


def to_uint8(decoded: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8: cut off at the ends and downwards, not rounded."""
    return ((decoded + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8).movedim(1, -1)
