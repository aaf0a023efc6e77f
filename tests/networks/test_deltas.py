"""Deltas by their factors: every figure is that of the matrix they stand for."""

import pytest
import torch

from networks.workshop.deltas import Dense, Kronecker, LowRank, cosine
from networks.workshop.low_rank import RankRule, approximate

OUT, IN = 24, 12


def made():
    draw = torch.Generator().manual_seed(3)
    rand = lambda *shape: torch.randn(shape, generator=draw)
    return {
        "low rank": LowRank(rand(OUT, 3), rand(3, IN)),
        "wider than the matrix": LowRank(rand(OUT, 40), rand(40, IN)),
        "tall": Kronecker(rand(4, 2), rand(6, 6)),
        "flat": Kronecker(rand(2, 3), rand(12, 4)),
        "nested in tall": Kronecker(rand(2, 1), rand(12, 12)),
        "crossing": Kronecker(rand(12, 1), rand(2, 12)),
        "not nested": Kronecker(rand(3, 4), rand(8, 3)),
        "dense": Dense(rand(OUT, IN)),
        "zero": LowRank(torch.zeros(OUT, 2), rand(2, IN)),
    }


DELTAS = made()
each_delta = pytest.mark.parametrize("delta", DELTAS.values(), ids=DELTAS.keys())


@each_delta
def test_figures_are_those_of_the_matrix(delta):
    matrix = delta.dense()
    x = torch.randn(IN, 5)
    assert delta.shape == tuple(matrix.shape) == (OUT, IN)
    assert delta.norm() == pytest.approx(float(matrix.norm()), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(delta.applied(x), matrix @ x, atol=1e-4, rtol=1e-4)
    values, expected = delta.values(), torch.linalg.svdvals(matrix)
    shared = min(len(values), len(expected))
    torch.testing.assert_close(values[:shared], expected[:shared], atol=1e-4, rtol=1e-4)
    assert float(values[shared:].sum()) == pytest.approx(0, abs=1e-3)


@each_delta
@pytest.mark.parametrize("rank", [1, 2, 7, 100])
def test_the_largest_values_are_the_best_approximation(delta, rank):
    found, matrix = delta.largest(rank), delta.dense()
    error = (matrix - found.left * found.values @ found.right).norm()
    best = torch.linalg.svdvals(matrix)[rank:].norm()
    assert float(error) == pytest.approx(float(best), abs=1e-3)
    assert found.rest == pytest.approx(float(best), abs=1e-3)


@pytest.mark.parametrize("one", DELTAS.values(), ids=DELTAS.keys())
@pytest.mark.parametrize("other", DELTAS.values(), ids=DELTAS.keys())
def test_inner_products_of_every_pair(one, other):
    expected = float((one.dense().double() * other.dense().double()).sum())
    assert one.inner(other) == pytest.approx(expected, abs=1e-3)
    assert -1.0001 <= cosine(one, other) <= 1.0001


def test_a_vector_is_a_delta_of_one_value():
    norm = Dense(torch.tensor([3.0, 0.0, -4.0]))
    assert norm.norm() == pytest.approx(5) and norm.values().tolist() == pytest.approx([5])
    assert cosine(norm, Dense(-norm.matrix)) == pytest.approx(-1)


@each_delta
@pytest.mark.parametrize("rule", [RankRule(rank=2), RankRule(energy=0.9), RankRule(error=0.2),
                                  RankRule(rank=1, error=0.01), RankRule()], ids=str)  # fmt: skip
def test_a_rule_is_kept_by_as_few_ranks_as_can(delta, rule):
    found, matrix = approximate(delta, rule), delta.dense()
    size, error = float(matrix.norm()), float((matrix - found.up @ found.down).norm())
    if not size:
        assert found.error == 0 and not found.delta.dense().any()
        return
    assert found.error == pytest.approx(error / size, abs=1e-4)
    rank = found.up.shape[1]
    if rule.rank:
        assert rank <= rule.rank
    limits = [rule.error] if rule.error is not None else []
    limits += [(1 - rule.energy) ** 0.5] if rule.energy is not None else []
    values = torch.linalg.svdvals(matrix)
    for limit in limits:
        assert error / size <= limit + 1e-5 or rank == rule.rank
        assert rank == 1 or float(values[rank - 1 :].norm()) / size > limit - 1e-5
    if rule == RankRule():
        assert error / size < 1e-5
