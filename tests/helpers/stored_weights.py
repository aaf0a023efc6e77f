"""Small models whose frozen weights are stored in a form, and the same with what they stand for."""

from __future__ import annotations

import torch
from torch import nn

from library.memory.quantised import QuantisedLinear, frozen_weight
from tests.helpers.late_lane import LateLane
from tests.helpers.memory_modes import KINDS, small_dit

CPU = torch.device("cpu")


def storing(kind, form="fp8", dtype=torch.float32, mode=None, swapped=0, dense=False):
    """A small model with adapters: of a kind by name, or an entry module with its options.

    dense: plain Linears of what the stored weights stand for
    """
    module, options = KINDS[kind] if isinstance(kind, str) else kind
    model = small_dit().to(dtype).requires_grad_(False)
    model.quantise(form, CPU, llm_adapter=True)
    if dense:
        make_dense(model, dtype)
    if mode:
        model.enable_gradient_checkpointing(**mode)
    if swapped:
        model.enable_block_swap(swapped, "cpu")
        model.swap.lane = LateLane()
    torch.manual_seed(1)
    network = module.create_network(1.0, 2, 1, None, None, model, **options)
    network.apply_to(None, model)
    network.on_epoch_start(None, model)
    with torch.no_grad():
        for parameter in network.get_trainable_params():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model, network


def make_dense(model, dtype):
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, QuantisedLinear):
                plain = nn.Linear(child.in_features, child.out_features, bias=False)
                plain.weight = nn.Parameter(frozen_weight(child).dense(dtype), requires_grad=False)
                plain.bias = child.bias
                setattr(module, name, plain)
