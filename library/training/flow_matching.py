"""Rectified flow: sampling of sigma, noising, the velocity target, weights of the loss.

sigma in [0, 1] is the only time: 0 is the image, 1 is noise. Everything is float32, and every draw is
made per sample on the CPU from that sample's own seed, so that it does not depend on the batch, the
rank or the device. 0-1000 timesteps are converted before they come here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from library.data.data_types import Drawn
from library.device_utils import to_device
from library.settings.flags.flow import TIMESTEP_SAMPLINGS, WEIGHTING_SCHEMES
from library.utils import position_seed

Number = TypeVar("Number", float, Tensor)

SMALLEST_SIGMA = 1e-3
"""Of the 1000 that sd-scripts draws from, before any shift."""


@dataclass(frozen=True)
class NoisyLatents:
    """A point on the straight path from image to noise.

    latents:  (B, C, H, W), (1 - sigma) * clean + sigma * noise
    velocity: (B, C, H, W), noise - clean; what the model should predict
    sigma:    (B,), in [0, 1]; 0 is the image
    """

    latents: Tensor
    velocity: Tensor
    sigma: Tensor


@dataclass(frozen=True, kw_only=True)
class SigmaSampling:
    """How sigma is drawn; the names and defaults are sd-scripts'.

    method sigma uses the density of weighting_scheme (logit_normal with logit_mean and logit_std, mode
    with mode_scale, else uniform) and then shift; sigmoid is the logistic of sigmoid_scale * N(0, 1);
    shift is sigmoid, then shift; flux_shift is sigmoid, then a shift that grows with the picture.
    min_sigma, max_sigma: the whole distribution is squeezed linearly into this range, last of all, as
    sd-scripts does for SD3. Nothing is redrawn: one seed, one draw, whatever the range.
    """

    method: str = "sigmoid"
    sigmoid_scale: float = 1.0
    shift: float = 1.0
    weighting_scheme: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    min_sigma: float = 0.0
    max_sigma: float = 1.0

    def __post_init__(self) -> None:
        assert self.method in TIMESTEP_SAMPLINGS, self.method
        assert self.weighting_scheme in WEIGHTING_SCHEMES, self.weighting_scheme
        assert self.shift > 0 and 0 <= self.min_sigma < self.max_sigma <= 1

    @property
    def smallest_weighted(self) -> float:
        """The sigma below which sigma_sqrt weighs no more: the smallest one that sd-scripts draws."""
        if self.method != "sigma":
            return SMALLEST_SIGMA
        smallest = shift_sigma(SMALLEST_SIGMA, self.shift)
        return self.min_sigma + (self.max_sigma - self.min_sigma) * smallest


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """What is added to plain Gaussian noise; 0 adds nothing.

    offset:       strength of one extra draw per sample and channel, part of the noise to be predicted
    perturbation: strength of an extra draw per element that the input sees and the target does not
                  (ip_noise_gamma; arXiv:2301.11706)
    random_*:     the strength is itself drawn per sample, uniformly in [0, strength]
    """

    offset: float = 0.0
    random_offset: bool = False
    perturbation: float = 0.0
    random_perturbation: bool = False


@dataclass(frozen=True)
class Noising:
    """All settings of the path: what a training step needs to go from clean latents to its input."""

    sampling: SigmaSampling = SigmaSampling()
    noise: NoiseSettings = NoiseSettings()

    def draw(
        self,
        clean: Tensor,
        seeds: Sequence[int],
        sigma: Tensor | None = None,
        drawn: Drawn | None = None,
    ) -> NoisyLatents:
        """Noise clean latents (B, C, H, W); sigma (B,) is drawn unless given.

        drawn: what `draw_ahead` made for them, if it did
        """
        if drawn is None:
            drawn = self.draw_ahead(clean.shape, seeds)
        device, extra = clean.device, drawn.extra
        return add_noise(
            clean,
            to_device(drawn.noise, device),
            to_device(drawn.sigma if sigma is None else sigma, device),
            input_extra=None if extra is None else to_device(extra, device),
        )

    def draw_ahead(
        self, shape: Sequence[int], seeds: Sequence[int], sigma_offsets: Sequence[float] = ()
    ) -> Drawn:
        """All that is drawn for latents of a shape (B, C, H, W), on the CPU. For sigma_offsets see
        `sample_sigma`."""
        noise = offset_noise(noise_like(shape, seeds), seeds, self.noise)
        sigma = sample_sigma(seeds, (shape[-2], shape[-1]), self.sampling, sigma_offsets)
        return Drawn(sigma, noise, input_perturbation(noise, seeds, self.noise))

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """The weight (B,) of each sample's loss."""
        sampling = self.sampling
        return loss_weight(sigma, sampling.weighting_scheme, sampling.smallest_weighted)


def sample_sigma(
    seeds: Sequence[int],
    latent_size: tuple[int, int],
    sampling: SigmaSampling,
    offsets: Sequence[float] = (),
) -> Tensor:
    """One sigma per seed, (B,) float32 on the CPU. latent_size: (H, W), read by flux_shift only.

    offsets: one per seed, added to the normal draw before its sigmoid, as sd-scripts does for a subset;
    above 0 towards noise. Empty: none. Methods without such a draw take no notice.
    """
    if sampling.method == "uniform":
        sigma = _draw_each(seeds, torch.rand)
    elif sampling.method == "sigma":
        sigma = shift_sigma(_sigma_of_density(seeds, sampling), sampling.shift)
    else:
        normal = _draw_each(seeds, torch.randn)
        if any(offsets):
            normal = normal + torch.tensor(offsets)
        sigma = torch.sigmoid(sampling.sigmoid_scale * normal)
        if sampling.method == "shift":
            sigma = shift_sigma(sigma, sampling.shift)
        elif sampling.method == "flux_shift":
            sigma = shift_sigma(sigma, flux_shift(latent_size))
    return sampling.min_sigma + (sampling.max_sigma - sampling.min_sigma) * sigma


def _draw_each(seeds: Sequence[int], draw: Callable[..., Tensor]) -> Tensor:
    """(B,) float32: the first draw of each seed's own stream."""
    return torch.cat([draw(1, generator=_generator(seed, "sigma")) for seed in seeds])


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(position_seed(seed, purpose))


def _sigma_of_density(seeds: Sequence[int], sampling: SigmaSampling) -> Tensor:
    """sigma before the shift for method `sigma`, by the densities of Esser et al. 2024, sec. 3.1.

    sd-scripts and diffusers read u as a position in the *descending* list of timesteps, so sigma is
    1 - u: there, and here, a positive logit_mean moves samples towards the image, unlike the paper.
    Unlike them sigma is continuous here, not one of 1000 values.
    """
    if sampling.weighting_scheme == "logit_normal":
        u = torch.sigmoid(sampling.logit_mean + sampling.logit_std * _draw_each(seeds, torch.randn))
    else:
        u = _draw_each(seeds, torch.rand)
    if sampling.weighting_scheme == "mode":
        u = 1 - u - sampling.mode_scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
    return (1 - u).clamp(0, 1)  # rounding may lead past the ends


def shift_sigma(sigma: Number, shift: float) -> Number:
    """Push sigma towards noise; shift 1 changes nothing. Esser et al. 2024, sec. 5.3.2."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def flux_shift(latent_size: tuple[int, int]) -> float:
    """The shift of a picture, exp(mu), as FLUX and sd-scripts define it.

    mu is linear in the number of tokens (H/2)(W/2): 0.5 at 256 tokens, 1.15 at 4096, and beyond.
    """
    tokens = (latent_size[0] // 2) * (latent_size[1] // 2)
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


def noise_like(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Gaussian noise for latents of a shape (B, C, H, W), float32 on the CPU, one draw per sample.

    The same seed gives the same noise on any rank, in any batch, for any device.
    """
    return _normal_each(shape[1:], seeds, "noise")


def offset_noise(noise: Tensor, seeds: Sequence[int], settings: NoiseSettings) -> Tensor:
    """noise plus one constant per sample and channel (the "noise offset"); noise itself at 0."""
    if settings.offset == 0:
        return noise
    shape = (noise.shape[1], 1, 1)
    draw = _normal_each(shape, seeds, "offset")
    strength = _strengths(settings.offset, settings.random_offset, seeds, "offset strength")
    return noise + strength * draw


def input_perturbation(
    noise: Tensor, seeds: Sequence[int], settings: NoiseSettings
) -> Tensor | None:
    """What is added to the noise in the model's input only, shaped as `noise`; None at strength 0."""
    if settings.perturbation == 0:
        return None
    draw = _normal_each(noise.shape[1:], seeds, "perturbation")
    strength = _strengths(
        settings.perturbation, settings.random_perturbation, seeds, "perturbation strength"
    )
    return strength * draw


def _normal_each(shape: Sequence[int], seeds: Sequence[int], purpose: str) -> Tensor:
    """(B, *shape) float32 on the CPU."""
    return torch.stack([torch.randn(shape, generator=_generator(s, purpose)) for s in seeds])


def _strengths(strength: float, random: bool, seeds: Sequence[int], purpose: str) -> Tensor:
    """(B, 1, 1, 1): the strength, or a draw in [0, strength] for each sample."""
    factors = [torch.rand(1, generator=_generator(s, purpose)) if random else torch.ones(1)
               for s in seeds]  # fmt: skip
    return strength * torch.cat(factors).view(-1, 1, 1, 1)


def add_noise(
    clean: Tensor, noise: Tensor, sigma: Tensor, *, input_extra: Tensor | None = None
) -> NoisyLatents:
    """The point at sigma (B,) between clean and noise, (B, ...) each; 16-bit latents become float32.

    input_extra: added to the noise in the input only; the velocity does not see it.
    """
    if clean.dtype in (torch.float16, torch.bfloat16):
        clean = clean.float()
    s = _per_sample(sigma, clean)
    seen = noise if input_extra is None else noise + input_extra
    return NoisyLatents((1 - s) * clean + s * seen, noise - clean, sigma)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """values (B,) shaped to broadcast over `like` (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def loss_weight(
    sigma: Tensor, weighting_scheme: str, smallest: float = SMALLEST_SIGMA
) -> Tensor:
    """The weight (B,) of the loss at sigma; 1 unless the scheme is sigma_sqrt or cosmap.

    sigma_sqrt (sigma^-2) has a pole at the image; as in sd-scripts, which draws no smaller sigma, the
    weight is never above that at `smallest`. Source: diffusers' SD3 training, which sd-scripts uses.
    """
    assert weighting_scheme in WEIGHTING_SCHEMES, weighting_scheme
    if weighting_scheme == "sigma_sqrt":
        return sigma.clamp(min=smallest) ** -2
    if weighting_scheme == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
    return torch.ones_like(sigma)
