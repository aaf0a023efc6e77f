"""The Function beside a Linear: values and gradients of the plain form, and what it keeps."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from library.memory.ledger import Ledger
from networks.kinds.adapter import Dropout
from networks.kinds.copies import NO_COPIES, Copies
from networks.kinds.frozen import base_product
from networks.kinds.fused import Chain, add_chain, has_wide_product, wide_product
from networks.kinds.linear import AdaptedLinear
from networks.kinds.lokr import LoKr, cheapest_mix, lokr_shape
from networks.kinds.lora import LoRA

SIZES = [  # l, m, k, n, rank: w1 (l, m) and w2 (k, n), full or through a rank; without w1 a LoRA
    (8, 8, 4, 4, None), (2, 3, 5, 7, None), (1, 4, 6, 2, None), (8, 4, 3, 9, None),
    (4, 2, 9, 3, 2), (8, 8, 32, 8, 2), (None, 1, 10, 12, 3),
]  # fmt: skip


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def case(l, m, k, n, rank, masked):
    """x, weight, bias, the chain and its factors, which want gradients."""
    torch.manual_seed(0)
    w1 = [] if l is None else [randn(l, m)]
    w2 = [randn(k, n)] if rank is None else [randn(rank, n), randn(k, rank)]
    widths = [w2[0].shape[1], *(each.shape[0] for each in w2)]
    mix_at = cheapest_mix((l, m), widths) if w1 else None
    x, weight, bias = randn(2, 5, m * n), randn((l or 1) * k, m * n), randn((l or 1) * k)
    masks = [None] * (len(w1) + len(w2))
    if masked:
        shapes = step_shapes(x, mix_at, w1, w2)
        masks = [(torch.rand(shape) > 0.4).double() for shape in shapes]
    factors = [factor.requires_grad_() for factor in (*w1, *w2)]
    return x.requires_grad_(), weight, bias, Chain(m, mix_at, 0.7, tuple(masks)), factors


def in_order(mix_at, w1, w2):
    steps = [("inside", matrix) for matrix in w2]
    if w1:
        steps.insert(mix_at, ("across", w1[0]))
    return steps


def apply(step, hidden):
    kind, matrix = step
    if kind == "inside":
        return F.linear(hidden, matrix)
    return torch.einsum("lm,...mw->...lw", matrix, hidden)


def step_shapes(x, mix_at, w1, w2):
    hidden, shapes = x.unflatten(-1, (w1[0].shape[1] if w1 else 1, -1)), []
    for step in in_order(mix_at, w1, w2):
        hidden = apply(step, hidden)
        shapes.append(hidden.shape)
    return shapes


def plainly(x, weight, bias, chain, factors):
    """The same by autograd alone."""
    w1 = factors[:1] if chain.mix_at is not None else []
    hidden = x.unflatten(-1, (chain.groups, -1))
    steps = in_order(chain.mix_at, w1, factors[len(w1) :])
    for step, mask in zip(steps, chain.masks):
        hidden = apply(step, hidden)
        hidden = hidden if mask is None else hidden * mask
    return F.linear(x, weight, bias) + chain.strength * hidden.flatten(-2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_values_and_gradients_are_those_of_the_plain_form(sizes, masked):
    given = case(*sizes, masked)
    wanted = [given[0], *given[4]]
    made, expected = add_chain(*given), plainly(*given)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(made)
    found = torch.autograd.grad(made, wanted, grad)
    for one, other in zip(found, torch.autograd.grad(expected, wanted, grad)):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


NO_DROPOUT = Dropout()


def layers(dtype=torch.float32, dropout=NO_DROPOUT):
    torch.manual_seed(0)
    adapters = {
        "lora": LoRA(64, 96, 4, 2.0, dropout),
        "lokr full": LoKr(lokr_shape((96, 64), 4, 8, full_matrix=True), 1.0, dropout),
        "lokr low": LoKr(lokr_shape((96, 64), 2, 8), 1.0, dropout),
        "lokr both": LoKr(lokr_shape((96, 64), 2, 16, decompose_both=True), 1.0, dropout),
    }
    for name, adapter in adapters.items():
        for factor in adapter.factors().values():
            nn.init.normal_(factor, std=0.3)
        base = nn.Linear(64, 96, dtype=dtype).requires_grad_(False)
        yield name, AdaptedLinear.adopt(base, adapter)


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_layer_equals_its_plain_form(dtype, bound):
    for name, layer in layers(dtype):
        x = torch.randn(2, 7, 64, dtype=dtype, requires_grad=True)
        factors = list(layer.adapter.factors().values())
        made = layer(x)
        plain = base_product(x, layer.weight, layer.bias) + layer.adapter.added(x)
        grad = torch.randn_like(made)
        found = torch.autograd.grad(made, [x, *factors], grad)
        expected = torch.autograd.grad(plain, [x, *factors], grad)
        for one, other in zip([made, *found], [plain, *expected]):
            assert one.dtype == other.dtype, name
            assert (one - other).float().norm() <= bound * other.float().norm(), name


def kept_bytes(layer, x):
    """What autograd keeps beside the input and the parameters, as they are and as they are used."""
    kept = {}

    def see(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        out = layer(x)
    of_factors = sum(2 * factor.numel() for factor in layer.adapter.parameters())
    known = [x, *layer.parameters()]
    for tensor in known:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(kept.values()) - of_factors, out


def test_nothing_of_an_inputs_size_is_kept():
    x = torch.randn(1, 512, 64, dtype=torch.bfloat16, requires_grad=True)
    for name, layer in layers(torch.bfloat16):
        kept, _ = kept_bytes(layer, x)
        assert kept <= x.nbytes / 4, name


def test_with_dropout_every_factor_learns_and_the_mean_stays():
    for name, layer in layers(dropout=Dropout(neuron=0.3, rank=0.3)):
        x = torch.randn(3, 5, 64)
        layer.eval()
        expected = layer(x)
        layer.train()
        drawn = torch.stack([layer(x) for _ in range(400)])
        assert (drawn.mean(0) - expected).norm() < 0.15 * drawn.std(0).norm(), name
        sum(layer(x).square().sum() for _ in range(20)).backward()
        assert all(factor.grad.abs().sum() > 0 for factor in layer.adapter.parameters()), name


def test_an_input_without_gradient_gets_none():
    for _, layer in layers():
        layer(torch.randn(2, 3, 64)).sum().backward()
        assert layer.weight.grad is None
        assert all(factor.grad is not None for factor in layer.adapter.parameters())


class TwoLayers(nn.Module):
    """Two adapted layers in a model with one copy of their factors."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(layer for _, layer in layers(torch.bfloat16))
        factors = [f for layer in self.layers for f in layer.adapter.parameters()]
        self.copies = Copies(factors, torch.bfloat16)
        for layer in self.layers:
            layer.adapter.copies = self.copies
        self.copies.stand_before(self)

    def forward(self, x):
        return sum(layer(x).float().square().mean() for layer in self.layers)


def gradients(model, x, copies):
    for layer in model.layers:
        layer.adapter.copies = copies
    loss = model(x)
    model.zero_grad()
    loss.backward()
    return loss, [f.grad.clone() for f in model.copies.factors]


def test_copies_give_the_bits_of_casting_each_factor():
    model, x = TwoLayers(), torch.randn(2, 5, 64, dtype=torch.bfloat16)
    made, expected = gradients(model, x, model.copies), gradients(model, x, NO_COPIES)
    assert torch.equal(made[0], expected[0])
    assert all(map(torch.equal, made[1], expected[1]))


@pytest.mark.parametrize("change", ["counted", "uncounted"])
def test_a_pass_sees_the_factors_as_they_are(change):
    """Also where they are changed past autograd's counters, as 8-bit optimizers do it."""
    model, x = TwoLayers(), torch.randn(2, 5, 64, dtype=torch.bfloat16)
    model(x)
    with torch.no_grad():
        for factor in model.copies.factors:
            (factor if change == "counted" else factor.data).mul_(3)
    made = gradients(model, x, model.copies)
    expected = gradients(model, x, NO_COPIES)
    assert torch.equal(made[0], expected[0])
    assert all(map(torch.equal, made[1], expected[1]))


def test_a_pass_keeps_its_copies_until_its_backward():
    model, x = TwoLayers(), torch.randn(2, 5, 64, dtype=torch.bfloat16)
    _, expected = gradients(model, x, model.copies)
    loss = model(x)
    with torch.no_grad():
        model(x + 1)
    model.zero_grad()
    loss.backward()
    assert all(torch.equal(f.grad, e) for f, e in zip(model.copies.factors, expected))


def test_a_copy_that_was_used_is_let_go():
    model, x = TwoLayers(), torch.randn(2, 5, 64, dtype=torch.bfloat16)
    model.copies.make(model, None)
    made = model.copies.made.keys()
    first = {id(factor) for factor in model.layers[0].adapter.parameters()}
    assert made == {id(factor) for factor in model.copies.factors} > first
    with torch.no_grad():
        model.layers[0](x)
    assert made == {id(factor) for factor in model.copies.factors} - first


def test_a_deep_copy_copies_its_own_factors():
    model, x = TwoLayers(), torch.randn(2, 5, 64, dtype=torch.bfloat16)
    before = model(x)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for factor in twin.copies.factors:
            factor.zero_()
    assert not torch.equal(twin(x), before)
    assert torch.equal(model(x), before)
    assert twin.layers[0].adapter.copies is twin.copies


def test_gradients_in_float32_are_rounded_once():
    """Where a device has such products; the CPU has none, and the meta device stands for CUDA."""
    halves = {"dtype": torch.bfloat16, "device": "cpu"}
    a, b = torch.ones(3, 300, **halves), torch.full((300, 2), 1.0078125, **halves)
    assert not has_wide_product(a.device, a.dtype)
    assert torch.equal(wide_product(a, b, torch.float32), (a @ b).float())
    with Ledger(torch.device("meta")) as ledger:
        found = wide_product(a.to("meta"), b.to("meta"), torch.float32)
    assert (found.dtype, found.shape) == (torch.float32, (3, 2))
    assert ledger.kernels.launched == {"gemm": 1}
