"""What blocks that torch compiles have in memory: its own split of their passes, without its kernels.

A block is traced and split into a forward and a backward graph as inductor does it, which decides what is kept.
Then the graphs are run as a compiler's code would have it, on tensors without data: what lies between two
products is one kernel, and its steps are nowhere but in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils import _python_dispatch

from library.memory.cuda_kernels import attention, operators
from library.memory.ledger import Ledger, kind_of

GRAPHS = 999  # of all blocks, however many shapes their adapters have
FUSED = ("aten", "prims")
"""Whose operators are made into kernels with their neighbours, unless they are products or attention."""


class CountedCompiler:
    """Stands for inductor, and lets a ledger see what its graphs have in memory.

    budget: as --activation_memory_budget
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.ledger: Ledger | None = None
        self.calls = 0

    def backend(self, graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        """For torch.compile."""
        from torch._dynamo.backends.common import aot_autograd
        from torch._functorch.partitioners import min_cut_rematerialization_partition
        from torch._inductor.decomposition import select_decomp_table

        make: Callable[..., Callable[..., Any]] = aot_autograd(
            fw_compiler=self.as_kernels,
            bw_compiler=self.as_kernels,
            partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
            decompositions=select_decomp_table(),
        )
        return make(graph, inputs)

    def as_kernels(self, graph: fx.GraphModule, _: object) -> Callable[[list[Any]], list[Any]]:
        kernels = Kernels(graph)

        def run(inputs: list[Any]) -> list[Any]:
            self.calls += 1
            return kernels.run(inputs, self.note)

        run._boxed_call = True  # type: ignore[attr-defined]  # inputs are let go as they are used
        return run

    def note(self, made: Tensor) -> None:
        if self.ledger is not None:
            self.ledger.enter([made])

    def unwatched(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """function, in which no mode watches: it would keep the compiler from its graphs."""

        def call(*inputs: Any) -> Tensor:
            with _python_dispatch._disable_current_modes():
                return function(*inputs)

        return call

    def trace(self, run: Callable[[], None], ledger: Ledger) -> int:
        """Make the graphs of what `run` does; how many passes through them it took.

        ledger: that watches; nothing is to be read in it
        """
        before, dynamo = self.calls, torch._dynamo.config
        with (
            ledger,  # which copies what has no data to the host
            operators({"scaled_dot_product_attention": attention}),  # norms are taken apart
            dynamo.patch(cache_size_limit=GRAPHS, suppress_errors=False),
            torch._functorch.config.patch(activation_memory_budget=self.budget),
            torch._inductor.config.patch(fallback_random=True),
        ):
            run()
        return self.calls - before

    @contextmanager
    def seen_by(self, ledger: Ledger, passes: int) -> Iterator[None]:
        """Within: the ledger counts. passes: how many there have to be, as there were when traced."""
        before, self.ledger = self.calls, ledger
        try:
            yield
        finally:
            self.ledger = None
        assert self.calls - before == passes, f"{self.calls - before} compiled passes, not {passes}"


@cache
def counted_compiler(budget: float) -> CountedCompiler:
    """One of each, since torch keeps graphs by the compiler that made them."""
    return CountedCompiler(budget)


@contextmanager
def shared_graphs() -> Iterator[None]:
    """Within: steps that are counted use each other's graphs; after the outermost, torch has forgotten them."""
    if _shared.get():
        yield
        return
    token = _shared.set(True)
    try:
        yield
    finally:
        _shared.reset(token)
        torch._dynamo.reset()


_shared = ContextVar("whether graphs of counted steps are kept for the next", default=False)


class Kernels:
    """A graph as it is run by kernels.

    A product, attention, a draw and what is no operator of torch's own is one each, and what lies between two of them in
    the graph another. In memory is what they read and return, until it was read for the last time.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.nodes = list(graph.graph.nodes)
        self.held = in_memory(self.nodes)
        self.dropped = last_uses(self.nodes, self.held)

    def run(self, inputs: list[Any], note: Callable[[Tensor], None]) -> list[Any]:
        """Results of the graph's forms. inputs: emptied; note: told of each tensor as it is made."""
        values: dict[fx.Node, Any] = {}
        given = iter(self.nodes)
        while inputs:
            values[next(given)] = inputs.pop(0)
        for node, dropped in zip(self.nodes, self.dropped, strict=True):
            if node.op == "output":
                return list(fx.map_arg(node.args[0], values.__getitem__))
            if node not in values and node in self.held:
                values[node] = self.value(node, values, note)
            for each in dropped:
                values.pop(each, None)
        raise AssertionError("every graph has an output")

    def value(self, node: fx.Node, values: dict[fx.Node, Any], note: Callable[[Tensor], None]) -> Any:
        if node.op == "get_attr":
            assert isinstance(node.target, str)
            return getattr(self.graph, node.target)
        if is_view(node):
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            assert callable(node.target)
            return node.target(*args, **kwargs)
        if changes_first(node):
            return values[node.args[0]]  # type: ignore[index]  # a node: it was changed
        return made_like(node.meta["val"], note)


def made_like(form: object, note: Callable[[Tensor], None]) -> Any:
    if isinstance(form, (list, tuple)):
        return [made_like(each, note) for each in form]
    if not isinstance(form, Tensor):
        return form
    made = torch.empty_strided(form.shape, form.stride(), dtype=form.dtype, device=form.device)
    note(made)
    return made


def is_view(node: fx.Node) -> bool:
    """Whether a node needs no kernel."""
    target = node.target
    return target is getitem or (isinstance(target, OpOverload) and kind_of(target) == "view")


def changes_first(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def is_fused(node: fx.Node) -> bool:
    """Whether it is a step of a kernel that may have others."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, OpOverload) or is_view(node):
        return False
    if torch.Tag.nondeterministic_seeded in target.tags:  # torch's own draw
        return False
    return target.namespace in FUSED and kind_of(target) in ("glue", "create")


def in_memory(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes whose values are; of fused ones those that another kernel reads, or the caller."""
    kernels: dict[fx.Node, int] = {}
    number = 0
    for node in nodes:
        number += not (is_fused(node) or is_view(node))
        kernels[node] = number
    held: set[fx.Node] = set()
    for node in nodes:
        if is_view(node):
            is_held = node.all_input_nodes[0] in held
        else:
            is_held = not is_fused(node) or any(kernels[r] != kernels[node] for r in readers(node))
        if is_held:
            held.add(node)
    return held


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that use a value or a view of it."""
    for user in node.users:
        yield from readers(user) if is_view(user) else (user,)


def last_uses(nodes: Sequence[fx.Node], held: set[fx.Node]) -> list[list[fx.Node]]:
    """For each node the ones whose values nobody needs after it.

    What is read by a step that is not in memory is needed until the last value made of that step is.
    """
    place = {node: number for number, node in enumerate(nodes)}
    ends: dict[fx.Node, int] = {}
    for node in reversed(nodes):
        through = (place[user] if user in held else ends[user] for user in node.users)
        ends[node] = max([place[node], *through])
    dropped: list[list[fx.Node]] = [[] for _ in nodes]
    for node, end in ends.items():
        dropped[end].append(node)
    return dropped
