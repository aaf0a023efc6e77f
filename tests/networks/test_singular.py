"""The largest singular values of large matrices against all of them, computed exactly."""

import pytest
import torch

from networks.workshop.deltas import Dense
from networks.workshop.low_rank import RankRule, approximate
from networks.workshop.singular import largest_of

SIZE = 640, 512
SPECTRA = {
    "falling": 0.93 ** torch.arange(512.0),
    "slow": 1 / torch.arange(1, 513.0) ** 0.5,
    "flat": torch.ones(512),
    "short": (torch.arange(512) < 20).float(),
}


@pytest.fixture(scope="module")
def sides():
    generator = torch.Generator().manual_seed(1)
    return [torch.linalg.qr(torch.randn(size, 512, generator=generator))[0] for size in SIZE]


def matrix_of(sides, name):
    return sides[0] * SPECTRA[name] @ sides[1].T


@pytest.mark.parametrize("name", SPECTRA)
def test_what_is_cut_away_is_hardly_more_than_the_least(sides, name):
    matrix, values = matrix_of(sides, name), SPECTRA[name]
    before = torch.get_rng_state()
    found = largest_of(matrix, 32)
    assert torch.equal(before, torch.get_rng_state())
    made = found.left * found.values @ found.right
    rest = float((matrix - made).double().norm())
    least = float(values[32:].double().norm())
    assert found.rest == pytest.approx(rest, rel=1e-4, abs=1e-4)
    assert rest <= 1.0025 * least + 1e-4
    assert found.norm == pytest.approx(float(values.double().norm()), rel=1e-3)
    for side in (found.left.T, found.right):
        torch.testing.assert_close(side @ side.T, torch.eye(32), atol=1e-4, rtol=0)
    again = largest_of(matrix, 32)
    assert all(torch.equal(one, other) for one, other in zip(found[:3], again[:3]))


def test_it_is_exact_where_the_rank_is_large_or_the_matrix_small(sides):
    matrix = matrix_of(sides, "slow")
    for part, rank in ((matrix, 200), (matrix[:200, :100].contiguous(), 8)):
        exact, found = Dense(part).largest(rank), largest_of(part, rank)
        assert all(torch.equal(one, other) for one, other in zip(exact[:3], found[:3]))


@pytest.mark.parametrize(
    "rule, rank",
    [
        (RankRule(error=0.3), 17),  # 0.93^17 = 0.291
        (RankRule(energy=0.995), 37),  # 0.93^36.5 = 0.0707
        (RankRule(error=0.01), 64),  # 0.93^64 = 0.0096
        (RankRule(rank=24, error=0.01), 24),
    ],
)
def test_a_rule_finds_its_rank_without_all_values(sides, rule, rank):
    found = approximate(Dense(matrix_of(sides, "falling")), rule)
    assert abs(found.rank - rank) <= (0 if rule.rank else 1)
    assert found.error == pytest.approx(0.93**found.rank, rel=0.01)
