"""The fused kernels: the plain forms' numbers, in every memory mode, and what a count sees of them."""

import json
import os

import pytest
import torch

from library.anima_backend.modelling.kernel_trial import Sizes, cases, why_not
from library.anima_backend.modelling.one_kernel import HAS_TRITON, rows_of
from library.memory.ledger import Ledger
from tests.helpers.processes import python
from tests.helpers.tiny import tiny_transformer

META = torch.device("meta")
MANY = cases(Sizes(batch=1, side=32, heads=2, head_dim=16))
IN_TURN = """
import json, torch
from library.anima_backend.modelling.kernel_trial import apart, why_not
from tests.helpers.tiny import golden_vectors, tiny_transformer

CPU, MODES = torch.device("cpu"), {"plain": [], "cheap": ["cheap"], "block": ["block"]}

def gradients(fused, modes=(), dtype=torch.float32):
    v, dit = golden_vectors(), tiny_transformer(dtype)
    dit.use_one_kernel(fused)
    for mode in modes:
        dit.enable_gradient_checkpointing(mode=mode)
    names = ["blocks.0.self_attn.q_proj.weight", "blocks.1.self_attn.k_norm.weight",
             "blocks.0.cross_attn.q_norm.weight", "t_embedding_norm.weight"]
    trained = [dit.get_parameter(name).requires_grad_(True) for name in names]
    latents = v["in.x.sq"][:, :, 0, :6, :4]
    found = dit(latents, v["in.t.sq"], context=v["in.qwen_hidden.a"][:, :5])
    return [found.detach(), *torch.autograd.grad(found.float().pow(2).mean(), trained)]

plain = gradients(False)
fused = {name: gradients(True, modes) for name, modes in MODES.items()}
half = gradients(True, dtype=torch.float16)
print(json.dumps({
    "why not": why_not(CPU),
    "distances": [apart(*pair) for pair in zip(fused["plain"], plain)],
    "in float16": [apart(*pair) for pair in zip(half, plain)],
    "same bits": [all(map(torch.equal, fused["plain"], fused[name])) for name in MODES],
}))
"""


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_kernels_interpreted_on_a_cpu_compute_what_the_plain_forms_do():
    """Each alone, and in the reference's model: its gradients, those of trained norms, all modes."""
    ran = python("-c", IN_TURN, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["why not"] is None
    assert max(found["distances"]) < 1e-5 and max(found["in float16"]) < 0.02
    assert found["same bits"] == [True, True, True]


@pytest.mark.gpu
def test_kernels_on_a_card_compute_what_the_plain_forms_do():
    assert why_not(torch.device("cuda")) is None


@pytest.mark.skipif(HAS_TRITON, reason="Triton is installed")
def test_without_triton_the_reason_is_said():
    assert why_not(torch.device("cuda")) == "Triton is missing"


@pytest.mark.parametrize("name", MANY)
def test_each_is_one_kernel_each_way_and_reads_nothing_twice(name):
    """Beside the sums that programs leave, and what is added for all of them after."""
    case, counts = MANY[name], {}
    for fused in (True, False):
        given, ledger = case.given(META, torch.bfloat16), Ledger(META)
        case.run(*given, fused=fused)  # makes the table of angles
        with ledger:
            case.run(*given, fused=fused)
        counts[fused] = ledger.kernels
    trained = "trained" in name
    assert counts[True].launched["glue"] == 2 + 2 * trained
    assert counts[True].moved <= counts[False].moved


@pytest.mark.parametrize("length", [1, 128, 255, 256, 1024, 4096, 100_000])
def test_sums_are_shared_among_enough_programs(length):
    rows = rows_of(length)
    assert rows <= 16 and (rows == 1 or length // rows >= 128)


def test_a_model_without_them_is_as_it_was():
    dit = tiny_transformer()
    assert not any(getattr(module, "fused", False) for module in dit.modules())
