"""What tests on a card share. Each can be tried on a CPU, by naming that."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tests.helpers.memory_modes import KINDS, attached, gradients, small_dit

CARD = torch.device("cuda")
WIDE = 1024
"""Of a model whose weights take longer to come than its few tokens to be computed."""


@contextmanager
def repeatable() -> Iterator[None]:
    """Within: kernels give the same bits twice, and memory that nobody has written to is NaN.

    So what is read before it has arrived is seen.
    """
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def adapted_on(
    device, kind="lora linears", *, form=None, fused=False, mode=None, swapped=0, recorder=None, width=256
):
    """A model of five blocks in bf16 with adapters, made in the order in which a run makes it.

    form: in which its frozen weights are stored; recorder: makes what records its passes
    """
    model = small_dit(5, width).to(torch.bfloat16).requires_grad_(False)
    model.use_one_kernel(fused)
    if form:
        model.quantise(form, torch.device(device), llm_adapter=True)
    if swapped:
        model.enable_block_swap(swapped, device)
    else:
        model.to(device)
    if mode:
        model.enable_gradient_checkpointing(**mode)
    model.lay_side_by_side()
    network = attached(model, *KINDS[kind])
    if recorder:
        trained = network.get_trainable_params()
        model.record_passes(trained, recorder, around=network.within_pass)
    return model


def gradients_in_turn(model, passes=3):
    """Of several passes, all of them together: what one leaves behind is seen by the next."""
    found = {}
    for seed in range(passes):
        found |= {f"{seed} {name}": each for name, each in gradients(model, seed=seed).items()}
    return found
