"""Several Linears with one input in one product: the numbers of each alone, and how few products there are."""

import pytest
import torch
from torch import nn

from library.memory.gradient_sums import shared
from library.memory.ledger import Ledger
from library.memory.quantised import QuantisedLinear
from library.memory.recomputation import cheaply, recompute
from library.memory.side_by_side import joined, lay, lay_scales, products
from networks.kinds.adapter import NO_DROPOUT, Dropout
from networks.kinds.copies import Copies
from networks.kinds.fused import NARROW
from networks.kinds.linear import AdaptedLinear
from networks.kinds.lokr import LoKr, lokr_shape
from networks.kinds.lora import LoRA, LoRAArguments

INPUTS, OUTPUTS = 32, 64
META = torch.device("meta")


def linears(*adapters, dtype=torch.float64, is_laid=True, form=None):
    """Frozen Linears, each with an adapter of its own, or without one for None."""
    torch.manual_seed(1)
    bases = [
        nn.Linear(INPUTS, OUTPUTS, bias=False).to(dtype).requires_grad_(False) for _ in adapters
    ]
    if form:
        bases = [QuantisedLinear.of(base, form, torch.device("cpu")) for base in bases]
    elif is_laid:
        lay(bases)
    return [adapted(*pair, dtype) for pair in zip(bases, adapters)]


def adapted(base, make, dtype):
    if make is None:
        return base
    adapter = make(base)
    for factor in adapter.factors().values():
        nn.init.normal_(factor, std=0.5)
    return AdaptedLinear.adopt(base, adapter.double() if dtype == torch.float64 else adapter)


def lora(rank=4, alpha=4.0, dropout=NO_DROPOUT, strength=1.0):
    def make(base):
        adapter = LoRA(base.in_features, base.out_features, rank, alpha, dropout)
        adapter.multiplier = strength
        return adapter

    return make


def pissa(base):
    return LoRAArguments(pissa=True).make(base, 4, 2.0, NO_DROPOUT)


def lokr(base):
    return LoKr(lokr_shape((base.out_features, base.in_features), 2, 4), 1.0)


def outcome(made, is_shared, wants_input=True):
    """What they make of an input, then all gradients."""
    torch.manual_seed(2)
    stored = made[0].weight.dtype
    dtype = stored if stored.itemsize > 1 else torch.float32
    start = torch.randn(2, 5, INPUTS).to(dtype).requires_grad_(wants_input)
    x = shared(2 * start) if is_shared else 2 * start
    found = products(x, made)
    loss = sum((place * each.sin()).sum() for place, each in enumerate(found, 1))
    trained = [*[start] * wants_input, *(p for m in made for p in acting(m))]
    return [*found, *torch.autograd.grad(loss, trained)]


def acting(layer):
    """The factors that take part."""
    adapter = getattr(layer, "adapter", None)
    return adapter.parameters() if adapter is not None and adapter.multiplier else ()


DROPPED = Dropout(neuron=0.3, rank=0.3, module=0.3)
SETS = {
    "alike": (lora(), lora(), lora()),
    "of another strength": (lora(alpha=2.0), lora(alpha=2.0)),
    "of several strengths": (lora(alpha=1.0), lora(alpha=2.0), lora(alpha=3.0)),
    "of several ranks": (lora(4), lora(2), lora(3)),
    "wide": (lora(3 * INPUTS // NARROW), lora(3 * INPUTS // NARROW)),
    "one is not adapted": (lora(), None, lora(alpha=2.0)),
    "one is off": (lora(), lora(strength=0.0)),
    "none is adapted": (None, None, None),
    "dropouts": (lora(dropout=DROPPED), lora(), lora(dropout=DROPPED)),
    "changes of both factors": (pissa, pissa),
}


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("adapters", SETS.values(), ids=SETS)
def test_values_and_gradients_are_those_of_each_alone(adapters, is_shared):
    together, alone = (linears(*adapters, is_laid=each) for each in (True, False))
    found, expected = outcome(together, is_shared), outcome(alone, is_shared)
    assert found[0].stride(1) == len(adapters) * OUTPUTS  # columns of one tensor
    assert expected[0].is_contiguous() and len(found) == len(expected)
    for pair in zip(found, expected):
        torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("adapters", [(lora(), lora(), lora()), (lora(), None), (None, None)])
@pytest.mark.parametrize("form", ["fp8", "int8"])
def test_weights_in_8_bits_are_one_product_too(adapters, form):
    results = []
    for is_laid in (True, False):
        made = linears(*adapters, dtype=torch.float32, form=form)
        if is_laid:
            lay(made)
            lay_scales(made)
        results.append(outcome(made, is_shared=True))
    assert results[0][0].stride(1) == len(adapters) * OUTPUTS
    assert results[1][0].is_contiguous()
    for pair in zip(*results, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)


def test_an_input_without_gradient_gets_none_and_factors_get_theirs():
    found, expected = (
        outcome(linears(lora(), lora(), is_laid=each), False, wants_input=False)
        for each in (True, False)
    )
    for pair in zip(found, expected, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-12)


def turned(make):
    """What is not of low rank, or has a matrix that is not frozen or stands alone."""
    made = linears(lora(), lora())
    if make == "trains":
        made[0].weight.requires_grad_()
    if make == "replaced":
        made[1].weight.data = made[1].weight.data.clone()
    return linears(lora(), lokr) if make == "another kind" else made


@pytest.mark.parametrize("what", ["trains", "replaced", "another kind"])
def test_what_cannot_be_one_product_is_each_its_own(what):
    made = turned(what)
    x = torch.randn(3, INPUTS).double()
    found = products(x, made)
    assert all(each.is_contiguous() for each in found)
    assert all(map(torch.equal, found, (each(x) for each in made)))


def test_no_half_is_promoted_and_autocast_goes_its_own_way():
    made = linears(lora(), lora(), dtype=torch.bfloat16)
    x = torch.randn(3, INPUTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, products(x, made), [each(x) for each in made]))


@pytest.mark.parametrize("around", [cheaply, recompute])
def test_what_is_computed_again_has_the_same_bits(around):
    made = linears(*[lora(dropout=Dropout(neuron=0.2))] * 3, dtype=torch.float32)
    trained = [p for each in made for p in each.parameters() if p.requires_grad]

    def function(x):
        q, k, v = products(shared(x.sin()), made)
        return q * k + v

    x = torch.randn(4, INPUTS, requires_grad=True)
    results = []
    for run in (lambda x: around(function, x), function):
        torch.manual_seed(0)
        results.append(torch.autograd.grad(run(x).sum(), [x, *trained]))
    assert all(map(torch.equal, *results))


def test_copies_that_lie_side_by_side_are_the_bits_of_casting_each():
    made = linears(lora(), lora(), dtype=torch.bfloat16)
    adapters = [each.adapter for each in made]
    downs, ups = ([*pair] for pair in zip(*(each.factors().values() for each in adapters)))
    copies = Copies([*downs, *ups], torch.bfloat16, [downs, ups])
    expected = outcome(made, False)
    for adapter in adapters:
        adapter.use_copies(copies)
    with copies.fresh():
        places = [copies.made[id(factor)][1] for factor in downs]
        assert joined(places) is not None
        found = outcome(made, False)
        assert not copies.made
    assert all(map(torch.equal, found, expected))
    assert found[-1].dtype == torch.float32


COUNTS = {  # products forward; backward without and with a gradient of the input
    (lora(2), lora(2), lora(2)): (3, 7, 11),
    (lora(2), lora(2)): (3, 5, 8),
    (None, None): (1, 0, 2),
}


@pytest.mark.parametrize("adapters, counts", COUNTS.items())
def test_products_are_as_few_as_can_be(adapters, counts):
    made = [each.to(META) for each in linears(*adapters, dtype=torch.bfloat16)]
    lay(made)
    factors = [p for each in made for p in each.parameters() if p.requires_grad]
    for wants_input, backward in zip((False, True), counts[1:]):
        x = torch.randn(7, INPUTS, device=META, dtype=torch.bfloat16, requires_grad=wants_input)
        with Ledger(META) as ledger:
            found = products(x, made)
            launched = ledger.kernels.launched["gemm"]
        assert launched == counts[0]
        trained = [*[x] * wants_input, *factors]
        if trained:
            ones = [torch.empty_like(each) for each in found]
            with Ledger(META) as ledger:
                torch.autograd.grad(found, trained, ones)
            assert ledger.kernels.launched["gemm"] == backward


def test_gradients_that_lie_beside_each_other_are_one_product():
    made = [each.to(META) for each in linears(None, None, None, dtype=torch.bfloat16)]
    lay(made)
    x = torch.randn(7, INPUTS, device=META, dtype=torch.bfloat16, requires_grad=True)
    found = products(x, made)
    pair = torch.empty(7, 2, OUTPUTS, device=META, dtype=torch.bfloat16).unbind(1)
    with Ledger(META) as ledger:
        torch.autograd.grad(found, x, [*pair, torch.empty_like(pair[0])])
    assert ledger.kernels.launched == {"gemm": 2}
