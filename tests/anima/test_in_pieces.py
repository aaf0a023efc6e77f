"""Norms of heads with their rotations on a CPU, in pieces: the plain form's numbers, rounded once."""

import pytest
import torch
from torch import nn

from library.anima_backend.modelling.glue import EPS, head, heads
from library.anima_backend.modelling.in_pieces import PIECE, norm_turn
from library.anima_backend.modelling.rope import image_rope

ROWS, SIDE, HEADS, WIDTH = (26, 8), 26, 2, 64  # of the pictures of q and k


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def norms(dtype=torch.float64):
    made = [nn.RMSNorm(WIDTH, eps=EPS, dtype=dtype) for _ in range(2)]
    for number, norm in enumerate(made):
        norm.weight.data = 1 + 0.5 * randn(WIDTH, seed=number).to(dtype)
    return made


@pytest.mark.parametrize("is_turned", [True, False])
@pytest.mark.parametrize("trains", [True, False])
def test_q_and_k_are_normed_and_turned_as_the_plain_form_does_it(is_turned, trains, monkeypatch):
    """Columns of one matrix with v, of two samples; q in two pieces."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    length, shorter = (rows * SIDE for rows in ROWS)
    assert 2 * length * HEADS * WIDTH > PIECE
    rows = randn(2, length, 3 * HEADS * WIDTH).requires_grad_()
    columns = rows.unflatten(-1, (3, HEADS, WIDTH))
    q, k = columns[:, :, 0], columns[:, :shorter, 1]
    tables = [image_rope(rows, SIDE, WIDTH, torch.device("cpu")) for rows in ROWS]
    ropes = [tuple(t.double() for t in each) if is_turned else None for each in tables]
    both = norms()
    trained = [norm.weight.requires_grad_(trains) for norm in both if trains]
    found = heads(q, k, both, ropes)
    expected = [head(*given) for given in zip((q, k), both, ropes)]
    upstream = [randn(*each.shape[:3], 2 * WIDTH, seed=9)[..., ::2] for each in expected]
    asked = rows, *trained
    grads = [torch.autograd.grad(each, asked, upstream) for each in (found, expected)]
    for pair in zip([*found, *grads[0]], [*expected, *grads[1]]):
        torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("of_weight", [torch.bfloat16, torch.float32])
def test_in_bfloat16_it_is_rounded_once(of_weight):
    """At most the last bit differs from what float64 gives; an adapted norm has its weight in float32."""
    x, (norm, _) = randn(1, 12, 3, WIDTH, seed=1).bfloat16(), norms(of_weight)
    rope = image_rope(3, 4, WIDTH, torch.device("cpu"))
    found = norm_turn(x, norm.weight, *rope)
    exact = norm_turn(x.double(), norm.weight.double(), *(table.double() for table in rope))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)
