"""Adapter algebra against dense matrices, and the scale rules."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from networks.kinds.adapter import Dropout
from networks.kinds.kind import Request
from networks.kinds.lokr import LoKrShape, cheapest_mix, factorize, lokr_apply, lokr_delta
from networks.kinds.lora import LoRA
from networks.kinds.stored import adapter_scale, training_alpha


def randn64(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


SIZES = [(8, 8, 4, 4), (2, 3, 5, 7), (1, 4, 6, 1), (1, 1, 6, 5), (4, 2, 3, 9), (2, 8, 9, 2)]


@pytest.mark.parametrize(("l", "m", "k", "n"), SIZES)
@pytest.mark.parametrize("rank", [None, 1, 3])
def test_applying_lokr_factors_equals_the_dense_delta(l, m, k, n, rank):
    """Output and every gradient, whatever the order of the products."""
    w1, x = randn64(l, m), randn64(2, 3, m * n)
    w2 = [randn64(k, n)] if rank is None else [randn64(rank, n), randn64(k, rank)]
    tensors = [x, w1, *w2]
    factored, dense = lokr_apply(x, w1, w2), F.linear(x, lokr_delta(w1, w2))
    torch.testing.assert_close(factored, dense)
    weights = torch.randn_like(dense)
    for mine, theirs in zip(
        torch.autograd.grad(factored, tensors, weights),
        torch.autograd.grad(dense, tensors, weights),
    ):
        torch.testing.assert_close(mine, theirs)


def test_applying_lora_factors_equals_the_dense_delta():
    x, adapter = randn64(2, 3, 10), LoRA(10, 6, 4, alpha=2.0).double()
    torch.nn.init.normal_(adapter.lora_up)
    torch.testing.assert_close(adapter.added(x), F.linear(x, adapter.delta()))


def test_w1_is_mixed_in_where_it_costs_least():
    assert cheapest_mix((8, 8), [256, 1024]) == 0  # before a widening w2
    assert cheapest_mix((8, 8), [1024, 256]) == 1  # after a narrowing one
    assert cheapest_mix((8, 8), [256, 16, 256]) == 1  # between low-rank factors


def test_the_product_is_never_built_except_with_factor_one():
    """Memory of the largest tensor made: with factor 8 far below the 64 x 64 matrix."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.size = max(self.size, out.numel())
            return out

    sizes = {}
    for factor in (8, 1):
        l, k = factorize(64, factor)
        with Largest() as largest:
            lokr_apply(torch.ones(2, 64), torch.ones(l, l), [torch.ones(k, k)])
        sizes[factor] = largest.size
    assert sizes[8] <= 128 and sizes[1] >= 64 * 64


def test_scale_is_alpha_over_rank():
    assert adapter_scale(8, 16) == 0.5
    assert adapter_scale(100000, 16) == 6250


@pytest.mark.parametrize("alpha", [0, None])
def test_training_alpha_zero_or_none_means_the_rank(alpha):
    assert training_alpha(alpha, 16) == 16.0
    assert training_alpha(4, 16) == 4.0


def test_a_stored_alpha_of_zero_means_scale_zero():
    assert adapter_scale(0.0, 16) == 0.0


def test_without_a_rank_the_scale_is_one():
    assert adapter_scale(100000, None) == 1.0


def test_a_dim_of_100000_or_more_asks_for_full_matrices():
    found = [Request(dim, None, Dropout()).asks_for_full_matrices for dim in (99_999, 100_000)]
    assert found == [False, True]


def test_rank_is_w2s_else_w1s_else_none():
    assert LoKrShape(8, 8, 4, 4, w1_rank=2, w2_rank=3).rank == 3
    assert LoKrShape(8, 8, 4, 4, w1_rank=2).rank == 2
    assert LoKrShape(8, 8, 4, 4).rank is None
