"""The ledger: what is born, dies and moves; against the allocator of a real step; the true size."""

from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from library.anima_backend.modelling import glue
from library.anima_backend.modelling.params import DiTParams, LLMAdapterParams
from library.anima_doctor.anima_step import MODES, AnimaStep, count, make_step
from library.memory.cuda_kernels import as_on_cuda, operators
from library.memory.ledger import Ledger
from library.memory.optimizer_states import state_bytes
from library.memory.step_count import count_step
from library.settings.flags.network import NetworkOptions
from library.settings.flags.optimizer import OptimizerOptions

META = torch.device("meta")
PLAIN = (("train_norm", "false"), ("train_llm_adapter", "false"))


def params(width: int, blocks: int) -> DiTParams:
    text = LLMAdapterParams(
        vocab=100, source_dim=width // 2, target_dim=width // 2, model_dim=width // 2, head_dim=16,
        mlp_dim=width, num_blocks=1,
    )  # fmt: skip
    return DiTParams(
        channels=16, patch=2, model_dim=width, head_dim=32, text_dim=width // 2,
        adaln_dim=width // 8, mlp_dim=4 * width, num_blocks=blocks, llm_adapter=text,
    )  # fmt: skip


def small_step(
    kind: str = "lora", width: int = 64, blocks: int = 3, mode: str = "none", **settings
) -> AnimaStep:
    network = NetworkOptions(network_module=f"networks.{kind}_anima", network_dim=4)
    values = {"params": params(width, blocks), "network": network, "size": (32, 32), **settings}
    return AnimaStep(memory=MODES[mode], **values)


def ones(*shape: int, **options) -> torch.Tensor:
    return torch.ones(*shape, device="meta", **options)


def test_storages_are_counted_from_birth_to_death():
    ledger = Ledger(META, granule=1)
    with ledger:
        first = ones(10, 4)
        assert ledger.on_device.now == 160
        view = first[2:].t()
        second = view + 1  # (4, 8)
        assert ledger.on_device.now == 160 + 128
        del first
        assert ledger.on_device.now == 160 + 128  # the view holds it
        del view
        second.add_(1)
        assert (ledger.on_device.now, ledger.on_device.peak) == (128, 288)
    del second
    assert ledger.on_device.now == 0  # also after the count


def test_sizes_are_rounded_up_as_cudas_allocator_does():
    ledger = Ledger(META)
    with ledger:
        kept = ones(129)
        assert ledger.on_device.now == 1024
    del kept


def test_what_is_there_already_is_noted_once():
    shared = ones(8, 8)
    ledger = Ledger(META, granule=1)
    assert (ledger.enter([shared, shared.t()]), ledger.enter([shared])) == (256, 0)
    assert ledger.enter([torch.ones(3)]) == 0 and ledger.in_host.now == 12


def test_kernels_are_told_from_views_and_their_bytes_are_counted():
    x, row, w = ones(16, 8), ones(8), ones(8, 8)
    ledger = Ledger(META)
    with ledger:
        out = x + row.expand(16, 8)  # reads 512 + 32, writes 512
        out = out.t().reshape(128)  # a copy: 512 twice
        torch.empty(3, device="meta")
        x @ w
        out.zero_()  # writes 512
    assert ledger.kernels.launched == {"glue": 3, "gemm": 1}
    assert ledger.kernels.moved == 1056 + 1024 + 512


def test_copies_to_the_host_go_over_the_link_and_are_counted_there():
    x = ones(16, 8, dtype=torch.bfloat16)
    ledger = Ledger(META, granule=1)
    with ledger:
        there = x.cpu()
        target = torch.empty(16, 8, dtype=torch.bfloat16)
        target.copy_(x)
        back = there.to("meta")
    assert ledger.kernels.linked == 3 * 256
    assert ledger.in_host.now == 512 and ledger.on_device.now == 256
    assert not ledger.kernels.launched
    del back


def test_a_result_made_anew_has_the_form_of_the_first():
    x = ones(4, 6, 8).transpose(0, 1)
    with Ledger(META):
        first, again = x * 2, x * 2
        other = x.contiguous() * 2
    assert first.stride() == again.stride() == (8, 48, 1)
    assert other.stride() == (32, 8, 1)


def test_norm_and_attention_keep_what_cudas_kernels_keep():
    ledger = Ledger(META, granule=1)
    x = ones(2, 16, 4, 32, dtype=torch.bfloat16, requires_grad=True)
    weight = ones(32, dtype=torch.bfloat16)
    size = x.nbytes
    with as_on_cuda(ledger), ledger:
        y = torch.nn.functional.rms_norm(x, (32,), weight, 1e-6)
        assert ledger.on_device.now == size + 4 * 2 * 16 * 4  # the result, a scale for each row
        q = y.transpose(1, 2)
        out = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        rows = ledger.on_device.now - 2 * size - 4 * 2 * 16 * 4
        assert 4 * 2 * 16 * 4 <= rows <= 4 * 2 * 16 * 4 + 64  # logsumexp, the seed of dropout
        out.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape


def test_states_are_those_that_the_optimizer_makes():
    shapes = [torch.empty(64, 64), torch.empty(64, 64), torch.empty(5)]
    trained = 2 * 4096 + 5
    adam = state_bytes(OptimizerOptions(optimizer_type="AdamW"), shapes)
    assert adam == 8 * trained + 3 * 4  # two moments; the number of steps of each tensor
    momentum = OptimizerOptions(optimizer_type="SGDNesterov")
    assert state_bytes(momentum, shapes) == 4 * trained


def test_states_in_8_bit_are_counted_without_the_tables_they_share():
    pytest.importorskip("bitsandbytes")
    options = OptimizerOptions(optimizer_type="AdamW8bit")
    found = state_bytes(options, [torch.empty(64, 64)] * 2)
    assert found == 2 * (2 * 4096 + 2 * 4 * 4096 // 256)  # a scale for each block of 256


# Against reality: the allocator's own events of a real step on the CPU, whose kernels are stood for.


def as_on_cpu(ledger: Ledger):
    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None,
                  enable_gqa=False):  # fmt: skip
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            bias = torch.zeros_like(attn_mask, dtype=q.dtype)
            attn_mask = bias.masked_fill_(~attn_mask, float("-inf"))
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]

    return operators({"scaled_dot_product_attention": attention})


def measured_peak(step) -> int:
    """The most that torch's CPU allocator gave out during forward and backward."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step.loss().backward()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def of_the_step(counted) -> int:
    return counted.peak - counted.weights - counted.adapters - counted.states


@pytest.mark.parametrize(
    "kind, mode, changes",
    [
        ("lora", "none", {"arguments": PLAIN, "caches_text": False}),
        ("lora", "checkpoint", {"width": 128}),
        ("lokr", "none", {"dtype": torch.float32}),
        (
            "lokr", "checkpoint",
            {"arguments": PLAIN, "dtype": torch.float32, "width": 256, "caches_text": False},
        ),
    ],
)  # fmt: skip
def test_the_count_is_what_the_allocator_gives_out(kind, mode, changes, monkeypatch):
    settings = small_step(kind, mode=mode, blocks=2, **changes)
    with monkeypatch.context() as as_well:
        as_well.setattr(glue, "is_on_cpu", lambda x: True)  # meta tensors stand for a CPU's
        counted = count_step(make_step(settings, META), as_on_cpu, granule=1)
    torch.manual_seed(0)
    real = make_step(settings, torch.device("cpu"))
    real.loss()  # the tables of its shape are kept from here on
    on_real_tensors = count_step(real, granule=1)
    measured = measured_peak(real)
    # a CPU's bfloat16 product that adds to its output asks for scratch memory of its size, and
    # so does its sum in float32 that is rounded as it is written
    scratch = 0.06 if settings.dtype == torch.bfloat16 else 0
    # attention's backward pass has some in float32; without checkpointing less than what is kept
    scratch += 0.03 if mode == "checkpoint" else 0
    assert of_the_step(on_real_tensors) == pytest.approx(measured, rel=0.01 + scratch)
    assert of_the_step(counted) == pytest.approx(measured, rel=0.02 + scratch)
    for part in ("weights", "adapters", "states", "gradients", "left"):
        assert getattr(counted, part) == getattr(on_real_tensors, part)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_left_when_a_step_is_done(mode):
    assert count(small_step("lokr", mode=mode, blocks=2)).left == 0


@pytest.mark.parametrize("mode", ["none", "cheap", "checkpoint", "offload"])
def test_each_block_adds_the_same(mode):
    counts = [
        count(replace(small_step(arguments=PLAIN, mode=mode), params=params(64, blocks)))
        for blocks in (2, 3, 4)
    ]
    for figure in (
        lambda c: c.weights,
        lambda c: c.kept,
        lambda c: c.kernels.moved,
        lambda c: c.kernels.launched["glue"],
        lambda c: c.kernels.launched["gemm"],
        lambda c: c.kernels.launched["attention"],
        lambda c: c.kernels.linked,
    ):
        two, three, four = map(figure, counts)
        assert four - three == three - two


def test_swapped_weights_are_in_the_hosts_memory_and_pass_through_a_ring():
    plain, swapped = (count(small_step(mode=mode, blocks=4)) for mode in ("none", "swap_all"))
    model = make_step(small_step(blocks=4), META).model
    linears = {n: m for n, m in model.blocks.named_modules() if isinstance(m, torch.nn.Linear)}
    away = sum(linear.weight.nbytes for linear in linears.values())
    steering = sum(m.weight.nbytes for n, m in linears.items() if "modulation" in n)
    # two of four are in the ring, but modulation's, which come once for all blocks
    assert swapped.weights == plain.weights - (away - steering) // 2 - steering
    assert swapped.in_host - plain.in_host == away
    assert swapped.kernels.linked - plain.kernels.linked >= away
    assert swapped.kept == plain.kept


def test_an_llm_adapter_that_no_step_needs_is_not_on_the_device():
    rests, stays = (
        count(small_step(arguments=PLAIN, caches_text=cached)) for cached in (True, False)
    )
    size = sum(w.nbytes for w in make_step(small_step(arguments=PLAIN), META).rests)
    assert 0 <= stays.weights - rests.weights - size < 512 * 40  # each rounded up
    assert stays.peak - rests.peak == stays.weights - rests.weights
    assert count(small_step(caches_text=True)) == count(small_step(caches_text=False))  # it trains


def test_gradients_of_earlier_micro_batches_are_there_at_the_peak():
    alone, after_others = (count(small_step(accumulates=each)) for each in (False, True))
    assert after_others.kept == alone.kept and after_others.gradients == alone.gradients
    assert alone.peak < after_others.peak <= alone.peak + 2 * alone.gradients


def test_counting_leaves_no_gradients_and_counts_the_same_again():
    step = make_step(small_step(), META)
    first = count_step(step)
    assert all(p.grad is None for p in step.network.get_trainable_params())
    assert count_step(step) == first
