"""Small models whose frozen weights are stored in a form, and the same with what they stand for."""

from __future__ import annotations

import torch
from torch import nn

from library.memory.quantised import QuantisedLinear, frozen_weight
from tests.helpers.late_lane import LateLane
from tests.helpers.memory_modes import KINDS, attached, small_dit

CPU = torch.device("cpu")


def storing(kind, form="fp8", dtype=torch.float32, mode=None, swapped=0, dense=False, **sizes):
    """A small model with adapters: of a kind by name, or an entry module with its options.

    form: None: weights as they are; dense: plain Linears of what the stored weights stand for
    """
    module, options = KINDS[kind] if isinstance(kind, str) else kind
    model = small_dit(**sizes).to(dtype).requires_grad_(False)
    if form:
        model.quantise(form, CPU, llm_adapter=True)
    if dense:
        make_dense(model, dtype)
    if mode:
        model.enable_gradient_checkpointing(**mode)
    if swapped:
        model.enable_block_swap(swapped, "cpu")
        model.swap.lane = LateLane()
    if form in (
        None,
        "fp8",
        "int8",
    ):  # others are multiplied each alone, what they stand for then too
        model.lay_side_by_side()
    torch.manual_seed(1)
    return model, attached(model, module, options)


def make_dense(model, dtype):
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, QuantisedLinear):
                plain = nn.Linear(child.in_features, child.out_features, bias=False)
                plain.weight = nn.Parameter(frozen_weight(child).dense(dtype), requires_grad=False)
                plain.bias = child.bias
                setattr(module, name, plain)


def assert_compiled_is_the_same(form):
    """A product with stored weights, and its gradient, in one graph."""
    layer = QuantisedLinear.of(nn.Linear(64, 96), form, CPU).requires_grad_(False)
    x = torch.randn(48, 64, requires_grad=True)
    out = layer(x)
    (expected,) = torch.autograd.grad(out.square().sum(), x)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    (found,) = torch.autograd.grad(compiled.square().sum(), x)
    torch.testing.assert_close(compiled, out)
    torch.testing.assert_close(found, expected)
