"""A LoRA's second product with the GELU after it: the numbers of both apart, in one kernel less."""

import json
import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from library.memory.activation import activated as activation_of
from library.memory.ledger import Ledger
from networks.kinds import activated
from networks.kinds.adapter import NO_DROPOUT
from networks.kinds.linear import AdaptedLinear
from networks.kinds.lora import LoRA
from tests.helpers.processes import python

INTERPRETED = """
import json
from tests.helpers.activated_cases import distances
print(json.dumps(distances("cpu", "float16")))
"""


def linear(device="meta", dtype=torch.bfloat16, *, rank=16, bias=False, fused=True) -> AdaptedLinear:
    base = nn.Linear(64, 256, bias=bias, device=device, dtype=dtype).requires_grad_(False)
    adapter = LoRA(64, 256, rank, rank, NO_DROPOUT).to(device)
    adapter.fused = fused
    return AdaptedLinear.adopt(base, adapter)


def counted(one: AdaptedLinear) -> Ledger:
    x = torch.empty(2, 50, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
    with Ledger(torch.device("meta")) as ledger:
        found = activation_of(one, x, F.gelu)
        found.backward(torch.empty_like(found))
    return ledger


def test_it_is_a_product_that_moves_its_second_result_alone():
    apart, together = counted(linear(fused=False)), counted(linear())
    assert apart.kernels.launched["gemm"] == together.kernels.launched["gemm"]
    assert apart.kernels.launched["glue"] == together.kernels.launched["glue"] + 1
    result = 2 * 100 * 256
    assert apart.kernels.moved == together.kernels.moved + result


@pytest.mark.parametrize(
    "given", [{"rank": 256}, {"bias": True}, {"fused": False}, {"dtype": torch.float32}]
)
def test_others_are_computed_apart(given):
    one = linear(**given)
    x = torch.empty(3, 64, dtype=given.get("dtype", torch.bfloat16), device="meta")
    assert one.activated(x) is None and activation_of(one, x, F.gelu).shape == (3, 256)


@pytest.mark.skipif(not activated.HAS_TRITON, reason="Triton is not installed")
def test_interpreted_it_computes_what_both_do_apart():
    ran = python("-c", INTERPRETED, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert ran.returncode == 0, ran.stderr
    assert max(json.loads(ran.stdout).values()) < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, most", [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_on_a_card_it_computes_what_both_do_apart(dtype, most):
    from tests.helpers.activated_cases import distances

    assert max(distances("cuda", dtype).values()) < most
