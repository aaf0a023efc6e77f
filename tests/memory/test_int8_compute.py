"""Products in int8: how near they are, whatever is around them, and when they are left off."""

import time
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from library.memory.int8_probe import Products, why_not
from library.memory.quantised import FEWEST_ROWS, Quantised, Rotated
from library.memory.rotation import hadamard, integer_product, kept_hadamard, rotated
from networks.kinds.linear import AdaptedLinear
from tests.helpers import stored_weights
from tests.helpers.memory_modes import (
    assert_same_bits,
    gradients,
    kept_by_forward,
    loss_of,
)
from tests.helpers.stored_weights import assert_compiled_is_the_same
from tests.helpers.tiny import rel_l2

CPU = torch.device("cpu")
MODES = [{"mode": "cheap"}, {"mode": "block"}, {"cpu_offload": True}]


def matrices(rows=192, width=512, out=384, outliers=False):
    """Input, weight and the gradient of the output; one channel of a hundred may be 30 times as large."""
    torch.manual_seed(0)
    x, grad = torch.randn(rows, width), torch.randn(rows, out)
    if outliers:
        x[:, ::100] *= 30
        grad[:, ::100] *= 30
    return x, torch.randn(out, width) * width**-0.5, grad


@pytest.mark.parametrize("size", [1, 2, 64, 128])
def test_the_rotation_is_its_own_inverse_and_leaves_products_as_they_are(size):
    torch.manual_seed(0)
    matrix = hadamard(size, CPU)
    assert torch.equal(matrix, matrix.t())
    x, weight = torch.randn(3, 3 * size), torch.randn(4, 3 * size)
    torch.testing.assert_close(rotated(rotated(x)), x)
    torch.testing.assert_close(rotated(x) @ rotated(weight).t(), x @ weight.t(), rtol=1e-5, atol=5e-5)


def test_the_rotation_is_float32_whatever_new_tensors_are():
    expected = hadamard(128, CPU)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = hadamard(128, CPU)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype is torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outliers", [False, True])
def test_products_are_within_1_4_percent_of_float64_forward_and_backward(dtype, outliers):
    x, weight, grad = matrices(outliers=outliers)
    stored = Rotated.of(weight, "int8_rotated")
    assert stored.codes.dtype == torch.int8 and stored.scale.shape == (len(weight), 1)
    forward = rel_l2(stored.product(x.to(dtype), None), x.double() @ weight.double().t())
    backward = rel_l2(stored.gradient(grad.to(dtype)), grad.double() @ weight.double())
    assert 0.005 < forward < 0.014 and 0.005 < backward < 0.014
    assert rel_l2(stored.dense(torch.float32), weight) < 0.009
    if outliers:  # which without the rotation 8 bits do not hold
        plain = Quantised.of(weight, "int8")
        unturned = integer_product(x, plain.codes.t()) * plain.scale.t()
        assert rel_l2(unturned, x.double() @ weight.double().t()) > 0.03


def test_the_product_is_that_of_the_rounded_numbers():
    x, weight, _ = matrices(rows=FEWEST_ROWS)
    codes = Quantised.of(weight, "int8").codes.t()
    step = x.abs().amax(1, keepdim=True) / 127
    exact = (x / step).round().double() @ codes.double() * step.double()
    torch.testing.assert_close(integer_product(x, codes).double(), exact, rtol=1e-6, atol=0)
    assert torch.equal(integer_product(torch.zeros(32, 512), codes), torch.zeros(32, 384))


@pytest.mark.parametrize("tokens", [118, 120])
def test_rows_are_multiplied_in_thirty_twos_as_cublas_wants_them(tokens):
    """Rows that are added are left out again."""
    x, codes = torch.randn(128, 64), torch.randint(-127, 128, (64, 32), dtype=torch.int8)
    seen = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._int_mm.default:
                seen.append(len(args[0]))
            return function(*args, **(kwargs or {}))

    with Seen():
        found = integer_product(x[:tokens], codes)
    assert seen == [128] and torch.equal(found, integer_product(x, codes)[:tokens])


def test_a_few_rows_are_multiplied_as_floats():
    x, weight, grad = matrices(rows=FEWEST_ROWS - 1)
    stored = Rotated.of(weight, "int8_rotated")
    dense = stored.dense(torch.float32)
    assert torch.equal(stored.product(x, None), F.linear(x, dense))
    assert torch.equal(stored.gradient(grad), grad @ dense)


storing = partial(
    stored_weights.storing, "lora dropouts", form="int8_rotated", dtype=torch.bfloat16, width=64
)


def test_an_adapter_sees_the_activations_as_they_are():
    """What its factors learn from one input and one gradient does not depend on the base's form."""
    found = {}
    for form in (None, "int8_rotated"):
        layer = storing(form=form)[0].blocks[0].mlp.layer1
        assert isinstance(layer, AdaptedLinear)
        torch.manual_seed(2)
        x = torch.randn(64, layer.in_features).bfloat16()
        layer(x).backward(torch.randn(64, layer.out_features).bfloat16())
        found[form] = {name: p.grad for name, p in layer.adapter.named_parameters()}
    assert_same_bits(found["int8_rotated"], found[None])


def test_memory_modes_give_the_same_bits():
    expected = gradients(storing()[0], side=16)
    for mode in MODES:
        assert_same_bits(gradients(storing(mode=mode)[0], side=16), expected)
    assert_same_bits(gradients(storing(swapped=2)[0], side=16), expected)


def test_nothing_more_is_kept_than_with_weights_made_whole_but_the_rotations():
    rotations = 4 * (16**2 + 32**2)  # bytes, of all layers together
    kept_hadamard.cache_clear()  # they are made where they are first used, by whatever test
    kept = {form: kept_by_forward(storing(form=form)[0], 16) for form in ("int8_rotated", "int8")}
    assert kept["int8_rotated"] == kept["int8"] + rotations


def losses(form):
    """Of eight updates."""
    model, network = storing(form=form)
    optimizer = torch.optim.AdamW(network.get_trainable_params(), lr=2e-2)
    found = []
    for _ in range(8):
        loss = loss_of(model, side=16)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_a_short_loss_curve_stays_within_half_a_percent_of_that_in_bf16():
    whole, integer = losses(None), losses("int8_rotated")
    assert whole[-1] < 0.9 * whole[0]
    assert max(abs(a - b) / b for a, b in zip(integer, whole)) < 0.005


def test_a_compiled_product_is_the_same():
    assert_compiled_is_the_same("int8_rotated")


SMALL = Products(64, {(32, 64): 3, (64, 32): 1})


def probe(*changes):
    """With one change for each function that is wrapped: the float product's, then the integer one's."""
    given = iter(changes * len(SMALL.shapes))
    return why_not(SMALL, torch.bfloat16, CPU, lambda function: next(given)(function))


def same(function):
    return function


def slow(function):
    def call(x):
        time.sleep(0.02)
        return function(x)

    return call


def wrong(function):
    return lambda x: 2 * function(x)


def missing(function):
    def call(x):
        raise RuntimeError("no such kernel\nmore")

    return call


def test_the_probe_says_why_products_in_int8_are_left_off():
    state = torch.get_rng_state()
    assert probe(slow, same) is None
    assert " ms a step here, in bfloat16 " in probe(same, slow)
    assert probe(same, missing) == "cpu cannot (no such kernel)"
    assert probe(same, wrong) == "cpu computes (64, 64) x (64, 32) wrongly in int8"
    assert torch.equal(torch.get_rng_state(), state)
