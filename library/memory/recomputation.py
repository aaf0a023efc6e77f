"""Computing again in the backward pass what was not kept: a whole function, or its cheap parts.

The graph is the plain one; only what autograd keeps differs, so gradients are the same bits wherever
the function gives the same bits twice. (torch's own checkpoint cannot be combined with other ways of
keeping: it wants every tensor for itself.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from library.memory.circumstances import Circumstances
from library.memory.kept import Kept, Way, keeping, restored, storage_key
from library.memory.layout import Layout

Result = TypeVar("Result")
OUTPUT = -1
"""The place of what a region returns; those of what autograd keeps of it count from 0."""


def recompute(
    function: Callable[..., Tensor], *inputs: Any, keep_first: Way | None = None
) -> Tensor:
    """function(*inputs), of which only the inputs are kept; its random draws are repeated.

    What it keeps when it runs again is what `cheaply` keeps.
    keep_first: how the first input is kept; as it is if None
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    region = Region(function, inputs, random=True)
    if keep_first is not None:
        region.inputs[0] = keep_first(region.inputs[0])
    with keeping(region.stand_in_for):
        return function(*inputs)


def cheaply(function: Callable[..., Result], *inputs: Any) -> Result:
    """function(*inputs), without what its `cheap` parts would keep and what they return."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    outputs = CheapOutputs()
    token = _outputs.set(outputs)
    try:
        with keeping(outputs.stand_in_for):
            return function(*inputs)
    finally:
        _outputs.reset(token)


def cheap(part: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """part(*inputs); inside `cheaply` it is computed again for the backward pass.

    Its inputs are kept, so they should be what is kept anyway. It draws nothing random.
    """
    if torch.compiler.is_compiling():  # compilers make this choice themselves
        return part(*inputs)
    outputs = _outputs.get()
    if outputs is None or not torch.is_grad_enabled():
        return part(*inputs)
    region = Region(part, inputs, random=False)
    with keeping(region.stand_in_for):
        output = part(*inputs)
    outputs.add(output, region)
    return output


def remade(output: Tensor, part: Callable[..., Tensor], *inputs: Any) -> None:
    """Inside `cheaply`: output, made already, is computed again by part(*inputs) for the backward pass.

    part gives the same bits, and has no gradient of its own. As with `cheap` its inputs are kept.
    """
    outputs = _outputs.get()
    if outputs is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        outputs.add(output, Region(part, inputs, random=False))


def last(part: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """part(*inputs), with which a function ends: where it runs again, `counts` is False within."""
    if torch.compiler.is_compiling():
        return part(*inputs)
    return _within(_counts, not _runs_again.get(), part, *inputs)


def needed(part: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """part(*inputs), whose result is kept: it counts where what is made of it does not."""
    if torch.compiler.is_compiling():
        return part(*inputs)
    return _within(_counts, True, part, *inputs)


def runs_again() -> bool:
    """Whether this is inside a function that has returned before."""
    return _runs_again.get()


def counts() -> bool:
    """Whether a result is to be computed; else what is kept of it is all, and `uncounted` stands for it."""
    return torch.compiler.is_compiling() or _counts.get()


def uncounted(like: Tensor, *shape: int) -> Tensor:
    """A result that does not count, of any numbers, with memory for one."""
    return like.new_empty(()).expand(shape)


def _within(
    variable: ContextVar[bool], value: bool, function: Callable[..., Tensor], *inputs: Any
) -> Tensor:
    token = variable.set(value)
    try:
        return function(*inputs)
    finally:
        variable.reset(token)


class Region:
    """A function that ran, to run again when the first of its stand-ins is asked for its tensor.

    What it finds then is dropped place by place, as soon as nobody waits for it.
    """

    def __init__(
        self, function: Callable[..., Tensor], inputs: tuple[Any, ...], *, random: bool
    ) -> None:
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        self.function = function
        self.is_part = not random
        self.circumstances = Circumstances(tensors, random=random)
        self.inputs: list[Any] = [v.detach() if isinstance(v, Tensor) else v for v in inputs]
        self.differentiable = [isinstance(v, Tensor) and v.requires_grad for v in inputs]
        self.versions = [v._version if isinstance(v, Tensor) else None for v in inputs]
        self.inside = 0  # how many tensors autograd would have kept
        self.waiting: Counter[int] = Counter()  # place -> how many stand for it
        self.left: Counter[int] = Counter()
        self.found: dict[int, Kept] = {}
        self.returned: Layout | None = None  # where anybody waits for it

    def stand_in_for(self, kept: Kept) -> Kept:
        """A way of keeping: nothing of what is inside."""
        self.inside += 1
        return self.place(self.inside - 1)

    def place(self, number: int, layout: Layout | None = None) -> Again:
        self.waiting[number] += 1
        return Again(self, number, layout)

    def value(self, place: int) -> Tensor:
        if place not in self.found:
            self.run()
        kept = self.found[place]
        self.left[place] -= 1
        if not self.left[place]:
            del self.found[place]
        return restored(kept)

    def run(self) -> None:
        """Find what every place is waited for."""
        found: list[Kept] = []

        def collect(kept: Kept) -> Kept:
            found.append(kept)
            return NOTHING

        with self.circumstances.again(), torch.enable_grad(), keeping(collect):
            output = self.result_again().detach()
        if len(found) != self.inside:
            raise RuntimeError(f"{self.function} kept {self.inside} tensors, then {len(found)}.")
        if self.returned not in (None, Layout.of(output)):
            raise RuntimeError(f"{self.function} returned {self.returned}, then another layout.")
        places = {OUTPUT: output, **dict(enumerate(found))}
        self.found = {place: places[place] for place in self.waiting}
        self.left = Counter(self.waiting)

    def result_again(self) -> Tensor:
        if self.is_part:
            return self.function(*self.inputs_again())
        return _within(_runs_again, True, cheaply, self.function, *self.inputs_again())

    def inputs_again(self) -> Iterator[Any]:
        for kept, differentiable, version in zip(
            self.inputs, self.differentiable, self.versions, strict=True
        ):
            if version is None:
                yield kept
                continue
            if isinstance(kept, Tensor) and kept._version != version:
                raise RuntimeError(f"an input of {self.function} was changed in place.")
            yield restored(kept).detach().requires_grad_(differentiable)


class Nothing:
    """Kept of a run that no backward pass goes through."""

    def tensor(self) -> Tensor:
        raise AssertionError("a recomputation has no backward pass of its own")


NOTHING = Nothing()


class Again:
    """Stands for what a region finds at a place, or for the view of it that has this layout."""

    def __init__(self, region: Region, number: int, layout: Layout | None) -> None:
        self.region, self.number, self.layout = region, number, layout

    def tensor(self) -> Tensor:
        value = self.region.value(self.number)
        return self.layout.in_memory_of(value) if self.layout else value


class Output(NamedTuple):
    """What a region returned; the weak reference keeps its key from being given to other memory."""

    region: Region
    dtype: torch.dtype
    version: int
    memory: StorageWeakRef


class CheapOutputs:
    """What the cheap parts of a function returned, known by its memory, while the function runs."""

    def __init__(self) -> None:
        self.known: dict[int, Output] = {}

    def add(self, tensor: Tensor, region: Region) -> None:
        """Take note of what a part returned, unless that is one of its inputs."""
        key = storage_key(tensor)
        if any(isinstance(v, Tensor) and storage_key(v) == key for v in region.inputs):
            return
        region.returned = Layout.of(tensor)
        memory = StorageWeakRef(tensor.untyped_storage())
        self.known[key] = Output(region, tensor.dtype, tensor._version, memory)

    def stand_in_for(self, kept: Kept) -> Kept:
        """A way of keeping: nothing that a cheap part returned and nobody changed since."""
        if not isinstance(kept, Tensor):
            return kept
        output = self.known.get(storage_key(kept))
        if output is None or kept._version != output.version or kept.dtype != output.dtype:
            return kept
        return output.region.place(OUTPUT, Layout.of(kept))


_outputs: ContextVar[CheapOutputs | None] = ContextVar("outputs of cheap parts", default=None)
_runs_again = ContextVar("whether a function runs again, which has returned before", default=False)
_counts = ContextVar("whether the result of what runs is to be computed", default=True)
