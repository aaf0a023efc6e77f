"""Weights that wait in RAM: the gradients of the same bits, buffers that nobody holds, whole weights."""

import copy

import pytest
import torch
from torch import nn

from library.memory.swapping import BUFFERS, Swap, spread
from tests.helpers.cards import CARD, WIDE, adapted_on, gradients_in_turn, repeatable
from tests.helpers.late_lane import LateLane
from tests.helpers.memory_modes import (
    OnlyCopied,
    adapted,
    assert_same_bits,
    gradients,
    loss_of,
)

BLOCKS = 5
MODES = [None, {"mode": "cheap"}, {"mode": "block"}, {"cpu_offload": True, "every": 2}]


def swapping(kind, dtype=torch.float32, swapped=BLOCKS, mode=None, lane=None):
    """A model whose blocks travel on a late lane: any use too early or too late gives NaN."""
    model, network = adapted(kind, dtype, blocks=BLOCKS)
    if mode:
        model.enable_gradient_checkpointing(**mode)
    if swapped:
        model.enable_block_swap(swapped, "cpu")
        model.swap.lane = lane or LateLane()
    return model, network


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "kind, dtype",
    [
        ("lora dropouts", torch.float32),
        ("lora dropouts", torch.float16),
        ("lokr full", torch.bfloat16),
        ("lokr low", torch.float32),
    ],
)
def test_gradients_are_the_same_bits_for_every_kind_of_adapter(kind, dtype, mode):
    expected = gradients(adapted(kind, dtype, blocks=BLOCKS)[0])
    assert_same_bits(gradients(swapping(kind, dtype, mode=mode)[0]), expected)


@pytest.mark.parametrize("swapped", [1, 2, 4])
def test_some_blocks_can_stay(swapped):
    expected = gradients(adapted("lora dropouts", blocks=BLOCKS)[0])
    model, _ = swapping("lora dropouts", swapped=swapped, mode={"mode": "block"})
    assert_same_bits(gradients(model), expected)
    assert_same_bits(gradients(model), expected)


@pytest.mark.parametrize("mode", MODES)
def test_accumulation_validation_and_two_graphs_at_once_change_nothing(mode):
    def trained(model):
        for seed in (1, 2):
            loss_of(model, seed=seed).backward()
            with torch.no_grad():
                loss_of(model, seed=3)
        first, second = loss_of(model, seed=4), loss_of(model, seed=5)
        first.backward()
        second.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    expected = trained(adapted("lora", blocks=BLOCKS)[0])
    assert_same_bits(trained(swapping("lora", mode=mode)[0]), expected)


def test_what_rests_in_ram_stays_there_when_memory_is_short():
    """As an LLM adapter does whose contexts are made."""
    model, _ = adapted("lora linears", blocks=BLOCKS)
    model.to("meta").llm_adapter.to_empty(device="cpu")
    model.enable_block_swap(BLOCKS, "meta")
    assert {each.device.type for each in model.llm_adapter.parameters()} == {"cpu"}
    assert model.final_layer.linear.weight.is_meta


def test_a_swap_that_lets_autograd_hold_a_buffer_gives_wrong_gradients(monkeypatch):
    """What the stand-ins are for; without them the test above would see it."""
    expected = gradients(adapted("lora", blocks=BLOCKS)[0])
    model, _ = swapping("lora")
    monkeypatch.setattr(Swap, "stand_in_for", lambda self, kept: kept)
    found = gradients(model)
    assert any(not torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_that_waits_for_the_backward_pass_is_a_buffer(mode):
    model, _ = swapping("lora", mode=mode)
    loss = loss_of(model)
    for buffer in model.swap.buffers:
        buffer.memory.fill_(255)
        buffer.number = None
    model.swap.current = None
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert_same_bits(found, gradients(adapted("lora", blocks=BLOCKS)[0]))


@pytest.mark.parametrize("mode", MODES)
def test_nothing_computes_with_weights_in_ram(mode):
    model, _ = swapping("lora dropouts", mode=mode)
    weights = [weight for group in model.swap.groups for weight in group]
    with OnlyCopied([*weights, *model.modulations.stack]):
        gradients(model)
        with pytest.raises(AssertionError, match="of a weight in RAM"):
            model.blocks[0].mlp.layer1(torch.ones(2, 32))


def test_weights_are_whole_outside_of_their_block():
    model, network = swapping("lora")
    plain, other = adapted("lora", blocks=BLOCKS)
    weights = {name: weight for name, weight in model.named_parameters()}
    gradients(model)
    assert_same_bits(model.state_dict(), plain.state_dict())
    assert all(weight is weights[name] for name, weight in model.named_parameters())
    assert_same_bits(network.export_tensors(torch.float32), other.export_tensors(torch.float32))


def test_merged_weights_are_those_that_compute():
    def losses(model, network):
        with torch.no_grad():
            before = loss_of(model)
            with network.merged():
                merged = loss_of(model)
            network.set_multiplier(0)
            return [loss.item() for loss in (before, merged, loss_of(model))]

    expected = losses(*adapted("lora linears", blocks=BLOCKS))
    assert losses(*swapping("lora linears")) == expected
    assert expected[2] != pytest.approx(expected[1], rel=1e-4)


def test_weights_changed_in_place_are_fetched_again():
    model, _ = swapping("lora", swapped=2)
    plain, _ = adapted("lora", blocks=BLOCKS)
    loss_of(model)
    for each in (model, plain):
        with torch.no_grad():
            for name, weight in each.named_parameters():
                if name.startswith("blocks") and not weight.requires_grad:
                    weight.mul_(0.5)
    assert_same_bits(gradients(model), gradients(plain))


def test_a_failing_block_leaves_its_weights_whole():
    model, _ = swapping("lora")
    before = copy.deepcopy(model.state_dict())
    hook = model.blocks[3].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss_of(model)
    hook.remove()
    assert_same_bits(model.state_dict(), before)
    assert_same_bits(gradients(model), gradients(adapted("lora", blocks=BLOCKS)[0]))


def fetches(model, run):
    """The groups whose copies were ordered, in order."""
    order, fill = [], type(model.swap.buffers[0]).fill

    def noted(buffer, number, *others):
        order.append(number)
        fill(buffer, number, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.swap.buffers[0]), "fill", noted)
        run(model)
    return order


@pytest.mark.parametrize("mode", MODES)
def test_each_pass_fetches_what_the_last_did_not_leave(mode):
    model, _ = swapping("lora", mode=mode)
    assert len(model.swap.buffers) == BUFFERS
    assert fetches(model, gradients) == [0, 1, 2, 3, 4, 2, 1, 0]
    assert fetches(model, gradients) == [2, 3, 4, 2, 1, 0]


def test_passes_without_backward_start_with_what_comes_next():
    model, _ = swapping("lora")

    @torch.no_grad()
    def validate(model):
        loss_of(model)

    assert fetches(model, validate) == [0, 1, 2, 3, 4, 0]
    assert fetches(model, validate) == [1, 2, 3, 4, 0]


def test_swapped_blocks_lie_as_far_apart_as_they_can():
    assert spread(28, 28) == list(range(28))
    assert spread(2, 8) == [2, 6] and spread(1, 3) == [1]


def test_weights_of_several_dtypes_and_sizes_share_a_buffer():
    def group(seed):
        torch.manual_seed(seed)
        tensors = [torch.randn(3, 5).to(torch.bfloat16), torch.randn(7), torch.ones(2, 2).char()]
        return [nn.Parameter(tensor, requires_grad=False) for tensor in tensors]

    groups = [group(seed) for seed in range(5)]
    expected = [weight.clone() for group in groups for weight in group]
    swap, found = Swap(groups, torch.device("cpu"), LateLane()), []
    for number, weights in enumerate(groups):
        with swap.present(number):
            found += [weight.clone() for weight in weights]
    assert all(map(torch.equal, found, expected))


FORMS = [("fp8", {"mode": "block"}), ("int8_rotated", {"cpu_offload": True}), ("nf4", {"mode": "cheap"})]


@pytest.mark.gpu
@pytest.mark.parametrize("form, mode", [*((None, mode) for mode in MODES), *FORMS])
def test_on_a_card_gradients_are_of_the_same_bits(form, mode):
    """Copies take longer than what is computed between them, so that each has to be waited for."""
    if form == "nf4":
        pytest.importorskip("bitsandbytes")
    with repeatable():
        expected = gradients_in_turn(adapted_on(CARD, form=form, width=WIDE))
        for swapped in (2, 3, BLOCKS):  # a buffer for each, and a buffer for several
            model = adapted_on(CARD, form=form, mode=mode, swapped=swapped, width=WIDE)
            assert_same_bits(gradients_in_turn(model), expected)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("fused", [False, True])
def test_on_the_second_card_all_is_as_on_the_first(fused):
    """While the first is the current one."""
    first, second = (
        gradients_in_turn(adapted_on(torch.device("cuda", card), "lokr full", fused=fused, swapped=3))
        for card in range(2)
    )
    for name, gradient in second.items():
        assert gradient.device.index == 1
        apart = (gradient.cpu() - first[name].cpu()).norm()
        assert apart <= 0.05 * first[name].norm(), name
