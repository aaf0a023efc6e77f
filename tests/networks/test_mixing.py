"""The kernels that mix groups: the numbers of products, on any sizes; what a count sees of them."""

import json
import os

import pytest
import torch

from library.memory.ledger import Ledger
from networks.kinds import mixing
from networks.kinds.fused import Across, Mixed
from tests.helpers.processes import python

INTERPRETED = """
import json, torch
from networks.kinds import mixing
from networks.kinds.fused import Across, Mixed

def results(step, x, grad, dtype):
    added, back = grad.flatten(1).clone(), x.flatten(1).clone()
    step.add_to(added, x, 0.7)
    step.add_back_to(back, grad, 0.7)
    return [step(x), added, step.back(grad), back, step.gradient(x, grad, dtype)]

torch.manual_seed(0)
distances = []
for l, m, w, tokens in [(8, 8, 20, 7), (4, 16, 33, 9), (32, 2, 300, 1030)]:
    given = [torch.randn(s, dtype=torch.float16) for s in ((l, m), (tokens, m, w), (tokens, l, w))]
    matrix, x, grad = (each.double() for each in given)
    expected = results(Across(matrix), x, grad, torch.float64)
    found = results(Mixed(given[0]), *given[1:], torch.float32)
    distances += [((a - b).norm() / b.norm()).item() for a, b in zip(found, expected)]
print(json.dumps([mixing.works(torch.device("cpu")), distances]))
"""


@pytest.mark.skipif(not mixing.HAS_TRITON, reason="Triton is not installed")
def test_interpreted_kernels_compute_what_products_do():
    ran = python("-c", INTERPRETED, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert ran.returncode == 0, ran.stderr
    works, distances = json.loads(ran.stdout)
    assert works and max(distances) < 3e-4


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", mixing.HALVES)
def test_kernels_on_a_card_compute_what_products_do(dtype):
    """Interpreted they multiply bfloat16 as the whole numbers of its bits."""
    assert mixing.works(torch.device("cuda"), dtype)


def test_each_is_one_kernel_to_a_count_and_reads_the_groups_once():
    matrix, x, grad = (
        torch.empty(shape, dtype=torch.bfloat16, device="meta")
        for shape in [(8, 4), (100, 4, 32), (100, 8, 32)]
    )
    with Ledger(torch.device("meta")) as ledger:
        mixed = Mixed(matrix)(x)
        Mixed(matrix).add_to(grad.view(100, -1), x, 0.5)
    assert mixed.shape == grad.shape and ledger.kernels.launched["glue"] == 2
    sizes = [2 * each.numel() for each in (matrix, x, grad)]
    assert ledger.kernels.moved == 2 * sum(sizes) + sizes[2]


def test_what_the_kernels_do_not_take_is_a_product():
    matrix, x = torch.randn(8, 4), torch.randn(5, 4, 24)
    assert torch.equal(Mixed(matrix)(x), Across(matrix)(x))
    assert not mixing.works(torch.device("cpu")) or mixing.HAS_TRITON
