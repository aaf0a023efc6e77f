"""Losses per element, masks, and the reduction to one number per sample.

Reduction stops at (B,): weights of sigma, of the dataset and of regularisation pictures are the
caller's. The Huber threshold may depend on sigma, also by signal-to-noise ratio, which sd-scripts
refuses for flow models.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from library.settings.flags.loss import LARGE_SIDE, LOSS_TYPES, LossOptions

COARSE_FROM = LARGE_SIDE / 8
"""In latent cells."""


def sample_losses(
    prediction: Tensor,
    target: Tensor,
    sigma: Tensor,
    options: LossOptions,
    mask: Tensor | None = None,
) -> Tensor:
    """The loss of each sample, (B,), of latents (B, C, H, W); mask as for reduce_to_samples.

    With multiscale_loss_weight w, of large pictures: (loss + w * loss at half size) / (1 + w), where both
    latents are averaged over squares of four cells.
    """
    fine = reduce_to_samples(elementwise_loss(prediction, target, sigma, options), mask)
    weight = options.multiscale_loss_weight
    if not weight or math.sqrt(target.shape[-2] * target.shape[-1]) < COARSE_FROM:
        return fine
    halves = F.avg_pool2d(prediction, 2), F.avg_pool2d(target, 2)
    coarse = reduce_to_samples(elementwise_loss(*halves, sigma, options), mask)
    return (fine + weight * coarse) / (1 + weight)


def elementwise_loss(
    prediction: Tensor, target: Tensor, sigma: Tensor, options: LossOptions
) -> Tensor:
    """The loss of each element, (B, ...); huber and smooth_l1 are sd-scripts' smooth forms.

    huber = 2c (sqrt(e^2 + c^2) - c), near e^2 for errors below c; smooth_l1 is huber / c, near 2|e|
    for errors above c. c depends on sigma (B,) by the schedule.
    """
    error = prediction - target
    if options.loss_type == "l2":
        return error**2
    if options.loss_type == "l1":
        return error.abs()
    assert options.loss_type in LOSS_TYPES, options.loss_type
    c = huber_threshold(sigma, options).view(-1, *[1] * (error.ndim - 1))
    smooth = 2 * error**2 / (torch.sqrt(error**2 + c**2) + c)  # without the cancellation of a - c
    return c * smooth if options.loss_type == "huber" else smooth


def huber_threshold(sigma: Tensor, options: LossOptions) -> Tensor:
    """c (B,) at sigma: huber_scale times the schedule's value.

    constant:    huber_c
    exponential: huber_c ** sigma, from 1 at the image to huber_c at noise
    snr:         (1 - huber_c) / (1 + 1/sqrt(snr))^2 + huber_c, where snr = ((1 - sigma) / sigma)^2 on
                 the flow path; that is (1 - huber_c) (1 - sigma)^2 + huber_c, finite at both ends
    As sd-scripts does, where snr ignores huber_scale.
    """
    c = options.huber_c
    if options.huber_schedule == "constant":
        value = torch.full_like(sigma, c)
    elif options.huber_schedule == "exponential":
        value = torch.exp(math.log(c) * sigma)
    else:
        assert options.huber_schedule == "snr", options.huber_schedule
        value = (1 - c) * (1 - sigma) ** 2 + c
    return options.huber_scale * value


def reduce_to_samples(elements: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of each sample's elements (B, C, H, W), weighted by the mask: (B,).

    mask: (B, H, W) or (B, 1, H, W) at latent or any larger size, weights >= 0; averaged down to the
    latent size. It weights a mean, so a small mask does not shrink the gradient; a sample whose mask is
    zero everywhere contributes exactly 0.
    """
    if mask is None:
        return elements.flatten(1).mean(1)
    mask = fit_mask(mask, elements)
    total = mask.flatten(1).sum(1) * elements.shape[1]
    weighted = torch.where(
        mask > 0, elements * mask, 0
    )  # an error of inf outside the mask stays out
    return weighted.flatten(1).sum(1) / total.where(total > 0, 1)


def fit_mask(mask: Tensor, elements: Tensor) -> Tensor:
    """The mask as (B, 1, H, W) float32 at the size of `elements`, averaged over areas."""
    if mask.ndim == 3:
        mask = mask.unsqueeze(1)
    mask = mask.to(elements.device, torch.float32)
    if mask.shape[-2:] != elements.shape[-2:]:
        mask = F.interpolate(mask, size=elements.shape[-2:], mode="area")
    return mask
