"""Kernels recorded once for each size of their inputs, then started together: CUDA graphs.

A step launches thousands of kernels, and a fast card waits for the processor that launches them. Here a function
of tensors is recorded, forward and backward, and one launch each starts them all. Recorded kernels read
and write the same memory each time: inputs are copied to it and gradients from it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

RECORDINGS = 24
"""Kept of one function; the one that was not used for longest goes."""


class Record(Protocol):
    """What runs again and again."""

    def replay(self) -> None: ...


Recorder = Callable[[Callable[[], None]], Record]
"""Records what a function does on the device, without doing it."""


class CudaRecorder:
    """Recordings that share memory: of two that are used in turn one has its pass done when the other begins."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None]) -> Record:
        graph = torch.cuda.CUDAGraph()
        # other threads, which prepare batches, may use the device meanwhile
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            work()
        return graph


class Replays:
    """A function of tensors (None among them) that is recorded when it meets the same sizes again.

    The first call of each size runs as it is written, which also lets compilers and libraries settle.

    trained: what else than its inputs it has gradients for; none of it is replaced
    state:   what its kernels depend on beside the inputs' sizes
    around:  what it needs around it, recorded with it
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        trained: Sequence[Tensor],
        recorder: Recorder,
        *,
        state: Callable[[], Hashable] = tuple,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.function, self.state, self.around, self.recorder = function, state, around, recorder
        self.trained = list(trained)
        self.met: dict[Hashable, bool] = {}  # whether there is anything to go back through
        self.kept: OrderedDict[Hashable, Recording] = OrderedDict()
        self.passes = 0
        self.gradients = Gradients(self.trained)

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        if not torch.is_grad_enabled():
            return self.function(*inputs)
        key = self.state(), *map(form, inputs)
        if not self.met.get(key):
            output = self.function(*inputs)
            self.met[key] = output.requires_grad
            return output
        if key not in self.kept:
            while len(self.kept) >= RECORDINGS:
                self.kept.popitem(last=False)
            self.kept[key] = Recording(self, inputs)
        self.kept.move_to_end(key)
        given = [each for each in inputs if each is not None]
        replayed: Tensor = Replayed.apply(self.kept[key], len(given), *given, *self.trained)
        return replayed


class Gradients:
    """Where recordings leave the gradients of what is trained: one place for all of them."""

    def __init__(self, trained: Sequence[Tensor]) -> None:
        self.forms = [(each.dtype, each.shape) for each in trained]
        self.flat = {
            dtype: trained[0].new_empty(sum(self.sizes(dtype)), dtype=dtype)
            for dtype in dict.fromkeys(dtype for dtype, _ in self.forms)
        }
        self.places = self.views(self.flat)

    def sizes(self, dtype: torch.dtype) -> list[int]:
        return [shape.numel() for own, shape in self.forms if own == dtype]

    def views(self, flat: dict[torch.dtype, Tensor]) -> list[Tensor]:
        """Of each trained tensor its own part."""
        parts = {dtype: iter(whole.split(self.sizes(dtype))) for dtype, whole in flat.items()}
        return [next(parts[dtype]).view(shape) for dtype, shape in self.forms]

    def copies(self) -> list[Tensor]:
        """That stay as they are when a recording runs again."""
        return self.views({dtype: flat.clone() for dtype, flat in self.flat.items()})


class Recording:
    """A function for one set of sizes."""

    def __init__(self, owner: Replays, inputs: Sequence[Tensor | None]) -> None:
        self.owner = owner
        self.inputs = [
            None if each is None else each.detach().clone().requires_grad_(each.requires_grad)
            for each in inputs
        ]
        self.given = [each for each in self.inputs if each is not None]
        asked = [each for each in self.given if each.requires_grad]
        self.asked_gradients = [torch.empty_like(each) for each in asked]
        made: list[Tensor] = []

        def forward() -> None:
            with owner.around():
                made.append(owner.function(*self.inputs))

        def backward() -> None:
            sources = [*asked, *owner.trained]
            with owner.around():  # forwards that are computed again need it as well
                found = torch.autograd.grad(made.pop(), sources, self.change, allow_unused=True)
            places = [*self.asked_gradients, *owner.gradients.places]
            self.used = [each is not None for each in found]
            pairs = [(place, each) for place, each in zip(places, found) if each is not None]
            torch._foreach_copy_([to for to, _ in pairs], [each for _, each in pairs])

        self.forward = owner.recorder(forward)
        self.output = made[-1].detach()
        self.change = torch.empty_like(self.output)
        self.backward = owner.recorder(backward)

    def run(self, inputs: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            torch._foreach_copy_(self.given, list(inputs))
        self.forward.replay()
        return self.output.clone()

    def run_back(self, change: Tensor) -> list[Tensor | None]:
        """Gradients of the inputs, then of what is trained; None where there are none."""
        self.change.copy_(change)
        self.backward.replay()
        asked = iter([each.clone() for each in self.asked_gradients])
        of_inputs = [next(asked) if each.requires_grad else None for each in self.given]
        used = self.used[len(self.asked_gradients) :]
        trained = self.owner.gradients.copies()
        return [*of_inputs, *(each if has else None for each, has in zip(trained, used))]


class Replayed(torch.autograd.Function):
    """A recording as part of a graph of autograd."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, count: int, *tensors: Tensor) -> Tensor:
        recording.owner.passes += 1
        ctx.recording, ctx.number = recording, recording.owner.passes
        return recording.run(tensors[:count])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, change: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.recording.owner.passes != ctx.number:
            raise RuntimeError("a recorded pass was overwritten by another before its backward pass.")
        return None, None, *ctx.recording.run_back(change)


def form(tensor: Tensor | None) -> Hashable:
    if tensor is None:
        return None
    return tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad
