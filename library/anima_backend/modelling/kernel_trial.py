"""Whether the fused kernels work on a device: each tried against its plain form, small or as large as in a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from library.anima_backend.modelling.glue import Open, entered, gated, heads, passed
from library.anima_backend.modelling.one_kernel import HAS_TRITON
from library.anima_backend.modelling.padded_text import count_zeros
from library.anima_backend.modelling.params import EPS
from library.anima_backend.modelling.rope import image_rope
from library.memory.trials import apart_from

table = cache(image_rope)
FURTHEST = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-2}
"""|found - expected| / |expected| of a kernel that computes what it should; halves are rounded in other places."""


@dataclass(frozen=True)
class Sizes:
    """side: of a square picture, in tokens"""

    batch: int
    side: int
    heads: int
    head_dim: int

    @property
    def tokens(self) -> tuple[int, int, int]:
        return self.batch, self.side**2, self.heads * self.head_dim

    @property
    def shared(self) -> tuple[int, int, int]:
        return self.batch, 1, self.heads * self.head_dim


LOG_ZEROS = 3.0  # beside sums whose logarithms are about 0
SMALL = Sizes(batch=2, side=3, heads=3, head_dim=16)


@dataclass(frozen=True)
class Case:
    """A kernel each way: what it is given, which of it has a gradient, if any, and how it is called.

    second: the shape of the second result, where it is not that of the first, which is the first input's
    beside: which of it are columns of one tensor
    """

    shapes: tuple[tuple[int, ...], ...]
    trained: tuple[bool, ...]
    call: Callable[..., Sequence[Tensor]]
    second: tuple[int, ...] | None = None
    beside: tuple[int, ...] = ()

    @property
    def results(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.shapes[0], self.second or self.shapes[0]

    def given(self, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs, and directions for gradients: the same numbers in every dtype, exact in bfloat16."""
        drawn = torch.Generator().manual_seed(0)
        shapes = [*self.shapes, *self.results]
        made = [
            torch.randn(shape, generator=drawn).bfloat16().to(device, dtype) for shape in shapes
        ]
        if self.beside:
            columns = torch.stack([made[place] for place in self.beside], 2).unbind(2)
            for place, each in zip(self.beside, columns):
                made[place] = each
        *inputs, first, second = made
        for each, trained in zip(inputs, self.trained, strict=True):
            each.requires_grad_(trained)
        return inputs, [first, second]

    def run(
        self, inputs: Sequence[Tensor], directions: Sequence[Tensor], *, fused: bool
    ) -> list[Tensor]:
        """Its results, then the gradients of what is trained."""
        found = self.call(*inputs, fused=fused)
        wanted = [each for each in inputs if each.requires_grad]
        if not wanted:
            return list(found)
        return [*found, *torch.autograd.grad(found, wanted, directions[: len(found)])]


class Norm(nn.Module):
    """An RMSNorm with a weight that is not its own."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.given = [weight]

    def weight_in_use(self) -> Tensor:
        return self.given[0]

    def forward(self, x: Tensor) -> Tensor:
        weight = self.given[0]
        return F.rms_norm(x, weight.shape, weight, EPS)


def norm_heads(side: int, *given: Tensor, fused: bool) -> Sequence[Tensor]:
    """side: of the picture whose places turn the heads, or 0; given: q, its weight, k, its weight"""
    q, q_weight, k, k_weight = given
    rope = table(side, side, q.shape[-1], q.device) if side else None
    if rope is not None and q.dtype == torch.float64:
        rope = rope[0].double(), rope[1].double()
    return heads(q, k, (Norm(q_weight), Norm(k_weight)), (rope, rope), fused=fused)


def gate(x: Tensor, weight: Tensor, y: Tensor, *, fused: bool) -> Sequence[Tensor]:
    return [gated(x, weight, y, fused=fused)]


def gate_and_norm(*given: Tensor, fused: bool) -> Sequence[Tensor]:
    """given: x, gate, y, shift, scale"""
    return passed(Open(*given[:3]), *given[3:], fused=fused)


def zeros_counted(out: Tensor, sums: Tensor, *, fused: bool) -> Sequence[Tensor]:
    """out (B, L, heads, hd) lies as attention leaves it; sums (B, heads, L or more)"""
    out = out.transpose(1, 2).clone()
    sums = sums.to(torch.promote_types(sums.dtype, torch.float32))
    return [out, count_zeros(out, sums, sums.new_full((), LOG_ZEROS), fused=fused)]


def cases(sizes: Sizes) -> dict[str, Case]:
    """By name: all that a block does, with shared values frozen and trained."""
    (batch, length, _), weight = sizes.tokens, (sizes.head_dim,)
    q = (batch, length, sizes.heads, sizes.head_dim)
    text = (batch, length // 2 + 1, sizes.heads, sizes.head_dim)
    x, one = sizes.tokens, sizes.shared
    found: dict[str, Case] = {}
    for name, trains in (("", False), (", all trained", True)):
        turned, plain = partial(norm_heads, sizes.side), partial(norm_heads, 0)
        found |= {
            f"norms and rotations{name}": Case(
                (q, weight, q, weight), (True, trains) * 2, turned, beside=(0, 2)
            ),
            f"norms{name}": Case((q, weight, text, weight), (True, trains) * 2, plain, text),
            f"modulated norm{name}": Case((x, one, one), (True, trains, trains), entered),
            f"gate and modulated norm{name}": Case(
                (x, one, x, one, one), (True, trains, True, trains, trains), gate_and_norm
            ),
            f"gate{name}": Case((x, one, x), (True, trains, True), gate),
        }
    sums = (batch, sizes.heads, length + 1)
    return {**found, "zeros counted": Case((q, sums), (False, False), zeros_counted)}


def tries(dtype: torch.dtype) -> Iterator[tuple[torch.dtype, str, Case]]:
    """In float32 and in this dtype those cases that do what the others do and more."""
    for each in dict.fromkeys((torch.float32, dtype)):
        for name, case in cases(SMALL).items():
            if all(case.trained) or not any(case.trained):
                yield each, name, case


@cache
def why_not(device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Why the kernels are not to be used on a device; None: they compute there what they should.

    dtype: of a step, tried after float32: Triton makes no kernel in bfloat16 for cards before Ampere
    """
    if not HAS_TRITON:
        return "Triton is missing"
    try:
        for each, name, case in tries(dtype):
            given = case.given(device, each)
            pairs = zip(case.run(*given, fused=True), case.run(*given, fused=False))
            if any(apart_from(*pair) > FURTHEST[each] for pair in pairs):
                return f"{name} is computed wrongly in {str(each).removeprefix('torch.')}"
    except Exception as error:  # noqa: BLE001  of Triton, and of the compilers and drivers behind it
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    return None
