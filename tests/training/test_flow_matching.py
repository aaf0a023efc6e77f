"""The path from image to noise: reference tensors, inverse pairs in float64, distributions."""

import math

import pytest
import torch

from library.settings.flags.flow import MODE_SCALES, FlowOptions
from library.training.flow_matching import (
    NoiseSettings,
    Noising,
    SigmaSampling,
    add_noise,
    flux_shift,
    loss_weight,
    noise_like,
    sample_sigma,
    shift_sigma,
)
from tests.helpers.tiny import golden_vectors

SEEDS = range(4000)
SQUARE = (64, 64)


@pytest.fixture(scope="module")
def golden():
    return golden_vectors()


def drawn(size=SQUARE, **settings):
    return sample_sigma(SEEDS, size, SigmaSampling(**settings))


def latents64(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.golden
def test_noising_and_velocity_equal_the_reference_tensors(golden):
    noisy = add_noise(golden["fm.x0"], golden["fm.noise"], golden["fm.sigma"])
    torch.testing.assert_close(noisy.latents, golden["fm.noisy"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(noisy.velocity, golden["fm.target"], rtol=0, atol=0)


@pytest.mark.golden
def test_shift_equals_the_reference_tensors(golden):
    shifted = shift_sigma(golden["shift.t"], 3.0)
    torch.testing.assert_close(shifted, golden["shift.sigma_shift3"], rtol=1e-6, atol=1e-7)


def test_the_ends_of_the_path_are_the_image_and_the_noise():
    clean, noise = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    noisy = add_noise(clean, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(noisy.latents[0], clean[0]) and torch.equal(noisy.latents[1], noise[1])


def test_the_velocity_leads_to_both_ends_and_both_ends_to_the_velocity_in_float64():
    clean, noise = latents64(3, 4, 6, 5), latents64(6, 4, 6, 5)[3:]
    sigma = torch.tensor([0.001, 0.4, 0.999], dtype=torch.float64)
    noisy = add_noise(clean, noise, sigma)
    assert noisy.latents.dtype == torch.float64
    x, v, s = noisy.latents, noisy.velocity, sigma.view(-1, 1, 1, 1)
    for found, expected in (
        (x - s * v, clean),
        (x + (1 - s) * v, noise),
        ((x - clean) / s, v),
        ((noise - x) / (1 - s), v),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shift", [0.25, 1.0, 3.0, 17.5])
def test_shift_undoes_itself_and_keeps_the_ends(shift):
    sigma = torch.linspace(0, 1, 101, dtype=torch.float64)
    shifted = shift_sigma(sigma, shift)
    torch.testing.assert_close(shift_sigma(shifted, 1 / shift), sigma, rtol=1e-12, atol=1e-12)
    assert shifted[0] == 0 and shifted[-1] == 1 and bool((shifted.diff() > 0).all())


def test_half_precision_latents_are_noised_in_float32():
    noisy = add_noise(
        torch.ones(1, 1, 2, 2, dtype=torch.bfloat16), torch.zeros(1, 1, 2, 2), torch.tensor([0.001])
    )
    assert noisy.latents.dtype == torch.float32
    torch.testing.assert_close(noisy.latents, torch.full((1, 1, 2, 2), 0.999), rtol=0, atol=1e-7)


def test_sigma_is_float32_in_range_and_a_function_of_the_seed_alone():
    for method in ("sigma", "uniform", "sigmoid", "shift", "flux_shift"):
        sampling = SigmaSampling(method=method, shift=3.0)
        together = sample_sigma([5, 6, 7], SQUARE, sampling)
        alone = torch.cat([sample_sigma([seed], SQUARE, sampling) for seed in (5, 6, 7)])
        assert together.dtype == torch.float32 and torch.equal(together, alone)
        assert len(set(together.tolist())) == 3
        assert bool(((together >= 0) & (together <= 1)).all())


def quantiles(values):
    return torch.quantile(values, torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]))


def normal_quantiles():
    return torch.special.ndtri(torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]))


def assert_quantiles(values, expected):
    torch.testing.assert_close(quantiles(values), expected, rtol=0, atol=0.03)


def test_uniform_is_uniform():
    assert_quantiles(drawn(method="uniform"), torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]))


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_sigmoid_is_the_logistic_of_a_scaled_normal(scale):
    expected = torch.sigmoid(scale * normal_quantiles())
    assert_quantiles(drawn(method="sigmoid", sigmoid_scale=scale), expected)


def test_shift_is_sigmoid_shifted_for_the_same_seeds():
    plain = drawn(method="sigmoid", sigmoid_scale=1.3)
    shifted = drawn(method="shift", sigmoid_scale=1.3, shift=3.0)
    assert torch.equal(shifted, shift_sigma(plain, 3.0))
    assert torch.equal(drawn(method="shift", sigmoid_scale=1.3), plain)


def test_an_offset_moves_the_normal_draw_of_its_own_sample():
    """As sd-scripts: before the scale, so that both act on the logit."""
    seeds, offsets = [5, 6, 7], [0.0, -0.5, 1.5]
    for method in ("sigmoid", "shift", "flux_shift"):
        sampling = SigmaSampling(method=method, sigmoid_scale=1.3, shift=3.0)
        plain = sample_sigma(seeds, SQUARE, sampling)
        moved = sample_sigma(seeds, SQUARE, sampling, offsets)
        difference = torch.logit(moved.double()) - torch.logit(plain.double())
        torch.testing.assert_close(difference, 1.3 * torch.tensor(offsets).double(), atol=1e-5, rtol=0)
        assert torch.equal(sample_sigma(seeds, SQUARE, sampling, [0.0] * 3), plain)
    for method in ("uniform", "sigma"):
        sampling = SigmaSampling(method=method)
        plain = sample_sigma(seeds, SQUARE, sampling)
        assert torch.equal(sample_sigma(seeds, SQUARE, sampling, offsets), plain)


def test_flux_shift_grows_with_the_picture_as_flux_defines_it():
    assert flux_shift((32, 32)) == pytest.approx(math.exp(0.5))  # 256 tokens
    assert flux_shift((128, 128)) == pytest.approx(math.exp(1.15))  # 4096 tokens
    assert flux_shift((128, 96)) == pytest.approx(math.exp(0.5 + 0.65 * 2816 / 3840))  # 3072 tokens
    plain = drawn(method="sigmoid").double()
    reference = math.exp(1.15) / (math.exp(1.15) + (1 / plain - 1))  # time_shift(mu, 1.0, t)
    torch.testing.assert_close(
        drawn((128, 128), method="flux_shift").double(), reference, rtol=1e-5, atol=1e-6
    )


def test_sigma_with_uniform_density_is_uniform_then_shifted():
    expected = shift_sigma(torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]), 3.0)
    assert_quantiles(drawn(method="sigma", shift=3.0), expected)


def test_a_positive_logit_mean_moves_towards_the_image_as_in_sd_scripts():
    expected = 1 - torch.sigmoid(0.8 + 0.5 * normal_quantiles()).flip(0)
    found = drawn(method="sigma", weighting_scheme="logit_normal", logit_mean=0.8, logit_std=0.5)
    assert_quantiles(found, expected)
    assert found.mean() < 0.4


def test_mode_density_with_scale_zero_is_uniform_and_with_the_default_peaks_in_the_middle():
    flat = drawn(method="sigma", weighting_scheme="mode", mode_scale=0.0)
    assert_quantiles(flat, torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]))
    u = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    peaked = u + 1.29 * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
    assert_quantiles(drawn(method="sigma", weighting_scheme="mode"), peaked)


@pytest.mark.parametrize("method", ["sigma", "uniform", "sigmoid", "shift", "flux_shift"])
def test_a_range_squeezes_the_distribution_linearly(method):
    full = drawn(method=method, shift=3.0)
    part = drawn(method=method, shift=3.0, min_sigma=0.2, max_sigma=0.7)
    torch.testing.assert_close(part, 0.2 + 0.5 * full)
    assert part.min() >= 0.2 and part.max() <= 0.7


def test_noise_is_normal_and_the_same_for_a_seed_in_any_batch():
    latents = torch.zeros(3, 16, 32, 32)
    noise = noise_like(latents.shape, [1, 2, 3])
    assert torch.equal(noise[1:2], noise_like(latents[:1].shape, [2]))
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert not torch.equal(noise[0], noise[1])


def test_sigma_and_noise_of_one_seed_are_independent():
    sigma = torch.special.ndtri(drawn(method="uniform").double())
    first = noise_like((len(SEEDS), 1, 1, 1), SEEDS).flatten().double()
    assert abs(torch.corrcoef(torch.stack([sigma, first]))[0, 1]) < 0.06


def test_noise_offset_moves_each_channel_by_one_constant_and_is_part_of_the_target():
    clean = torch.zeros(2, 4, 8, 8)
    plain = Noising().draw(clean, [1, 2])
    moved = Noising(noise=NoiseSettings(offset=0.3)).draw(clean, [1, 2])
    difference = moved.velocity - plain.velocity
    torch.testing.assert_close(difference, difference[..., :1, :1].expand_as(difference))
    constants = difference[..., 0, 0]
    assert len({round(value, 5) for value in constants.flatten().tolist()}) == 8
    assert torch.equal(moved.sigma, plain.sigma)


def test_noise_offset_has_the_strength_asked_for():
    clean = torch.zeros(2000, 1, 1, 1)
    noise = NoiseSettings(offset=0.5)
    extra = Noising(noise=noise).draw(clean, SEEDS[:2000]).velocity - noise_like(
        clean.shape, SEEDS[:2000]
    )
    assert extra.std() == pytest.approx(0.5, abs=0.03)
    random = Noising(noise=NoiseSettings(offset=0.5, random_offset=True))
    extra = random.draw(clean, SEEDS[:2000]).velocity - noise_like(clean.shape, SEEDS[:2000])
    assert extra.std() == pytest.approx(0.5 / math.sqrt(3), abs=0.03)


def test_input_perturbation_reaches_the_input_and_not_the_target():
    clean, sigma = torch.zeros(1, 4, 16, 16), torch.tensor([0.5])
    plain = Noising().draw(clean, [9], sigma)
    disturbed = Noising(noise=NoiseSettings(perturbation=0.1)).draw(clean, [9], sigma)
    assert torch.equal(disturbed.velocity, plain.velocity)
    assert (disturbed.latents - plain.latents).std() == pytest.approx(0.05, abs=0.005)


def test_a_given_sigma_is_used_and_the_noise_stays():
    clean = torch.randn(2, 4, 8, 8)
    first = Noising().draw(clean, [1, 2])
    second = Noising().draw(clean, [1, 2], torch.tensor([0.25, 0.75]))
    assert torch.equal(second.sigma, torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(first.velocity, second.velocity, rtol=0, atol=0)


def test_loss_weights_equal_their_formulas():
    sigma = torch.tensor([0.1, 0.5, 1.0])
    torch.testing.assert_close(loss_weight(sigma, "sigma_sqrt"), torch.tensor([100.0, 4.0, 1.0]))
    cosmap = torch.tensor([2 / (math.pi * 0.82), 4 / math.pi, 2 / math.pi])
    torch.testing.assert_close(loss_weight(sigma, "cosmap"), cosmap)
    for name in ("none", "uniform", "logit_normal", "mode"):
        assert torch.equal(loss_weight(sigma, name), torch.ones(3))


def test_the_weight_at_the_image_is_finite():
    assert loss_weight(torch.zeros(1), "sigma_sqrt").item() == pytest.approx(1e6)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 12.0])
def test_sigma_sqrt_weighs_no_more_than_the_smallest_shifted_sigma_of_sd_scripts(shift):
    theirs = shift_sigma(torch.arange(1, 1001, dtype=torch.float64) / 1000, shift)
    sampling = SigmaSampling(method="sigma", weighting_scheme="sigma_sqrt", shift=shift)
    weigh = Noising(sampling).loss_weight
    assert weigh(torch.zeros(1)).item() == pytest.approx(theirs[0].item() ** -2)
    ours = shift_sigma((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000, shift)
    assert weigh(ours).mean() == pytest.approx((theirs**-2).mean().item(), rel=0.25)


def test_sigma_sqrt_weighs_a_squeezed_range_to_its_end():
    sampling = SigmaSampling(method="sigma", weighting_scheme="sigma_sqrt", min_sigma=0.2)
    weight = Noising(sampling).loss_weight(torch.tensor([0.0, 0.5]))
    assert weight.tolist() == pytest.approx([(0.2 + 0.8e-3) ** -2, 4.0])


def mode_sigmas(scale):
    u = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    return u + scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)


@pytest.mark.parametrize("scale", MODE_SCALES)
def test_exactly_the_mode_scales_that_leave_the_path_are_refused(scale):
    beyond = scale + math.copysign(0.01, scale)
    within, outside = mode_sigmas(scale), mode_sigmas(beyond)
    assert within.min() > -1e-9 and within.max() < 1 + 1e-5
    assert outside.min() < 0 and outside.max() > 1
    asked = {"timestep_sampling": "sigma", "weighting_scheme": "mode"}
    assert FlowOptions(**asked, mode_scale=scale).problems() == []
    (problem,) = FlowOptions(**asked, mode_scale=beyond).problems()
    assert f"mode_scale = {beyond:g}" in problem.where + problem.source
    assert FlowOptions(mode_scale=beyond).problems() == []  # it has no effect


@pytest.mark.parametrize("scale", MODE_SCALES)
@pytest.mark.parametrize("shift", [1e-6, 1.0, 1e6])
def test_sigma_is_a_number_in_0_to_1_at_the_ends_of_what_is_accepted(scale, shift):
    for method, scheme in (("sigma", "mode"), ("sigma", "uniform"), ("shift", "none")):
        found = drawn(method=method, weighting_scheme=scheme, mode_scale=scale, shift=shift)
        assert found.min() >= 0 and found.max() <= 1
    ends = shift_sigma(torch.tensor([0.0, 1.0]), shift)
    assert ends.tolist() == [0.0, pytest.approx(1.0, abs=0.1)]
