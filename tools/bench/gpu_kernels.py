"""What the GPU benchmark tells of the fused kernels: how far they are from exact, and their times.

Beside each its plain form, of torch's kernels: as they are launched one by one, and on the device alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from library.anima_backend.modelling.glue import gelu
from library.anima_backend.modelling.kernel_trial import Case, Sizes, cases, why_not
from library.memory.trials import wait_for
from networks.kinds.activated import activated
from networks.kinds.copies import NO_COPIES
from networks.kinds.fused import Chain, add_chain
from networks.kinds.joined import Low
from tools.bench.measuring import Figures, relative_distance, seconds_of

Guarded = Callable[[dict[str, str], Callable[[], dict[str, object]]], dict[str, object]]
"""The figures of a case, or its error, under its names."""
Step = Callable[[str, bool, int], float]
"""Seconds of a step with an adapter of the ledger, fused or not, of pictures of so many pixels."""
STEPS = {"all, a step": "lora", "all, a step that trains norms": "lora+norms"}
CALLS = 20
WORSE = 1.25
"""How much further from float64 than the plain form a kernel may be: it is rounded no more often."""


def rows(
    device: torch.device,
    sizes: Mapping[int, Sizes],
    guarded: Guarded,
    step: Step,
    *,
    quick: bool,
) -> Iterator[Figures]:
    """Whole steps of pictures of so many pixels; unless it is to be quick, every kernel at their sizes."""
    if device.type != "cuda":
        yield {"kernel": "all", "result": "have no form for the CPU"}
        return
    if reason := why_not(device):
        yield {"kernel": "all", "result": f"failed: {reason}"}
        return
    for pixels, tokens in sizes.items():
        for name, case in ({} if quick else {**cases(tokens), **cases_of_lora(tokens)}).items():
            names = {"kernel": name, "pixels": str(pixels)}
            yield guarded(names, partial(compared, device, case))
        for name, adapter in STEPS.items():
            names = {"kernel": name, "pixels": str(pixels)}
            yield guarded(names, partial(whole, step, adapter, pixels))


def cases_of_lora(sizes: Sizes) -> dict[str, Case]:
    """What kernels of our own do of an adapter: of a Linear as wide as its input."""
    x = sizes.tokens
    width, rank = x[-1], 16
    shapes = x, (rank, width), (width, rank), (width, width)
    return {"LoRA and GELU": Case(shapes, (True, True, True, False), lora_and_gelu)}


def lora_and_gelu(
    x: Tensor, down: Tensor, up: Tensor, weight: Tensor, *, fused: bool
) -> list[Tensor]:
    if fused:
        return [activated(x, weight, Low(down, up, 1.0), NO_COPIES)]
    chain = Chain(1, None, 1.0, (None, None))
    return [gelu(add_chain(x, weight, None, chain, (down, up)))]


def whole(step: Step, adapter: str, pixels: int) -> dict[str, object]:
    """The plain one before and after."""
    first, fused, last = (step(adapter, each, pixels) for each in (False, True, False))
    plain = f"{1e3 * first:.1f} and {1e3 * last:.1f}"
    return {"ms": f"{1e3 * fused:.1f}", "plain ms": plain, "result": "ok"}


def compared(device: torch.device, case: Case) -> dict[str, object]:
    exact = case.run(*case.given(device, torch.float64), fused=False)
    given = case.given(device, torch.bfloat16)
    found: dict[str, object] = {}
    furthest = {}
    for fused in (True, False):
        results = case.run(*given, fused=fused)
        furthest[fused] = [relative_distance(*pair) for pair in zip(results, exact)]
        work, start = partial(case.run, *given, fused=fused), "" if fused else "plain "
        found[f"{start}distance"] = f"{max(furthest[fused]):.1e}"
        found[f"{start}ms"] = f"{1e3 * launched(work, device):.3f}"
        found[f"{start}device ms"] = f"{1e3 * alone(work):.3f}"
    far = [ours > WORSE * theirs for ours, theirs in zip(furthest[True], furthest[False])]
    same = case.run(*given, fused=True), case.run(*given, fused=True)
    if not all(torch.equal(*pair) for pair in zip(*same)):
        return {**found, "result": "failed: other bits the second time"}
    return {**found, "result": f"TOO FAR: {furthest}" if any(far) else "ok"}


def launched(work: Callable[[], list[Tensor]], device: torch.device) -> float:
    """Seconds of one call among several, as Python launches them."""

    def several() -> None:
        for _ in range(CALLS):
            work()

    return statistics.median(seconds_of(several, device) for _ in range(5)) / CALLS


def alone(work: Callable[[], list[Tensor]]) -> float:
    """Seconds on the device, where nothing waits for Python: a recorded graph, played again."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # autograd's thread may allocate
        for _ in range(CALLS):
            work()
    device = torch.device("cuda")
    wait_for(device)
    return statistics.median(seconds_of(graph.replay, device) for _ in range(5)) / CALLS
