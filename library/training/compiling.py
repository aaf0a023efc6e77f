"""Blocks compiled by torch: what is asked of the compiler, and whether it works on this machine.

It is tried on a small layer before anything is loaded: what it lacks is then an error with its cure.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from library.errors import ConfigError, Problem

if TYPE_CHECKING:
    from library.data.catalogue import Catalogue
    from library.settings.flags.loop import LoopOptions
    from library.settings.flags.precision import PrecisionOptions

logger = logging.getLogger(__name__)

COMPILERS = ("torch._dynamo", "torch._inductor")  # where the errors are declared that are theirs alone
GRAPHS_KEPT = 32  # of all blocks together; torch's own 8 is soon reached with a graph for each size


@runtime_checkable
class Compiles(Protocol):
    """What a family's model offers, before its first forward."""

    def compile_blocks(self, *, any_size: bool, **options: Any) -> None: ...

    def uncompiled(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Compilation:
    """any_size: one graph serves all sizes of pictures and batches. options: of torch.compile."""

    any_size: bool
    options: dict[str, Any]

    def wrap(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return torch.compile(function, **self.options)

    def describe(self, loop: LoopOptions) -> list[str]:
        """Lines for the log. loop: with the modes that act."""
        sizes = "one graph for all sizes" if self.any_size else "a graph for each size"
        first = "the first steps" if self.any_size else "the first steps of each size"
        lines = [
            f"compile: each block, by {self.options['backend']}, {sizes}",
            f"compiling: {first} take a while, up to minutes; no later one does",
        ]
        if loop.recompute == "cheap":
            chooses = "the compiler chooses itself what is computed again"
            lines.append(f'recompute = "cheap" has no effect: {chooses}; see activation_memory_budget')
        return lines


def uncompiled(model: nn.Module) -> AbstractContextManager[None]:
    """Within: blocks are called as they are written, so that other sizes change no graph of training."""
    return model.uncompiled() if isinstance(model, Compiles) else nullcontext()


@contextmanager
def failures_told(compilation: Compilation | None, device: torch.device) -> Iterator[None]:
    """Within: a failure of the compiler that shows with blocks alone is a ConfigError, as one before."""
    try:
        yield
    except Exception as error:
        if compilation is None or not type(error).__module__.startswith(COMPILERS):
            raise
        message = f"{explained(error, device)} Or leave compile out."
        raise ConfigError(Problem(message, "compile = true")) from error


@contextmanager
def duration_told(compilation: Compilation | None, *, is_first: bool) -> Iterator[None]:
    """Around a step: how long the first one took that compiles, when it is done."""
    start = time.monotonic()
    yield
    if compilation is not None and is_first:
        logger.info("compiled: the first step took %.0f s", time.monotonic() - start)


def working_compilation(
    options: PrecisionOptions, catalogue: Catalogue, device: torch.device
) -> Compilation | None:
    """How this run's blocks are compiled; None: they are not. Raises ConfigError where that fails."""
    if not options.compile:
        return None
    compilation = Compilation(has_any_size(options, catalogue), torch_options(options))
    settle(options)
    reason = why_not(compilation, device)
    if reason is None:
        return compilation
    if options.compile_optional:
        logger.warning("compile: %s Training goes on without it.", reason)
        return None
    message = f"{reason} Or leave compile out, or set compile_optional to train without it then."
    raise ConfigError(Problem(message, "compile = true"))


def has_any_size(options: PrecisionOptions, catalogue: Catalogue) -> bool:
    """Whether one graph is for all sizes: as asked, or by itself where there are several."""
    if options.compile_dynamic in ("true", "false"):
        return options.compile_dynamic == "true"
    areas = {width * height for _, (width, height) in catalogue.everything().buckets()}
    return len(areas) > 1 or any(each.batch_size > 1 for each in catalogue.group.datasets)


def torch_options(options: PrecisionOptions) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        "backend": options.compile_backend,
        "fullgraph": options.compile_fullgraph,
        "dynamic": False if options.compile_dynamic == "false" else None,
    }
    if options.compile_backend == "inductor":
        chosen["mode"] = options.compile_mode
    return chosen


def settle(options: PrecisionOptions) -> None:
    """What torch keeps for the whole process."""
    dynamo = torch._dynamo.config
    dynamo.cache_size_limit = options.compile_cache_size_limit or GRAPHS_KEPT
    dynamo.suppress_errors = options.compile_optional
    dynamo.optimize_ddp = False  # blocks are small enough for gradients to leave between them
    torch._functorch.config.activation_memory_budget = options.activation_memory_budget
    torch._inductor.config.fallback_random = True  # dropout as it is without
    torch.fx.experimental._config.use_duck_shape = False  # axes of one size may differ next time


def why_not(compilation: Compilation, device: torch.device) -> str | None:
    """What keeps a small layer from being compiled, forward and backward, and its cure."""
    layer = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.LayerNorm(64)).to(device)
    try:
        with torch._dynamo.config.patch(suppress_errors=False):
            x = torch.randn(16, 64, device=device)
            if compilation.any_size:
                torch._dynamo.maybe_mark_dynamic(x, 0)
            torch.compile(layer, **compilation.options)(x).square().sum().backward()
    except Exception as error:  # noqa: BLE001  of torch, a backend, the compilers behind them
        return explained(error, device)
    finally:
        torch._dynamo.reset()
    return None


def explained(error: BaseException, device: torch.device) -> str:
    """What is missing and how to get it, in whole sentences."""
    causes = list(causes_of(error))
    text = " ".join(f"{type(each).__name__} {each}" for each in causes)
    for words, found in MISSING.items():
        if any(word in text for word in words.split("|")):
            return found["win32" if sys.platform == "win32" else "else"]
    first = next((line for each in reversed(causes) for line in str(each).splitlines() if line), "")
    return f"on {device} the compiler fails: {type(causes[-1]).__name__}: {first.rstrip('.')}."


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it."""
    while error is not None:
        yield error
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__


MISSING = {
    "TritonMissing|No module named 'triton": {
        "win32": "Triton is missing: pip install triton-windows.",
        "else": "Triton is missing: pip install triton.",
    },
    "Python.h": {
        "win32": "Python's headers are missing: install Python from python.org.",
        "else": "Python's headers are missing: install python3-dev (Debian, Ubuntu).",
    },
    "InvalidCxxCompiler|Compiler: cl is not found|Failed to find C compiler": {
        "win32": "a C++ compiler is missing: install Visual Studio Build Tools with C++ and start from "
        "their x64 Native Tools prompt.",
        "else": "a C++ compiler is missing: install g++ (Debian, Ubuntu: build-essential).",
    },
    "FailOnRecompileLimitHit": dict.fromkeys(
        ("win32", "else"), "a block wants more graphs than are kept: raise compile_cache_size_limit, or "
        "leave out compile_fullgraph, without which it then runs uncompiled.",
    ),
    "InvalidBackend": dict.fromkeys(
        ("win32", "else"), "torch has no such compile_backend here; usual is inductor."
    ),
}
"""Words of an error -> what to do, by system."""
