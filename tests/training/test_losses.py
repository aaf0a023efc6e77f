"""Losses against hand-worked values and identities, masks, and the reduction to samples."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from library.settings.flags.loss import LossOptions
from library.training.losses import (
    elementwise_loss,
    huber_threshold,
    reduce_to_samples,
    sample_losses,
)


def settings(loss_type="l2", huber_schedule="constant", huber_c=0.1, huber_scale=1.0):
    return SimpleNamespace(
        loss_type=loss_type,
        huber_schedule=huber_schedule,
        huber_c=huber_c,
        huber_scale=huber_scale,
    )


def pair(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(*shape, dtype=torch.float64, generator=generator) for _ in range(2)]
    return draws[0], draws[1]


SIGMA = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)


def test_l1_and_l2_equal_torch():
    x, y = pair(3, 4, 5, 6)
    found = elementwise_loss(x, y, SIGMA, settings("l2"))
    torch.testing.assert_close(found, F.mse_loss(x, y, reduction="none"))
    found = elementwise_loss(x, y, SIGMA, settings("l1"))
    torch.testing.assert_close(found, F.l1_loss(x, y, reduction="none"))


@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
def test_huber_and_smooth_l1_equal_sd_scripts_formulas(schedule):
    x, y = pair(3, 4, 5, 6)
    options = settings("huber", schedule)
    c = huber_threshold(SIGMA, options).view(3, 1, 1, 1)
    root = torch.sqrt((x - y) ** 2 + c**2) - c
    torch.testing.assert_close(elementwise_loss(x, y, SIGMA, options), 2 * c * root)
    options = settings("smooth_l1", schedule)
    torch.testing.assert_close(elementwise_loss(x, y, SIGMA, options), 2 * root)


def test_huber_is_squared_for_small_errors_and_linear_for_large_ones():
    sigma, c = torch.zeros(1, dtype=torch.float64), 0.1
    small = torch.full((1, 1, 1, 1), 1e-6, dtype=torch.float64)
    found = elementwise_loss(small, torch.zeros_like(small), sigma, settings("huber"))
    torch.testing.assert_close(found, small**2, rtol=1e-9, atol=0)
    large = torch.full((1, 1, 1, 1), 1e3, dtype=torch.float64)
    found = elementwise_loss(large, torch.zeros_like(large), sigma, settings("huber"))
    torch.testing.assert_close(found, 2 * c * large, rtol=1e-3, atol=0)


def test_huber_keeps_small_errors_in_float32():
    """sqrt(e^2 + c^2) - c is exactly 0 for e = 1e-5 in float32; its gradient would vanish."""
    error = torch.full((1, 1, 1, 1), 1e-5, requires_grad=True)
    loss = elementwise_loss(error, torch.zeros_like(error), torch.zeros(1), settings("huber"))
    loss.sum().backward()
    torch.testing.assert_close(error.grad, torch.full_like(error, 2e-5), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [0.1, 0.1, 0.1]),
        ("exponential", [1.0, 0.1**0.25, 0.1]),
        ("snr", [1.0, 0.9 * 0.75**2 + 0.1, 0.1]),
    ],
)
def test_thresholds_at_known_sigmas(schedule, expected):
    found = huber_threshold(SIGMA, settings("huber", schedule))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    scaled = huber_threshold(SIGMA, settings("huber", schedule, huber_scale=3.0))
    torch.testing.assert_close(scaled, 3 * found)


def test_the_snr_threshold_is_its_definition_by_signal_to_noise_ratio():
    sigma = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    snr = ((1 - sigma) / sigma) ** 2
    expected = (1 - 0.1) / (1 + snr**-0.5) ** 2 + 0.1
    torch.testing.assert_close(huber_threshold(sigma, settings("huber", "snr")), expected)


def test_without_a_mask_each_sample_is_its_own_mean():
    elements, _ = pair(3, 4, 5, 6)
    torch.testing.assert_close(reduce_to_samples(elements), elements.mean((1, 2, 3)))
    ones = torch.ones(3, 5, 6)
    torch.testing.assert_close(reduce_to_samples(elements, ones), elements.mean((1, 2, 3)))


def test_a_small_mask_does_not_shrink_the_loss_or_its_gradient():
    elements = torch.full((1, 4, 8, 8), 2.0, requires_grad=True)
    mask = torch.zeros(1, 8, 8)
    mask[0, 3, 4] = 1
    loss = reduce_to_samples(elements, mask)
    assert loss.item() == pytest.approx(2.0)
    loss.sum().backward()
    assert elements.grad.sum().item() == pytest.approx(1.0)
    assert elements.grad[0, :, 3, 4].sum().item() == pytest.approx(1.0)


def test_mask_values_are_relative_weights():
    elements = torch.tensor([[[[1.0, 3.0]]]])
    assert reduce_to_samples(elements, torch.tensor([[[0.5, 0.25]]])).item() == pytest.approx(5 / 3)


def test_an_all_zero_mask_contributes_nothing_and_no_nan():
    elements = torch.randn(2, 4, 4, 4, requires_grad=True)
    mask = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])
    loss = reduce_to_samples(elements, mask)
    loss.sum().backward()
    assert loss[0].item() == 0 and bool((elements.grad[0] == 0).all())
    torch.testing.assert_close(loss[1], elements[1].mean())


def test_a_mask_in_pixels_is_averaged_down_to_the_latents():
    elements, _ = pair(1, 2, 2, 2)
    pixels = torch.zeros(1, 1, 16, 16)
    pixels[..., :8, :4] = 1  # half of the first cell
    pixels[..., 8:, 8:] = 1  # all of the last
    expected = (0.5 * elements[0, :, 0, 0] + elements[0, :, 1, 1]).mean() / 1.5
    torch.testing.assert_close(reduce_to_samples(elements, pixels)[0], expected)


@pytest.mark.parametrize(
    "sides, is_large", [((116, 116), True), ((115, 115), False), ((104, 130), True)]
)
def test_large_pictures_count_at_half_size_too(sides, is_large):
    x, y = pair(2, 4, *sides)
    sigma, options = torch.full((2,), 0.5), LossOptions(multiscale_loss_weight=0.5)
    fine = (x - y).square().mean((1, 2, 3))
    found = sample_losses(x, y, sigma, options)
    if not is_large:
        torch.testing.assert_close(found, fine)
        return
    fours = (x - y).unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))  # (2, 4, h, 2, w, 2)
    coarse = fours.mean((-1, -3)).square().mean((1, 2, 3))
    torch.testing.assert_close(found, (fine + 0.5 * coarse) / 1.5)


def test_at_half_size_the_mask_still_holds():
    x, y = pair(2, 4, 120, 120)
    mask = torch.zeros(2, 120, 120)
    mask[:, 20:60, 40:80] = 1
    options = LossOptions(multiscale_loss_weight=1.0)
    inside = sample_losses(x, y, SIGMA[:2], options, mask)
    cut = (slice(None), slice(None), slice(20, 60), slice(40, 80))
    error = (x - y)[cut]
    coarse = torch.nn.functional.avg_pool2d(error, 2).square().mean((1, 2, 3))
    torch.testing.assert_close(inside, (error.square().mean((1, 2, 3)) + coarse) / 2)
