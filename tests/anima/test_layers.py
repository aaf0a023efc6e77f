"""Parts of a block against their plain formulas: values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from library.anima_backend.modelling.glue import EPS, gated, gelu, modulate
from library.anima_backend.modelling.rope import image_rope, kept_image_rope, rotate


def randn(*shape, dtype=torch.float64):
    draw = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()


def assert_same_with_gradients(found, expected, inputs, **tolerances):
    torch.testing.assert_close(found, expected, **tolerances)
    direction = randn(*found.shape, 1)[..., 0].to(found.dtype).detach()
    pairs = (torch.autograd.grad(out, inputs, direction) for out in (found, expected))
    for pair in zip(*pairs):
        torch.testing.assert_close(*pair, **tolerances)


@pytest.mark.parametrize("samples", [1, 2])
def test_modulation_is_of_the_normalised_tokens(samples):
    inputs = x, shift, scale = randn(samples, 5, 8), randn(samples, 1, 8), randn(samples, 1, 8)
    assert_same_with_gradients(
        modulate(*inputs), F.layer_norm(x, (8,), eps=EPS) * scale + shift, inputs
    )


@pytest.mark.parametrize("stream", [torch.float16, torch.float32])
def test_of_one_sample_in_half_precision_the_dtype_is_that_of_the_shift(stream):
    x, (shift, scale) = randn(1, 5, 8, dtype=stream), (randn(1, 1, 8, dtype=torch.float16),) * 2
    found = modulate(x, shift, scale)
    assert found.dtype == torch.float16
    exact = modulate(x.double(), shift.double(), scale.double())
    torch.testing.assert_close(found.double(), exact, rtol=2e-3, atol=2e-3)


def test_a_gate_weighs_what_is_added():
    inputs = x, gate, y = randn(2, 5, 8), randn(2, 1, 8), randn(2, 5, 9)[..., :8]
    assert_same_with_gradients(gated(*inputs), x + gate * y, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_is_torchs_and_its_gradient_has_the_memory_of_its_results(dtype):
    x = randn(2, 5, 8, dtype=dtype)
    results = [function(x) for function in (gelu, F.gelu)]
    assert torch.equal(*results)
    grads = [torch.ones_like(x), torch.ones_like(x)]
    found, expected = (torch.autograd.grad(*each)[0] for each in zip(results, [x, x], grads))
    assert torch.equal(found, expected)
    assert found.data_ptr() == grads[0].data_ptr() != expected.data_ptr() != grads[1].data_ptr()


def test_a_gradient_that_lies_otherwise_is_left_as_it_is():
    x = randn(2, 5)
    (found,) = torch.autograd.grad(gelu(x).sum(), x)  # of one number for all
    assert torch.equal(found, torch.autograd.grad(F.gelu(x).sum(), x)[0])


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_a_turn_is_rounded_once_and_turned_back_by_its_gradient(dtype, limit):
    """In bfloat16 the result is that of float32, rounded: at most its last bit differs."""
    rope = cos, sin = image_rope(3, 4, 16, torch.device("cpu"))
    x = randn(2, 12, 3, 16, dtype=dtype)
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    plain = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(dtype)
    assert_same_with_gradients(rotate(x, rope), plain, [x], rtol=limit, atol=limit)
    there, back = rotate(x, rope), (rope[0], -rope[1])
    torch.testing.assert_close(rotate(there, back), x, rtol=4 * limit, atol=4 * limit)


def test_tables_are_made_once_for_a_shape():
    place = torch.device("cpu")
    first = kept_image_rope(3, 5, 16, place)
    assert all(map(torch.equal, first, image_rope(3, 5, 16, place)))
    kept_image_rope(5, 3, 16, place)
    assert kept_image_rope(3, 5, 16, place) is first
