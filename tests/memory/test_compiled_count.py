"""What compiled blocks have in memory, counted: against arithmetic, and against what torch's compiler keeps."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from library.anima_backend.modelling.params import PUBLISHED
from library.anima_doctor.anima_step import AnimaStep, Saving, make_step, uncompiled
from library.memory.compiled_count import Kernels, shared_graphs
from library.memory.kept import keeping, storage_key
from library.memory.ledger import Ledger
from library.memory.step_count import count_step
from library.settings.flags.precision import PrecisionOptions
from tools.bench.ledger import network_of

META = torch.device("meta")
N = 64


def peak_of(function, *shapes: tuple[int, ...]) -> tuple[int, int]:
    """The most that a function of tensors has in memory beside its last input, and what it leaves."""
    inputs = [torch.empty(shape, device=META) for shape in shapes]
    kernels, ledger = Kernels(make_fx(function)(*inputs)), Ledger(META, granule=1)
    weight = inputs[-1]
    ledger.enter(inputs[:-1])

    def note(made: Tensor) -> None:
        ledger.enter([made])

    left = kernels.run(inputs, note)
    assert inputs == [] and weight.is_meta
    del left
    return ledger.on_device.peak, ledger.on_device.now


def test_what_lies_between_two_products_is_nowhere():
    def function(x, w):
        return (x @ w).sin().exp().mul(2).to(torch.bfloat16) @ w.to(torch.bfloat16)

    size = 4 * N * N  # x and its product; then the product, and both halves as the last one reads them
    assert peak_of(function, (N, N), (N, N))[0] == 2 * size


def test_what_a_later_kernel_reads_is_in_memory_until_then():
    def function(x, w):
        steered = (x @ w).sin()
        return (steered @ w) * steered.cos().t()

    assert peak_of(function, (N, N), (N, N))[0] == 3 * 4 * N * N


def test_views_are_of_the_same_memory():
    def function(x, w):
        return x.t().reshape(N // 2, 2 * N).view(N, N).t() @ w

    peak, left = peak_of(function, (N, N), (N, N))
    assert (peak, left) == (2 * 4 * N * N, 0)


TINY = replace(
    PUBLISHED, num_blocks=3, model_dim=64, head_dim=32, adaln_dim=16, mlp_dim=128,
    llm_adapter=replace(PUBLISHED.llm_adapter, num_blocks=1, vocab=100, mlp_dim=64),
)  # fmt: skip


def tiny(adapter: str, blocks: int, **stored: bool) -> AnimaStep:
    """A step whose blocks are compiled. stored: how the frozen weights are."""
    network, arguments = network_of(adapter, 4, {})
    params = replace(TINY, num_blocks=blocks)
    memory = Saving(precision=replace(PrecisionOptions(**stored), compile=True))
    return AnimaStep(
        params=params, network=network, arguments=arguments, size=(16, 16), memory=memory
    )


def inductor(graph: fx.GraphModule, inputs: list[Tensor]):
    """All of torch's compiler but its kernels, which take minutes."""
    from torch._inductor.compile_fx import compile_fx

    def as_traced(graph, _, **options):
        def run(inputs):
            return fx.Interpreter(graph).boxed_run(inputs)

        run._boxed_call = True
        return run

    return compile_fx(graph, inputs, inner_compile=as_traced)


def kept(settings: AnimaStep) -> int:
    """Bytes that autograd keeps of a step on the CPU, compiled by torch itself, beside the model's own."""
    step = make_step(uncompiled(settings), torch.device("cpu"))
    step.model.compile_blocks(any_size=False, backend=inductor)
    own = {storage_key(each) for each in step.model.state_dict().values()}
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if (key := storage_key(tensor)) not in own:
            found[key] = tensor.untyped_storage().nbytes()
        return tensor

    with keeping(note):
        loss = step.loss()
    loss.backward()
    return sum(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("adapter, stored", [("lokr_full+norms", {}), ("lora", {"fp8_base": True})])
def test_a_compiled_block_keeps_what_was_counted(adapter, stored, compiler_left_alone):
    """The first block is another: its input wants no gradient. Of stored weights none is kept as it is used."""
    with shared_graphs():
        steps = (make_step(tiny(adapter, blocks, **stored), META) for blocks in (2, 3))
        two, three = (count_step(step, granule=1).kept for step in steps)
    real_two, real_three = (kept(tiny(adapter, blocks, **stored)) for blocks in (2, 3))
    # CUDA's attention keeps seeds, and torch rounds the one number that a norm keeps of a row
    assert three - two == pytest.approx(real_three - real_two, rel=0.01)
    if stored:
        written = (uncompiled(tiny(adapter, blocks, **stored)) for blocks in (2, 3))
        two, three = (count_step(make_step(step, META), granule=1).kept for step in written)
        assert real_three - real_two < 1.15 * (three - two)
