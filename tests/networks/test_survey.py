"""Files measured a module at a time: the figures are those of the dense difference, by torch itself."""

import math

import pytest
import torch

from library.anima_workshop.base import open_base
from library.anima_workshop.layout import open_anima_adapter
from networks.workshop.number_range import NumberRange
from networks.workshop.outliers import outliers
from networks.workshop.survey import effective_rank, survey
from tests.helpers.tiny import golden

BASE = golden("anima_tiny_dit.safetensors")


@pytest.mark.parametrize("name", ["lora", "lokr_full", "lokr_low"])
def test_norms_and_singular_values_are_those_of_the_dense_difference(name):
    base = open_base(BASE)
    file = open_anima_adapter(golden(f"adapter_{name}.safetensors"), BASE)
    found = survey(file, base.of_module)
    assert [module.path for module in found.modules] == list(file)
    for module in found.modules[:12]:
        deltas = file.deltas(module.path, base.of_module(module.path))
        dense = deltas["weight"].dense().double()
        assert module.norm == pytest.approx(float(dense.norm()), rel=1e-5)
        weight = base.parameter(f"{module.path}.weight").double()
        assert module.relative == pytest.approx(float(dense.norm() / weight.norm()), rel=1e-5)
        if dense.dim() == 1:
            assert module.values == () or module.values == []
            continue
        values = torch.linalg.svdvals(dense)
        kept = torch.tensor(module.values, dtype=torch.float64)
        torch.testing.assert_close(kept, values[: len(kept)], atol=1e-5, rtol=1e-4)
        shares = values / values.sum()
        entropy = -float((shares * shares.clamp_min(1e-30).log()).sum())
        assert module.effective_rank == pytest.approx(math.exp(entropy), rel=1e-3)


@pytest.mark.parametrize("count", [1, 3, 50])
def test_n_equal_singular_values_have_the_effective_rank_n(count):
    assert effective_rank(torch.full((count,), 0.3)) == pytest.approx(count)
    assert effective_rank(torch.zeros(count)) == 0


def test_what_16_bits_lose_is_counted():
    numbers = torch.tensor([0.0, 1.0, -2.0, 1e-5, 1e-9, 7e4, math.nan, math.inf])
    found = NumberRange()
    assert found.add(numbers) == (2, False)
    assert (found.nonzero, found.zero, found.broken) == (5, 1, 2)
    assert (found.small, found.lost, found.large) == (2, 1, 1)
    finite = numbers[:6].double()
    by_bf16 = (numbers[:6].bfloat16().double() - finite).norm() / finite.norm()
    assert found.error(found.bf16_squares) == pytest.approx(float(by_bf16), rel=1e-6)
    assert NumberRange().add(torch.zeros(3)) == (0, True)


def test_modules_that_stand_out_of_their_kind_are_found():
    norms = {f"a{n}": 1 + n / 100 for n in range(10)} | {"a.dead": 1e-4, "a.zero": 0.0, "a.far": 30.0}
    norms |= {"b0": 1e-6, "b1": 1e-6, "b2": 50.0, "b.zero": 0.0}  # too few to say what is usual
    found = outliers(norms, {path: path[0] for path in norms})
    assert [each.path for each in found.dead] == ["a.dead", "a.zero", "b.zero"]
    assert [each.path for each in found.exploded] == ["a.far"]
    assert found.exploded[0].ratio == pytest.approx(30 / 1.045, rel=0.02)


def test_kinds_whose_modules_differ_much_have_no_outliers():
    norms = {str(n): 1.5**n for n in range(12)}
    assert outliers(norms, dict.fromkeys(norms, "one kind")).exploded == []
