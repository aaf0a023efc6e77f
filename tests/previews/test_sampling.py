"""Pictures are drawn as ComfyUI draws them: sigmas, noise, every sampler, guidance, the end (tests/golden)."""

import json
from functools import cache

import pytest
import torch
from safetensors.torch import load_file

from library.errors import ConfigError
from library.previews.noise import BrownianNoise, DrawnNoise
from library.previews.samplers import SAMPLERS
from library.previews.sampling import Course, draw, guided, sigma_list, start_noise, to_uint8
from library.previews.sigma_rules import RULES, beta_quantile, beta_share
from tests.helpers.tiny import golden, golden_vectors, rel_l2, tiny_transformer, tiny_vae

pytestmark = pytest.mark.golden
DOCUMENT = json.loads(golden("sampling_cases.json").read_text(encoding="utf-8"))
LISTS, CASES = DOCUMENT["sigma_lists"], DOCUMENT["cases"]
BY_NAME = {case["name"]: case for case in CASES}


@cache
def tensors():
    return load_file(golden("sampling.safetensors"))


@cache
def dit():
    return tiny_transformer().eval().requires_grad_(False)


@cache
def vae():
    return tiny_vae()


def tensor(name):
    """By its name in the cases; of the tensors with a frame axis the frame."""
    if name.startswith("in."):
        return golden_vectors()[name[3:] if name[3:] in golden_vectors() else name]
    return tensors()[name]


def latents(name):
    return tensor(name).squeeze(-3)


def context(given):
    weights = given.get("t5_weights")
    return dit().preprocess_text_embeds(
        tensor(given["qwen_hidden"]),
        tensor(given["t5_ids"]),
        t5_weights=None if weights is None else tensor(weights).reshape(1, -1),
    )


def predict_of(case):
    negative = None if case["negative"] is None else context(case["negative"])
    return guided(dit(), context(case["positive"]), negative, case["cfg"])


def start_of(case):
    if "latent_image" not in case:
        return None
    model = vae()
    mu = latents(case["latent_image"])
    return (mu - model.mean.to(mu)) / model.std.to(mu)


def label(case):
    return f"{case['scheduler']}-{case['steps']}-{case['shift']}-{case['denoise']}"


@pytest.mark.parametrize("case", LISTS, ids=label)
def test_lists_of_sigmas_are_comfyuis(case):
    def made():
        return sigma_list(
            case["scheduler"], case["steps"], shift=case["shift"], denoise=case["denoise"],
            sampler=case.get("sampler") or "euler",
        )  # fmt: skip

    if None in case["sigmas"]:
        with pytest.raises(ConfigError, match="at least two steps"):
            made()
        return
    expected = torch.tensor(case["sigmas"])
    assert made().dtype == torch.float32
    torch.testing.assert_close(made(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", BY_NAME)
def test_each_sampler_draws_what_comfyui_draws(name):
    case, seen = BY_NAME[name], []
    noise = latents(case["noise"])
    assert torch.equal(noise, start_noise(case["seed"], tuple(noise.shape)))
    asked, predict = [], predict_of(case)

    def watched(x, sigma):
        asked.append(sigma)
        return predict(x, sigma)

    final = draw(
        watched,
        Course(
            sampler=case["sampler"], sigmas=torch.tensor(case["sigmas"]), seed=case["seed"],
            shift=case["shift"],
        ),
        noise,
        start=start_of(case),
        on_step=lambda i, x, clean: seen.append((x, clean)),
    )
    bound = 2e-4 if case["sampler"] == "dpmpp_sde" else 2e-5
    assert rel_l2(final, latents(case["final"])) < bound
    torch.testing.assert_close(
        torch.tensor(asked), torch.tensor(case["model_sigmas"]), rtol=0, atol=1e-6
    )
    if "x" in case:
        for (x, clean), *expected in zip(seen, latents(case["x"]), latents(case["denoised"])):
            assert rel_l2(x, expected[0]) < bound
            assert rel_l2(clean, expected[1]) < bound
        assert len(seen) == len(tensor(case["x"]))


@pytest.mark.parametrize("name", [n for n, case in BY_NAME.items() if "step_noise" in case])
def test_step_noise_is_comfyuis(name):
    case = BY_NAME[name]
    drawn = latents(case["step_noise"])
    like = torch.zeros(drawn.shape[1:])
    if case["step_noise_source"] == "generator":
        noise = DrawnNoise(case["seed"], like)
        assert torch.equal(torch.stack([noise(1.0, 0.5) for _ in drawn]), drawn)
        return
    positive = [sigma for sigma in case["sigmas"] if sigma > 0]
    noise = BrownianNoise(case["seed"], like, min(positive), max(positive))
    made = [noise(start, end) for start, end in case["step_noise_from_to"]]
    torch.testing.assert_close(torch.stack(made), drawn, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", DOCUMENT["conditioning_cases"], ids=lambda c: c["context"])
def test_weights_of_words_multiply_the_rows(case):
    assert rel_l2(context(case), tensor(case["context"])) < 2e-5


@pytest.mark.parametrize("case", DOCUMENT["decode_cases"][:-1], ids=lambda c: c["picture"])
def test_latents_become_comfyuis_pictures(case):
    decoded = vae().decode(latents(case["latent_normalised"]))
    torch.testing.assert_close(decoded, latents(case["decoded"]), rtol=0, atol=2e-5)
    assert_same_picture(to_uint8(decoded), tensor(case["picture_uint8"]))


def test_numbers_become_bytes_as_comfyui_cuts_them():
    case = DOCUMENT["decode_cases"][-1]
    decoded = tensor(case["decoded_bhwc"]).movedim(-1, 1)
    assert_same_picture(to_uint8(decoded), tensor(case["picture_uint8"]))


def assert_same_picture(made, expected):
    apart = (made.int() - expected.int()).abs()
    assert apart.max() <= 1
    assert (apart > 0).float().mean() <= 1e-3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_where_the_picture_is_known_every_sampler_finds_it(sampler):
    picture = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    found = draw(
        lambda x, sigma: picture,
        Course(sampler=sampler, sigmas=sigma_list("simple", 12, sampler=sampler), seed=1),
        start_noise(1, (1, 16, 8, 8)),
    )
    torch.testing.assert_close(found, picture, rtol=0, atol=2e-6)


@pytest.mark.parametrize("scheduler", RULES)
@pytest.mark.parametrize("steps", [2, 3, 7, 30, 120])
def test_every_list_falls_from_the_start_to_zero(scheduler, steps):
    sigmas = sigma_list(scheduler, steps)
    assert sigmas[-1] == 0
    assert 0.7 < sigmas[0] <= 1
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("steps, denoise", [(0, 1.0), (-1, 1.0), (5, 0.0), (5, 1.1), (5, -0.5)])
def test_impossible_lists_are_refused(steps, denoise):
    with pytest.raises(ConfigError):
        sigma_list("simple", steps, denoise=denoise)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.25, 0.5, 0.77, 0.999])
def test_the_quantile_undoes_the_share(share):
    assert beta_share(beta_quantile(share)) == pytest.approx(share, abs=1e-12)


def test_a_path_of_noise_does_not_depend_on_the_steps_taken():
    like = torch.zeros(2, 3)
    noise = BrownianNoise(5, like, 0.1, 1.0)
    whole = noise(1.0, 0.2) * (1.0 - 0.2) ** 0.5
    parts = noise(1.0, 0.6) * 0.4**0.5 + noise(0.6, 0.2) * 0.4**0.5
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-5)
