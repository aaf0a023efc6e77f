"""Which kernels of attention work here, and how fast: tried on a run's own sizes before it starts."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from library.anima_backend.modelling.attention import (
    FOR_HALVES,
    FUNCTIONS,
    HALVES,
    PACKAGED,
    preferring,
)
from library.anima_backend.modelling.kernels import KERNELS
from library.anima_backend.modelling.padded_text import STEP, attention_beside_zeros
from library.memory.trials import apart_from, wait_for

ROUNDS = 7
MARGIN = 1.03  # how much slower torch's own choice may be and still be taken: times vary by less
FURTHEST = {torch.float32: 2e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""|found - expected| / |expected| of a kernel that computes what it should; its TF32 may be on."""
REAL_ROWS = 3 * STEP  # of a text that is padded: a caption of more than 128 tokens
COUNTING = "text_padding = fold"
MOST_TOKENS = 4096  # that are compared: the formula makes a matrix of their square


@dataclass(frozen=True)
class Sizes:
    """The attentions of a step: in each of `blocks` one to itself, one to a text.

    tokens: of a picture; texts: keys of a text, 0 where that is computed otherwise; heads, of `width` each
    real:   of a text's keys those that are computed where its zeros are counted
    """

    batch: int
    tokens: int
    texts: int
    heads: int
    width: int
    blocks: int
    real: int = REAL_ROWS

    @property
    def keys(self) -> tuple[int, ...]:
        return (self.tokens, self.texts) if self.texts else (self.tokens,)

    def __str__(self) -> str:
        each = " and ".join(f"{self.tokens} x {keys}" for keys in self.keys)
        return f"{self.blocks} blocks, batch {self.batch}, {each} tokens"


@dataclass(frozen=True)
class Trial:
    """What came of a kernel.

    parts:   seconds of a step's attentions to the picture, then to texts; forward and backward
    apart:   the furthest of outputs and gradients from the formula in float64
    why_not: why it cannot be used; "" where it can
    """

    kernel: str
    parts: tuple[float, ...] = ()
    apart: float = 0.0
    why_not: str = ""

    @property
    def seconds(self) -> float:
        return sum(self.parts)

    def __str__(self) -> str:
        return f"{self.kernel} {self.why_not or f'{1e3 * self.seconds:.1f} ms'}"


def try_all(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> list[Trial]:
    return [try_kernel(name, sizes, dtype, device) for name in KERNELS]


def fastest(trials: Sequence[Trial]) -> str:
    """The kernel to take: torch's own choice where none is faster by more than times vary."""
    seconds = {trial.kernel: trial.seconds for trial in trials if not trial.why_not}
    best = min(seconds, key=lambda name: seconds[name], default="torch")
    return "torch" if seconds.get("torch", float("inf")) <= MARGIN * seconds.get(best, 0) else best


def try_kernel(
    name: str, sizes: Sizes, dtype: torch.dtype, device: torch.device, rounds: int = ROUNDS
) -> Trial:
    """One kernel, alone: nothing else takes over what it cannot do.

    Where deterministic algorithms are asked for, it has to give the same bits twice.
    """
    try:
        if name in PACKAGED:
            PACKAGED[name]()
    except ImportError as error:
        return Trial(name, why_not=f"is not installed ({error})")
    if name != "torch" and device.type != "cuda":
        return Trial(name, why_not=f"has no kernel for {device.type}")
    if name in FOR_HALVES and dtype not in HALVES:
        return Trial(name, why_not=f"has no kernel for {str(dtype).removeprefix('torch.')}")
    small = replace(sizes, batch=1, tokens=min(MOST_TOKENS, sizes.tokens))
    parts, apart = [], 0.0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            with preferring(name, alone=True):
                for keys in small.keys:
                    call = Call.random(small, keys, dtype, device)
                    apart = max(apart, call.distance(FUNCTIONS[name]))
                for keys in sizes.keys:
                    call = Call.random(sizes, keys, dtype, device)
                    parts.append(sizes.blocks * call.seconds(FUNCTIONS[name], rounds))
        except Exception as error:  # noqa: BLE001  packages of others; the reason is told
            return Trial(name, why_not=f"does not work ({reason(error, told)})")
    return judged(Trial(name, tuple(parts), apart), dtype)


def try_counting(
    sizes: Sizes, dtype: torch.dtype, device: torch.device, rounds: int = ROUNDS,
    *, fused: bool = False,
) -> Trial:  # fmt: skip
    """Attention to a text of sizes.real rows, its zeros up to sizes.texts counted: against rows of zeros.

    rounds: 0: it is not timed
    """
    zeros = sizes.texts - sizes.real
    log_zeros = torch.full((), math.log(zeros), device=device)

    def counted(q: Tensor, k: Tensor, v: Tensor, _: None) -> Tensor:
        return attention_beside_zeros(q, k, v, log_zeros, fused=fused)

    def formula(q: Tensor, k: Tensor, v: Tensor, _: None) -> Tensor:
        k, v = (F.pad(each, (0, 0, 0, 0, 0, zeros)) for each in (k, v))
        return by_formula(q, k, v, None)

    try:
        call = Call.random(sizes, sizes.real, dtype, device)
        apart = call.distance(counted, formula)
        parts = (sizes.blocks * call.seconds(counted, rounds),) if rounds else ()
    except Exception as error:  # noqa: BLE001  the reason is told
        return Trial(COUNTING, why_not=f"does not work ({reason(error, ())})")
    return judged(Trial(COUNTING, parts, apart), dtype)


def judged(trial: Trial, dtype: torch.dtype) -> Trial:
    """The same, with what is wrong with it."""
    if trial.apart <= FURTHEST[dtype]:
        return trial
    return replace(trial, why_not=f"is wrong here ({trial.apart:.1e} of the result)")


def reason(error: Exception, told: Sequence[warnings.WarningMessage]) -> str:
    """In one line; torch says in warnings why it has no kernel."""
    lines = [str(error), *(str(each.message) for each in told)]
    words = [line.strip().splitlines()[0] for line in lines if line.strip()]
    specific = [word for word in words if "No available kernel" not in word]
    return (specific or words or [type(error).__name__])[-1][:200]


@dataclass(frozen=True)
class Call:
    """One attention: q (B, Lq, heads, hd), k and v (B, Lk, heads, hd)."""

    q: Tensor
    k: Tensor
    v: Tensor

    @classmethod
    def random(cls, sizes: Sizes, keys: int, dtype: torch.dtype, device: torch.device) -> Call:
        """As large as normalised q and k are; the same numbers each time.

        v lies in columns beside others, as where one product makes k and v: a kernel has to take that.
        """
        draws = torch.Generator(device).manual_seed(0)
        made = []
        for rows in (sizes.tokens, keys, keys):
            shape = sizes.batch, rows, sizes.heads, sizes.width
            made.append(torch.randn(shape, generator=draws, device=device).to(dtype))
        made[-1] = torch.stack(made[-1:] * 2, 2)[:, :, 1]
        return cls(*(each.requires_grad_(True) for each in made))

    def results(self, function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        """The output, and the gradients of q, k and v where the output's is the output."""
        inputs = self.q, self.k, self.v
        output = function(*inputs, None)
        return output.detach(), *torch.autograd.grad(output, inputs, output.detach())

    def distance(
        self, function: Callable[..., Tensor], formula: Callable[..., Tensor] | None = None
    ) -> float:
        """The furthest of results from the formula in float64, in the first picture's first head.

        formula: what is expected; attention's own if None
        Raises RuntimeError where the same bits are asked for twice and do not come.
        """
        found = self.results(function)
        is_to_repeat = torch.are_deterministic_algorithms_enabled()
        if is_to_repeat and not all(map(torch.equal, found, self.results(function))):
            raise RuntimeError("it is not deterministic: two calls gave different bits")
        first = Call(*(
            each.detach()[:1, :, :1].double().requires_grad_(True)
            for each in (self.q, self.k, self.v)
        ))  # fmt: skip
        expected = first.results(formula or by_formula)
        width = self.q.shape[-1]
        output = found[0][:1, :, :width], *(each[:1, :, :1] for each in found[1:])
        return max(map(apart_from, output, expected))

    def seconds(self, function: Callable[..., Tensor], rounds: int) -> float:
        """The median, after one round that does not count."""
        times = []
        for _ in range(1 + rounds):
            wait_for(self.q.device)
            start = time.perf_counter()
            self.results(function)
            wait_for(self.q.device)
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])


def by_formula(q: Tensor, k: Tensor, v: Tensor, _: None) -> Tensor:
    """Attention by its formula, in the dtype of q."""
    with sdpa_kernel(SDPBackend.MATH):
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
