"""The fused kernels: the plain forms' numbers, in every memory mode, and what a count sees of them."""

import json
import logging
import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from library.anima_backend.modelling.kernel_trial import Sizes, cases, why_not
from library.anima_backend.modelling.one_kernel import HAS_TRITON, rows_of
from library.anima_doctor.anima_step import make_step
from library.anima_runtime.config_adapter import AnimaConfig
from library.anima_runtime.fused_choice import are_likely, choose_fused
from library.errors import ConfigError
from library.memory.cuda_kernels import as_on_cuda
from library.memory.ledger import Ledger, tensors_in
from tests.helpers.processes import python
from tests.helpers.tiny import tiny_transformer
from tools.bench import ledger as ledger_of_steps

META = torch.device("meta")
MANY = cases(Sizes(batch=1, side=32, heads=2, head_dim=16))
IN_TURN = """
import json, torch
from library.anima_backend.modelling.kernel_trial import why_not
from library.memory.trials import apart_from
from tests.helpers.tiny import golden_vectors, tiny_transformer

CPU = torch.device("cpu")
MODES = {"plain": {}, "cheap": {"cheap": 1}, "first": {"block": 2}, "both": {"cheap": 1, "block": 2}}

def gradients(fused, modes={}, dtype=torch.float32):
    v, dit = golden_vectors(), tiny_transformer(dtype)
    dit.use_one_kernel(fused)
    dit.folds_text = True
    for mode, every in modes.items():
        dit.enable_gradient_checkpointing(mode=mode, every=every)
    names = ["blocks.0.self_attn.q_proj.weight", "blocks.1.self_attn.k_norm.weight",
             "blocks.0.cross_attn.q_norm.weight", "t_embedding_norm.weight"]
    trained = [dit.get_parameter(name).requires_grad_(True) for name in names]
    latents = v["in.x.sq"][:, :, 0, :6, :4]
    found = dit(latents, v["in.t.sq"], context=v["in.qwen_hidden.a"][:, :5], whole=False)
    return [found.detach(), *torch.autograd.grad(found.float().pow(2).mean(), trained)]

plain = gradients(False)
fused = {name: gradients(True, modes) for name, modes in MODES.items()}
half, bf16 = gradients(True, dtype=torch.float16), torch.bfloat16
rounded = {name: gradients(True, modes, bf16) for name, modes in MODES.items()}
print(json.dumps({
    "why not": why_not(CPU, bf16),
    "distances": [apart_from(*pair) for pair in zip(fused["plain"], plain)],
    "in float16": [apart_from(*pair) for pair in zip(half, plain)],
    "same bits": [all(map(torch.equal, found["plain"], found[name]))
                  for found in (fused, rounded) for name in MODES],
}))
"""


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_kernels_interpreted_on_a_cpu_compute_what_the_plain_forms_do():
    """Each alone, and in the reference's model: its gradients, those of trained norms, all modes; zeros counted."""
    ran = python("-c", IN_TURN, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["why not"] is None
    assert max(found["distances"]) < 1e-5 and max(found["in float16"]) < 0.02
    assert found["same bits"] == [True] * 8


STEPS = """
import json, torch
from dataclasses import replace
from library.anima_backend.modelling import dit
from library.anima_doctor.anima_step import MODES, AnimaStep, make_step
from tools.bench.gpu_parts import TINY
from tools.bench.ledger import network_of

dit.MIN_CONTEXT = 4

def gradients(adapter, mode, fused):
    network, arguments = network_of(adapter, 4, {})
    settings = AnimaStep(
        params=replace(TINY, num_blocks=3), network=network, arguments=arguments, size=(4, 6), batch=2,
        tokens=(3, 3), memory=MODES[mode], dtype=torch.float32, fused=fused,
    )
    torch.manual_seed(0)
    step = make_step(settings, torch.device("cpu"))
    trained = step.network.get_trainable_params()
    for factor in trained:
        torch.nn.init.normal_(factor, std=0.1)
    return torch.autograd.grad(step.loss(), trained)

found = {}
for adapter in ("lora+norms+text", "lokr_full"):
    plain, fused = (gradients(adapter, "none", each) for each in (False, True))
    apart = max((a - b).norm().item() for a, b in zip(plain, fused))
    same = [all(map(torch.equal, fused, gradients(adapter, mode, True)))
            for mode in ("cheap", "checkpoint", "every_2nd")]
    found[adapter] = apart / max(each.norm().item() for each in plain), same
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_a_step_with_adapters_has_the_plain_gradients_in_every_memory_mode():
    """Those of trained norms, of modulation and text too, through products that add up gradients."""
    ran = python("-c", STEPS, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert len(found) == 2
    for apart, same in found.values():
        assert apart < 1e-5 and same == [True] * 3


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kernels_on_a_card_compute_what_the_plain_forms_do(dtype):
    assert why_not(torch.device("cuda"), dtype) is None


@pytest.mark.skipif(HAS_TRITON, reason="Triton is installed")
def test_without_triton_the_reason_is_said():
    assert why_not(torch.device("cuda")) == "Triton is missing"


WORKS, CARD = torch.cuda.is_available() and HAS_TRITON, torch.device("cuda")


@pytest.mark.parametrize(
    "asked, saved, fused, said",
    [
        ("auto", None, WORKS, "" if WORKS else "since the fused ones do not work here: "),
        ("auto", {"fused_kernels": True}, WORKS, "by Triton" if WORKS else "do not work here"),
        ("auto", {"fused_kernels": False}, False, "as in the state"),
        ("auto", {"attention": "torch"}, False, "as in the state"),
        ("off", {"fused_kernels": True}, False, "as asked for"),
    ],
)
def test_those_asked_for_are_used_else_the_states(caplog, asked, saved, fused, said):
    """A state of a run without them, or from before there were any, goes on without them."""
    with caplog.at_level(logging.INFO):
        assert choose_fused(AnimaConfig(fused_kernels=asked), saved, CARD, torch.bfloat16) is fused
    assert said in caplog.text


@pytest.mark.skipif(WORKS, reason="they work here")
def test_those_that_have_to_be_used_and_fail_are_an_error():
    with pytest.raises(ConfigError, match="fused_kernels = always.*do not work here"):
        choose_fused(AnimaConfig(fused_kernels="always"), None, CARD, torch.bfloat16)


def test_on_a_cpu_there_are_none_and_only_who_asked_is_told(caplog):
    for asked in ("auto", "off", "always"):
        assert not caplog.messages
        assert not choose_fused(AnimaConfig(fused_kernels=asked), None, torch.device("cpu"), torch.float32)
    assert "for CUDA" in caplog.text
    assert not are_likely(AnimaConfig(fused_kernels="off"), torch.bfloat16)


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
    calls, trained = 2 if name.startswith("norms,") or name == "norms" else 1, "trained" in name
    casts = trained and name.startswith("norms and")  # of two weights that have one sum
    ways = 1 + any(case.trained)
    copies = 3 * (ways == 1)  # of what it changes in place; of sums in bfloat16, and their zeros
    assert counts[True].launched["glue"] == ways * calls * (1 + trained) + casts + copies
    assert counts[True].moved <= counts[False].moved


class Copied(TorchDispatchMode):
    """Notes what is copied, by its operator and the number of its elements."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(word in func._schema.name for word in ("copy", "clone", "cat", "stack")):
            self.found += [(func._schema.name, each.numel()) for each in tensors_in([out])]
        return out


@pytest.mark.parametrize("trains", ["", "norm"])
def test_nothing_as_large_as_the_tokens_is_copied_around_attention(trains):
    options = ledger_of_steps.make_parser().parse_args(
        ["--adapters", f"lora+{trains}s" if trains else "lora", "--blocks", "2", "--modes", "none"]
    )
    ((_, settings),) = ledger_of_steps.steps(options)
    step, width = make_step(settings, META), settings.params.model_dim
    with as_on_cuda(Ledger(META)), Copied() as copied:
        step.loss().backward()
    assert [each for each in copied.found if each[1] >= 500 * width] == []


@pytest.mark.parametrize("length", [1, 128, 255, 256, 1024, 4096, 100_000])
def test_sums_are_shared_among_enough_programs(length):
    rows = rows_of(length)
    assert rows <= 16 and (rows == 1 or length // rows >= 128)


def test_a_model_without_them_is_as_it_was():
    dit = tiny_transformer()
    assert not any(getattr(module, "fused", False) for module in dit.modules())
