"""A prompt drawn with a model: ComfyUI's picture to the byte, and nothing else changed by it."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from library.anima_runtime.text_contexts import prompt_context
from library.previews.painting import Contexts, Drawing, developed, paint, undisturbed
from library.previews.prompt_file import PreviewPrompt
from library.strategy_anima import AnimaLatentsCachingStrategy
from tests.helpers.tiny import golden, golden_vectors, rel_l2, tiny_transformer, tiny_vae

DOCUMENT = json.loads(golden("sampling_cases.json").read_text(encoding="utf-8"))
CASES = {case["name"]: case for case in DOCUMENT["cases"]}


@pytest.fixture(scope="module")
def dit():
    return tiny_transformer().requires_grad_(False)


@pytest.fixture(scope="module")
def latents_strategy():
    return AnimaLatentsCachingStrategy(tiny_vae(), "tiny")


@pytest.fixture(scope="module")
def tensors():
    return load_file(golden("sampling.safetensors"))


def context(dit, given):
    if given is None:
        return None
    hidden, ids = (golden_vectors()[given[name]][0] for name in ("qwen_hidden", "t5_ids"))
    outputs = {"qwen_hidden": hidden, "t5_ids": ids, "t5_weights": torch.ones(len(ids))}
    return prompt_context(dit, outputs)


def commission(dit, name):
    """A reference case as a drawing, with its contexts."""
    case = CASES[name]
    prompt = PreviewPrompt(
        prompt="", steps=case["steps"], cfg=case["cfg"], shift=case["shift"],
        sampler=case["sampler"], scheduler=case["scheduler"],
    )  # fmt: skip
    batch, channels, _, height, width = case["shape"]
    drawing = Drawing(prompt, case["seed"], (batch, channels, height, width))
    return drawing, Contexts(context(dit, case["positive"]), context(dit, case["negative"]))


@pytest.mark.golden
@pytest.mark.parametrize("case", DOCUMENT["decode_cases"][:-1], ids=lambda c: c["picture"])
def test_a_picture_is_comfyuis_from_the_text_to_its_bytes(dit, latents_strategy, tensors, case):
    name = case["latent_normalised"].removesuffix(".final")
    latents = paint(dit, *commission(dit, name))
    assert rel_l2(latents, tensors[f"{name}.final"].squeeze(-3)) < 2e-5
    apart = developed(latents_strategy, latents).int() - tensors[case["picture_uint8"]].int()
    assert apart.abs().max() <= 1
    assert (apart != 0).float().mean() <= 1e-3


def test_drawing_touches_no_generator_and_leaves_the_model_as_it_was(dit):
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.dropout = dit, nn.Dropout(0.5)
            self.inner.eval()

        def forward(self, *args, **kwargs):
            assert not torch.is_grad_enabled()
            return self.dropout(self.inner(*args, **kwargs))

    model = Dropping().train()
    model.inner.blocks.eval()
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    drawing, contexts = commission(dit, "er_sde.cfg1")
    state = torch.get_rng_state()
    first, second = (paint(model, drawing, contexts) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert torch.equal(first, paint(dit, drawing, contexts))
    assert [module.training for module in model.modules()] == before
    with pytest.raises(KeyboardInterrupt), undisturbed(model):
        raise KeyboardInterrupt
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


def test_what_watches_can_end_the_drawing(dit):
    drawing, contexts = commission(dit, "euler.cfg1")
    seen = []

    def watch(step, latents, clean):
        seen.append((step, latents.shape, clean.shape))
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paint(dit, drawing, contexts, watch)
    assert seen == [(step, drawing.shape, drawing.shape) for step in range(3)]


def test_of_a_picture_to_change_the_less_is_kept_the_more_is_drawn(dit):
    drawing, contexts = commission(dit, "euler.cfg1")
    start = torch.randn(drawing.shape, generator=torch.Generator().manual_seed(4))
    apart = [
        rel_l2(paint(dit, replace(drawing, start=start, denoise=share), contexts), start)
        for share in (0.02, 0.3, 0.8)
    ]
    assert apart == sorted(apart)
    assert apart[0] < 0.2 < apart[-1]


@pytest.mark.parametrize("rows", [5, 24, 100])
def test_a_picture_decoded_in_bands_is_the_whole_one(latents_strategy, rows):
    latents = torch.randn(2, 16, 45, 6, generator=torch.Generator().manual_seed(1))
    whole = latents_strategy.decode(latents)
    torch.testing.assert_close(latents_strategy.decode(latents, rows), whole, rtol=0, atol=2e-5)


def test_a_picture_that_memory_is_too_short_for_is_decoded_in_bands(latents_strategy):
    asked = []

    class Short(AnimaLatentsCachingStrategy):
        def decode(self, latents, rows=None):
            asked.append(rows)
            if rows is None:
                raise torch.OutOfMemoryError
            return super().decode(latents, rows)

    latents = torch.randn(1, 16, 20, 6, generator=torch.Generator().manual_seed(1))
    made = developed(Short(latents_strategy.vae, "tiny"), latents)
    assert asked == [None, 16]
    assert (made.int() - developed(latents_strategy, latents).int()).abs().max() <= 1
