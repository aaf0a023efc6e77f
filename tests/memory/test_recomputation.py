"""What is computed again: gradients of the same bits, less memory kept, mistakes that are seen."""

import pytest
import torch
from torch.nn import functional as F

from library.anima_backend.modelling.kernel_trial import why_not
from library.memory.recomputation import (
    cheap,
    cheaply,
    counts,
    last,
    needed,
    recompute,
    uncounted,
)
from tests.helpers.alive import Alive
from tests.helpers.cards import CARD, adapted_on, gradients_in_turn, repeatable
from tests.helpers.memory_modes import (
    KINDS,
    adapted,
    assert_same_bits,
    gradients,
    kept_by_forward,
    loss_of,
)

WAYS = [cheaply, recompute]
MODES = [{"mode": "cheap"}, {"mode": "block"}, {"cpu_offload": True, "every": 2}]
CASES = [(kind, torch.float32) for kind in KINDS] + [
    ("lora dropouts", torch.float16),
    ("lokr full", torch.bfloat16),
]


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return [torch.randn(8, 8, requires_grad=True) for _ in range(2)]


def layer(x, weight):
    return cheap(F.gelu, x @ weight) @ weight


def gradients_of(run, pair):
    return torch.autograd.grad(run(*pair).square().sum(), pair)


def equal(found, expected):
    return all(torch.equal(*both) for both in zip(found, expected, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_one_graph_gives_the_same_bits_twice(way, pair):
    expected = gradients_of(layer, pair)
    result = way(layer, *pair).square().sum()
    assert equal(torch.autograd.grad(result, pair, retain_graph=True), expected)
    assert equal(torch.autograd.grad(result, pair), expected)


@pytest.mark.parametrize("way", WAYS)
def test_a_gradient_of_some_inputs_only_leaves_the_others_right(way, pair):
    result = way(layer, *pair).square().sum()
    first, second = gradients_of(layer, pair)
    assert equal(torch.autograd.grad(result, pair[:1], retain_graph=True), [first])
    assert equal(torch.autograd.grad(result, pair[1:]), [second])


@pytest.mark.parametrize("way", WAYS)
def test_without_gradients_nothing_is_special(way, pair):
    with torch.no_grad():
        assert torch.equal(way(layer, *pair), layer(*pair))


@pytest.mark.parametrize("way", WAYS)
def test_an_input_changed_in_place_is_an_error(way, pair):
    def run(x, weight):
        hidden = x * 1
        result = way(lambda *inputs: cheap(torch.sigmoid, hidden) @ inputs[1], hidden, weight)
        hidden.add_(1)
        return result

    with pytest.raises(RuntimeError, match="changed in place"):
        gradients_of(run, pair)


def test_what_is_changed_after_its_cheap_part_is_kept_as_it_is(pair):
    def run(x, weight):
        return cheap(torch.mul, x, 2).add_(1) @ weight

    expected = gradients_of(run, pair)
    assert equal(gradients_of(lambda *inputs: cheaply(run, *inputs), pair), expected)


def test_a_part_that_returns_its_input_is_no_part(pair):
    def run(x, weight):
        return cheap(torch.Tensor.contiguous, x) @ weight

    expected = gradients_of(run, pair)
    assert equal(gradients_of(lambda *inputs: cheaply(run, *inputs), pair), expected)


def test_what_runs_again_ends_without_its_result(pair):
    """But for what is kept of it, which is made of a result that counts."""
    counted = []

    def product(x, weight):
        counted.append(counts())
        result = x @ weight
        return result if counts() else uncounted(result, 8, 8)

    def ending(x, weight):
        return needed(product, x, weight).sigmoid() + product(x, weight)

    def run(x, weight):
        return last(ending, product(x, weight), weight)

    expected = gradients_of(run, pair)
    counted.clear()
    assert equal(gradients_of(lambda *inputs: recompute(run, *inputs), pair), expected)
    assert counted == [True, True, True, True, True, False]


def test_a_function_that_keeps_another_number_of_tensors_is_an_error(pair):
    calls = []

    def run(x, weight):
        calls.append(x)
        return x @ weight if len(calls) > 1 else torch.sigmoid(x @ weight)

    with pytest.raises(RuntimeError, match="kept 3 tensors, then 2"):
        gradients_of(lambda *inputs: recompute(run, *inputs), pair)


def test_random_draws_are_repeated_and_the_generator_left_alone(pair):
    def run(x, weight):
        return F.dropout(x @ weight, 0.5) @ weight

    torch.manual_seed(1)
    expected, after = gradients_of(run, pair), torch.rand(1)
    torch.manual_seed(1)
    found = gradients_of(lambda *inputs: recompute(run, *inputs), pair)
    assert equal(found, expected) and torch.equal(torch.rand(1), after)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("within", [True, False])
def test_autocast_is_as_it_was(way, within, pair):
    """Also for a backward pass that is told inside of autocast of a forward pass outside of it."""

    def run(function):
        with torch.autocast("cpu", torch.bfloat16, enabled=within):
            result = function(*pair)
        with torch.autocast("cpu", torch.bfloat16, enabled=not within):
            return torch.autograd.grad(result.float().square().sum(), pair)

    assert equal(run(lambda *inputs: way(layer, *inputs)), run(layer))


@pytest.mark.parametrize("way", WAYS)
def test_a_graph_that_is_not_used_frees_its_memory_at_once(way, pair):
    with Alive(pair) as alive:
        result = way(lambda *inputs: layer(*inputs).softmax(-1), *pair)  # softmax keeps its result
        del result
        assert alive.size() == 0


@pytest.mark.parametrize("kind, dtype", CASES)
def test_every_mode_gives_the_gradients_of_plain_training(kind, dtype):
    model, _ = adapted(kind, dtype)
    expected = gradients(model)
    for mode in MODES[:2]:
        model, _ = adapted(kind, dtype)
        model.enable_gradient_checkpointing(**mode)
        assert_same_bits(gradients(model), expected)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_add_up_and_validation_between_changes_nothing(mode):
    def accumulated(model):
        for seed in (1, 2):
            loss_of(model, seed=seed).backward()
            with torch.no_grad():
                loss_of(model, seed=3)
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    model, _ = adapted("lora dropouts")
    expected = accumulated(model)
    model, _ = adapted("lora dropouts")
    model.enable_gradient_checkpointing(**mode)
    assert_same_bits(accumulated(model), expected)


def test_every_nth_block_is_recomputed_and_not_the_last():
    def chosen(every, blocks):
        model, _ = adapted("norms", blocks=blocks)
        model.enable_gradient_checkpointing(mode="cheap")
        model.enable_gradient_checkpointing(every=every)
        return [number for number, mode in enumerate(model.recomputing) if mode == "block"]

    model, _ = adapted("norms", blocks=3)
    model.enable_gradient_checkpointing()
    assert model.recomputing == ["block", "block", "cheap"]
    assert chosen(1, 3) == [0, 1] and chosen(1, 1) == []
    assert chosen(2, 4) == [0, 2] and chosen(2, 5) == [1, 3]
    assert chosen(3, 7) == [1, 4] and chosen(3, 2) == []


def units_of_a_block(kind, tokens, **mode):
    """What one more block keeps, in units of 2 bytes x tokens x width."""
    width, side, sizes = 64, 2 * int(tokens**0.5), []
    for blocks in (1, 2):
        model, _ = adapted(kind, torch.bfloat16, blocks=blocks, width=width)
        if mode:
            model.enable_gradient_checkpointing(**mode)
        sizes.append(kept_by_forward(model, side))
    return (sizes[1] - sizes[0]) / (2 * 2 * tokens * width)  # two pictures


@pytest.mark.parametrize(
    "kind, mode, most",
    [
        ("lora linears", "cheap", 16.5),
        ("lora", "cheap", 20),
        ("lora linears", "block", 1.2),
        ("lokr full", "block", 1.2),
    ],
)
def test_what_a_block_keeps(kind, mode, most):
    """Of 12 units of width 64 with the text, the factors and the log-sums of attention, which weigh
    more than at 2048; the true size is the ledger's."""
    assert units_of_a_block(kind, 1024, mode=mode) < most


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["lora dropouts", "lokr full", "dora", "norms"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_on_a_card_every_mode_gives_the_same_bits(kind, fused):
    """With the kernels that a run has there, and where what runs again ends without its result."""
    if fused and (reason := why_not(CARD, torch.bfloat16)):
        pytest.skip(reason)
    with repeatable():
        expected = gradients_in_turn(adapted_on(CARD, kind, fused=fused))
        for mode in MODES:
            found = gradients_in_turn(adapted_on(CARD, kind, fused=fused, mode=mode))
            assert_same_bits(found, expected)
