"""What a compiled block keeps for its backward pass: asked of torch's partitioner, on tensors without data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from library.anima_doctor.anima_step import AnimaStep, Saving, make_step
from library.memory.cuda_kernels import attention, operators
from library.memory.kept import Kept, keeping, storage_key
from library.memory.step_count import Step
from library.training.compiling import Compiles


def block_keeps(settings: AnimaStep) -> int:
    """Bytes that each compiled block adds to what forward leaves for backward; nothing is recomputed.

    The compiler's own split into a forward and a backward graph decides; the graphs run as they are traced.
    """
    with operators({"scaled_dot_product_attention": attention}):  # a compiler takes norms apart itself
        two, three = (kept_by(settings, blocks) for blocks in (2, 3))  # the first block is another
    torch._dynamo.reset()
    return three - two


def kept_by(settings: AnimaStep, blocks: int) -> int:
    params = replace(settings.params, num_blocks=blocks)
    step = make_step(replace(settings, params=params, memory=Saving()), torch.device("meta"))
    torch._dynamo.reset()
    assert isinstance(step.model, Compiles), "every family's model does"
    step.model.compile_blocks(any_size=False, backend=split_as_compiled())
    return kept_for_backward(step)


def split_as_compiled() -> Callable[..., Any]:
    """A backend for torch.compile that traces and splits as inductor does, and makes no kernels."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    def as_traced(graph: fx.GraphModule, _: object) -> Callable[..., Any]:
        made: Callable[..., Any] = make_boxed_func(graph.forward)
        return made

    backend: Callable[..., Any] = aot_autograd(
        fw_compiler=as_traced,
        bw_compiler=as_traced,
        partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
        decompositions=select_decomp_table(),
    )
    return backend


def kept_for_backward(step: Step) -> int:
    """Bytes that autograd keeps of a step, beside the model's own. No mode may watch: it would stop the compiler."""
    own = {storage_key(each) for each in step.model.state_dict().values()}
    found: dict[int, int] = {}

    def note(kept: Kept) -> Kept:
        assert isinstance(kept, Tensor), "nothing is recomputed"
        if (key := storage_key(kept)) not in own:
            found[key] = kept.untyped_storage().nbytes()
        return kept

    with keeping(note):
        loss = step.loss()
    loss.backward()
    return sum(found.values())
