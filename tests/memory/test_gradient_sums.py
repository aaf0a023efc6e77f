"""Gradients that products add up themselves: those of autograd, whoever uses the tensor."""

import pytest
import torch
from torch import nn

from library.memory.gradient_sums import shared, sum_for
from library.memory.ledger import Ledger
from library.memory.quantised import QuantisedLinear
from library.memory.recomputation import cheaply, recompute
from networks.kinds.linear import AdaptedLinear
from networks.kinds.lora import LoRA

CPU = torch.device("cpu")
FORMS = {torch.float64: 1e-12, torch.bfloat16: 0.01}


def lora(base):
    adapter = LoRA(base.in_features, base.out_features, 2, 1.0)
    nn.init.normal_(adapter.lora_up)
    return AdaptedLinear.adopt(base, adapter)


def plain(base):
    return base


def stored(form):
    return lambda base: lora(QuantisedLinear.of(base, form, CPU))


def layers(makers, dtype):
    torch.manual_seed(0)
    bases = [nn.Linear(64, 64, bias=False).to(dtype).requires_grad_(False) for _ in makers]
    made = [make(base) for make, base in zip(makers, bases)]
    return [each.double() for each in made] if dtype == torch.float64 else made


def use(x, made, is_shared):
    x = shared(2 * x) if is_shared else 2 * x
    return sum(layer(x).sin() for layer in made)


MADE = {
    "adapted": (lora, lora, lora),
    "beside one that is not": (lora, plain, lora),
    "none": (plain, plain),
    "alone": (lora,),
    "fp8": (stored("fp8"), stored("int8"), lora),
    "int8 products": (stored("int8_rotated"), lora),
}


@pytest.mark.parametrize("makers", MADE.values(), ids=MADE)
@pytest.mark.parametrize("dtype", FORMS)
def test_the_sum_is_autograds(makers, dtype):
    if dtype == torch.float64 and any(maker not in (lora, plain) for maker in makers):
        dtype = torch.float32
    made = layers(makers, dtype)
    x = torch.randn(2, 40, 64).to(dtype).requires_grad_()
    trained = [x, *(p for layer in made for p in layer.parameters() if p.requires_grad)]
    found, expected = (
        torch.autograd.grad(use(x, made, each).float().sum(), trained) for each in (True, False)
    )
    limit = FORMS.get(dtype, 1e-5)
    for pair in zip(found, expected):
        torch.testing.assert_close(*pair, rtol=limit, atol=limit * pair[1].abs().max().item())


def test_every_backward_pass_has_its_own_sum():
    """One that ends before the tensor leaves nothing behind for the next."""
    made, x = layers((lora, lora), torch.float64), torch.randn(4, 64).double().requires_grad_()
    out = use(x, made, is_shared=True).sum()
    (expected,) = torch.autograd.grad(use(x, made, is_shared=False).sum(), x)
    torch.autograd.grad(out, made[0].adapter.lora_up, retain_graph=True)
    for _ in range(2):
        (found,) = torch.autograd.grad(out, x, retain_graph=True)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("around", [cheaply, recompute])
def test_what_is_computed_again_has_the_same_bits(around):
    made, x = layers((lora, lora), torch.float32), torch.randn(4, 64).requires_grad_()

    def function(x):
        return use(x, made, is_shared=True)

    found, expected = (
        torch.autograd.grad(run(x).sum(), x)[0] for run in (lambda x: around(function, x), function)
    )
    assert torch.equal(found, expected)


def test_nothing_is_added_beside_the_products():
    meta = torch.device("meta")
    made = [layer.to(meta) for layer in layers((lora, lora, lora), torch.bfloat16)]
    kernels = {}
    for is_shared in (True, False):
        x = torch.randn(4, 64, device=meta, dtype=torch.bfloat16).requires_grad_()
        with Ledger(meta) as ledger:
            torch.autograd.grad(use(x, made, is_shared).sum(), x)
        kernels[is_shared] = ledger.kernels.launched["glue"]
    assert kernels[False] - kernels[True] == 2


def test_what_has_no_gradient_is_left_as_it_is():
    x = torch.randn(3, 4)
    assert shared(x) is x and sum_for(x) is None
    with torch.no_grad():
        assert sum_for(shared(x.requires_grad_())) is None
