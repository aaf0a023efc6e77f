"""Rows of zeros that pad a text: counted in the softmax, they are what they are as rows."""

import pytest
import torch

from library.anima_backend.modelling import padded_text
from library.anima_backend.modelling.attention import attention
from library.anima_backend.modelling.attention_probe import Sizes, try_counting
from library.anima_backend.modelling.dit import MIN_CONTEXT
from library.anima_backend.modelling.kernel_trial import why_not
from library.anima_backend.modelling.padded_text import (
    STEP,
    Efficient,
    Flash,
    attention_beside_zeros,
    card_has_flash,
    kernel_of,
    log_left_out,
    shortened,
)
from library.strategy_anima import AnimaContext, predict_velocity
from library.training.flow_matching import NoisyLatents
from tests.helpers.cards import CARD, repeatable
from tests.helpers.memory_modes import KINDS, adapted, assert_same_bits, gradients
from tests.helpers.tiny import golden_vectors, rel_l2, tiny_transformer


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("count", [1, 40, 448])
def test_zeros_that_are_counted_are_zeros_that_are_there(count):
    q, k, v = (randn(2, rows, 3, 16, seed=i).requires_grad_() for i, rows in enumerate((24, 9, 9)))
    sides = [t.transpose(1, 2) for t in (q, k, v)]
    zeros = q.new_zeros(2, 3, count, 16)
    sides[1:] = (torch.cat([t, zeros], 2) for t in sides[1:])
    expected = torch.nn.functional.scaled_dot_product_attention(*sides).transpose(1, 2).flatten(2)
    log = torch.tensor(float(count)).double().log()
    found = attention_beside_zeros(q, k, v, log)
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=1e-12)
    upstream = randn(*found.shape, seed=9)
    pairs = zip(*(torch.autograd.grad(each, (q, k, v), upstream) for each in (found, expected)))
    for of_found, of_expected in pairs:
        torch.testing.assert_close(of_found, of_expected, atol=1e-13, rtol=1e-11)


@pytest.mark.parametrize("rows, kept", [(1, STEP), (64, 64), (65, 128), (449, 512), (530, 530)])
def test_a_text_keeps_its_rows_and_says_how_many_zeros_are_left_out(rows, kept):
    text = randn(2, rows, 4)
    context = shortened(text, MIN_CONTEXT)
    log_zeros = log_left_out(context, MIN_CONTEXT)
    assert context.shape == (2, kept, 4) and torch.equal(context[:, :rows], text)
    assert not context[:, rows:].any()
    left_out = 0 if log_zeros is None else round(log_zeros.exp().item())
    assert kept + left_out == max(MIN_CONTEXT, rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_gives_the_same_velocity_and_gradients(dtype):
    """With texts of different lengths in one batch, and everything trained that meets them."""
    texts = randn(2, 70, 64, dtype=torch.float32)
    texts[1, 12:] = 0
    noisy = randn(2, 16, 8, 8, dtype=torch.float32)
    path = NoisyLatents(noisy, noisy, torch.tensor([0.3, 0.9]))
    found = []
    for counts in (False, True):
        model = tiny_transformer(dtype)
        model.folds_text = counts
        names = "k_proj", "v_proj", "q_proj", "k_norm"
        parts = [model.blocks[0].cross_attn.get_parameter(f"{name}.weight") for name in names]
        context = texts.clone().requires_grad_()
        for part in parts:
            part.requires_grad_()
        velocity = predict_velocity(model, path, AnimaContext(context))
        velocity.square().mean().backward()
        assert context.grad is not None
        real = context.grad[texts.any(-1)]
        found.append([velocity.detach(), real, *(part.grad.float() for part in parts)])
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(*found):
        assert (one - other).norm() <= limit * one.norm() and one.norm() > 0
    assert dtype != torch.float32 or not torch.equal(found[0][0], found[1][0])


def test_the_golden_model_gives_its_velocity():
    v, model = golden_vectors(), tiny_transformer()
    model.folds_text = True
    with torch.no_grad():
        texts = v["in.qwen_hidden.a"], v["in.t5_ids.a"]
        found = model(v["in.x.sq"][:, :, 0], v["in.t.sq"], *texts)
    assert rel_l2(found, v["out.dit.sq"][:, :, 0]) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_adapted_adds_nothing_to_a_row_of_zeros(kind):
    model, _ = adapted(kind)
    model.eval()  # dropout draws a number for each element, so that with fewer rows they are others
    expected = gradients(model)
    model.folds_text = True
    found = gradients(model)
    assert found.keys() == expected.keys()
    largest = max(grad.norm() for grad in expected.values())
    for name, grad in expected.items():
        assert (found[name] - grad).norm() <= 1e-4 * max(grad.norm(), 1e-2 * largest), name


@pytest.mark.parametrize("mode", ["cheap", "block"])
def test_memory_modes_change_no_bit(mode):
    plain, _ = adapted("lora linears")
    plain.folds_text = True
    expected = gradients(plain)
    plain.enable_gradient_checkpointing(mode=mode)
    assert_same_bits(gradients(plain), expected)


def test_a_card_takes_flash_where_it_can():
    half = torch.empty(1, 4, 2, 16, device="meta", dtype=torch.bfloat16)
    assert kernel_of(half) is Flash
    assert kernel_of(half.float()) is kernel_of(half[..., :12]) is Efficient


HALVES = torch.bfloat16, torch.float16


@pytest.mark.gpu
@pytest.mark.parametrize("width, tokens", [(128, 1024), (128, 300), (64, 77)])
@pytest.mark.parametrize(
    "kernel, dtype",
    [*((Flash, dtype) for dtype in HALVES), *((Efficient, dtype) for dtype in (*HALVES, torch.float32))],
)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_on_a_card_zeros_that_are_counted_are_zeros_that_are_there(
    monkeypatch, kernel, dtype, fused, width, tokens
):
    """By either kernel, whichever a card takes; Efficient has log-sums for a multiple of 32 tokens."""
    if kernel is Flash and not card_has_flash(CARD):
        pytest.skip("the card has no flash attention")
    if fused and (reason := why_not(CARD, dtype)):
        pytest.skip(reason)
    monkeypatch.setattr(padded_text, "kernel_of", lambda q: kernel)
    sizes = Sizes(batch=2, tokens=tokens, texts=MIN_CONTEXT, heads=4, width=width, blocks=1)
    with repeatable():  # and the same bits twice, which the trial sees to
        assert not try_counting(sizes, dtype, CARD, rounds=0, fused=fused).why_not
        drawn = torch.Generator(CARD).manual_seed(0)
        q, k, v = torch.randn(3, 2, tokens, 4, width, generator=drawn, device=CARD).to(dtype)
        none = torch.full((), -torch.inf, device=CARD)
        found = attention_beside_zeros(q, k, v, none, fused=fused)
        assert rel_l2(found, attention(q, k, v, None, "torch")) < 0.01
