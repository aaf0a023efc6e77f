"""OFT and BOFT: nothing is added; the output of the frozen Linear is turned by orthogonal matrices.

OFT (Qiu et al. 2023) turns blocks of neighbouring outputs. BOFT (Liu et al. 2024) does it in stages, between
which outputs are reordered as in a butterfly, so that every output can reach every other. Blocks, spelling
and orders are LyCORIS' and ComfyUI's, by which files of three axes are OFT and of four BOFT.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from library.errors import ConfigError, Problem
from library.memory.quantised import Frozen
from networks.kinds.adapter import NO_DROPOUT, Dropout, at_use, keep_mask
from networks.kinds.frozen import base_product
from networks.kinds.kind import Kind, KindArguments, Request, Training
from networks.kinds.linear import LinearAdapter
from networks.kinds.lokr import factorize
from networks.kinds.stored import ALPHA, DORA_SCALE, Factors

BLOCKS = "oft_blocks"
TINY = 1e-8
"""Beside a norm that is divided by, as ComfyUI has it."""


def turns(blocks: Tensor, limit: float) -> Tensor:
    """Q - 1 of the orthogonal matrices Q = (1 + S)(1 - S)^-1, S = blocks - blocks^T (Cayley); float32.

    limit: S is shortened to this Frobenius norm, over all blocks; 0 is none
    """
    skew = (blocks - blocks.mT).float()
    if limit:
        skew = skew * (limit / (skew.norm() + TINY)).clamp(max=1.0)
    identity = torch.eye(skew.shape[-1], device=skew.device)
    # 1 - S has an inverse whatever S is: nothing need be asked of the device
    return torch.linalg.solve_ex(identity - skew, 2 * skew, check_errors=False).result


@dataclass(frozen=True)
class Stage:
    """Blocks of rows times 1 + turn, turn (K, n, n).

    apart: how far the two halves of a block stand apart; 0: a block is n neighbours
    """

    turn: Tensor
    apart: int = 0

    def __call__(self, rows: Tensor) -> Tensor:
        """rows (T, K * n), in the dtype of turn"""
        return self.placed(times(self.ordered(rows), self.turn))

    def back(self, grad: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of rows and turn, for that of the result."""
        grad, rows = self.ordered(grad), self.ordered(rows)
        of_turn = torch.bmm(in_blocks(rows, self.turn).mT, in_blocks(grad, self.turn))
        return self.placed(times(grad, self.turn.mT)), of_turn

    def ordered(self, rows: Tensor) -> Tensor:
        """Each block's outputs side by side."""
        if not self.apart:
            return rows.contiguous()
        return rows.unflatten(1, (-1, 2, self.apart)).transpose(2, 3).flatten(1)

    def placed(self, rows: Tensor) -> Tensor:
        """The opposite of `ordered`."""
        if not self.apart:
            return rows
        return rows.unflatten(1, (-1, self.apart, 2)).transpose(2, 3).flatten(1)


def times(rows: Tensor, turn: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return rows + torch.bmm(in_blocks(rows, turn), turn).transpose(0, 1).flatten(1)
    out = rows.clone()
    in_blocks(out, turn).baddbmm_(in_blocks(rows, turn), turn)
    return out


def in_blocks(rows: Tensor, turn: Tensor) -> Tensor:
    """rows (T, K * n) seen as (K, T, n)."""
    return rows.view(len(rows), *turn.shape[:2]).transpose(0, 1)


def stages_of(turn: Tensor) -> list[Stage]:
    """Of one set of blocks, or of a butterfly's: its rows are outputs, ours are samples."""
    if turn.dim() == 3:
        return [Stage(turn)]
    size = turn.shape[-1]
    return [Stage(each.mT, 2**number * size // 2) for number, each in enumerate(turn)]


class InTurn(torch.autograd.Function):
    """rows (T, out) through all stages; what lies between them is made again for backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, turn: Tensor) -> Tensor:
        ctx.save_for_backward(rows, turn)
        return reduce(lambda done, stage: stage(done), stages_of(turn), rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        rows, turn = ctx.saved_tensors
        stages, inputs = stages_of(turn), [rows]
        for stage in stages[:-1]:
            inputs.append(stage(inputs[-1]))
        of_turns: list[Tensor] = []
        for stage in reversed(stages):
            grad, of_turn = stage.back(grad, inputs.pop())
            of_turns.insert(0, of_turn)
        if turn.dim() == 3:
            return grad, of_turns[0]
        return grad, torch.stack(of_turns).mT


def in_turn(rows: Tensor, turn: Tensor) -> Tensor:
    """rows (T, out) turned by one set of blocks, or by the stages of a butterfly."""
    if torch.compiler.is_compiling():
        return reduce(lambda done, stage: stage(done), stages_of(turn), rows)
    return InTurn.apply(rows, turn)


class OFT(LinearAdapter):
    """All blocks start at zero, so that nothing is turned.

    alpha:      the limit of the turns, as `turns` has it
    oft_blocks: (K, n, n), or of BOFT (stages, K, n, n)
    """

    not_universal = "an OFT"
    no_norm_limit = "OFT, which adds nothing: limit its turns by constraint in network_args"
    oft_blocks: nn.Parameter

    def __init__(
        self, shape: Sequence[int], limit: float = 0.0, dropout: Dropout = NO_DROPOUT
    ) -> None:
        super().__init__(None, limit, dropout)
        self._add_factors({BLOCKS: tuple(shape)})

    @classmethod
    def as_file(cls, base: nn.Linear, factors: Factors, dropout: Dropout) -> OFT:
        check_blocks(factors, base.out_features)
        return cls(factors[BLOCKS].shape, stored_limit(factors), dropout)

    @property
    def size(self) -> str:
        return f"blocks of {self.oft_blocks.shape[-1]}"

    @torch.no_grad()
    def fill(self, factors: Factors, base: nn.Module, whole: Collection[str]) -> None:
        super().fill(factors, base, whole)
        self.alpha = stored_limit(factors)

    def forward(self, x: Tensor, weight: Frozen, bias: Tensor | None) -> Tensor:
        base = base_product(x, weight, None)
        turn = turns(self.oft_blocks, self.alpha)
        if self.training and self.dropout.rank:
            shape = (*turn.shape[:-2], 1, 1)
            turn = turn * keep_mask(shape, self.dropout.rank, turn, rescale=True)
        rows = base.reshape(-1, base.shape[-1])
        out = in_turn(rows, at_use(turn, rows)).view_as(base)
        if not self.is_whole:
            out = base + self.share(base) * (out - base)
        return out if bias is None else out + bias

    @property
    def is_whole(self) -> bool:
        """Whether all of the turn acts on all of the output."""
        drops = self.training and (self.dropout.neuron or self.dropout.module)
        return self.multiplier == 1 and not drops

    def share(self, base: Tensor) -> float | Tensor:
        """What part of the difference acts: the strength, and what dropout leaves of it."""
        share: float | Tensor = self.multiplier
        if self.training and self.dropout.neuron:
            share = share * keep_mask(tuple(base.shape), self.dropout.neuron, base, rescale=True)
        mask = self.module_mask(base)
        return share if mask is None else share * mask

    def merged(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = parameters["weight"]
        turn = turns(self.oft_blocks.detach(), self.alpha).to(weight.device)
        change = in_turn(weight.T.contiguous(), turn).T - weight
        return {"weight": weight + self.multiplier * change}


@dataclass(frozen=True, kw_only=True)
class OFTArguments(KindArguments):
    """boft:       in stages, as a butterfly
    constraint: S is at most this times the number of outputs long; 0 is no limit
    """

    ADDS: ClassVar[bool] = False

    boft: bool = False
    constraint: float = 0.0

    @staticmethod
    def problems_of(values: Mapping[str, object]) -> list[Problem]:
        limit = values.get("constraint", 0.0)
        if isinstance(limit, float) and limit < 0:
            return [Problem("expected 0 (no limit) or more.", f"constraint={limit:g}")]
        return []

    def make(self, base: nn.Linear, rank: int, alpha: float, dropout: Dropout) -> OFT:
        outputs = base.out_features
        shape = butterfly(outputs, rank) if self.boft else blocks_of(outputs, rank)
        return OFT(shape, limit_of_file(self.constraint * outputs), dropout)

    def remarks(self, adapters: Sequence[LinearAdapter], request: Request) -> Iterator[str]:
        if adapters and request.alpha not in (None, 0, 1):
            yield "network_alpha has no effect on OFT; turns are limited by constraint"


def limit_of_file(limit: float) -> float:
    """As alpha is stored."""
    return torch.tensor(limit, dtype=torch.float32, device="cpu").item()


def blocks_of(outputs: int, size: int) -> tuple[int, int, int]:
    """The blocks that LyCORIS gives so many outputs: as large as is asked for, or as their root."""
    size, count = factorize(outputs, size)
    return count, size, size


def butterfly(outputs: int, size: int) -> tuple[int, int, int, int]:
    """The stages and blocks of a BOFT: the largest even block, a power of two of which are the outputs.

    Raises ConfigError where there is none of at most this size.
    """
    fitting = [n for n in range(2, outputs + 1, 2) if outputs % n == 0 and is_power(outputs // n)]
    small = [n for n in fitting if n <= size]
    if not small:
        smallest = f"the smallest is {fitting[0]}" if fitting else "there is none of any size"
        message = (
            f"has no even block for {outputs} outputs that is repeated a power of two times; {smallest}. "
            "Leave such layers out (exclude_patterns), or give them a rank (network_reg_dims)."
        )
        raise ConfigError([Problem(message, f"boft=true with a rank of {size}")])
    count = outputs // small[-1]
    return int(math.log2(count)) + 1, count, small[-1], small[-1]


def is_power(number: int) -> bool:
    return number.bit_count() == 1


def check_blocks(factors: Factors, outputs: int) -> None:
    """Raises ValueError for blocks that cannot be of a Linear with so many outputs."""
    shape = tuple(factors[BLOCKS].shape)
    if DORA_SCALE in factors:
        raise ValueError(f"has {DORA_SCALE} beside {BLOCKS}")
    if len(shape) not in (3, 4) or shape[-1] != shape[-2] or not all(shape):
        raise ValueError(f"has {BLOCKS} of shape {shape}, expected (K, n, n) or (stages, K, n, n)")
    count, size = shape[-3], shape[-1]
    if count * size != outputs:
        raise ValueError(f"has {count} blocks of {size} for {outputs} outputs")
    if len(shape) == 4 and (size % 2 or count % 2 ** (shape[0] - 1)):
        raise ValueError(f"has {shape[0]} stages, which {count} blocks of {size} do not have")


def stored_limit(factors: Factors) -> float:
    """A file's alpha as ComfyUI reads it for this kind. Raises ValueError."""
    if ALPHA not in factors:
        return 0.0
    if factors[ALPHA].numel() != 1:
        raise ValueError(f"alpha holds {factors[ALPHA].numel()} numbers, expected one")
    limit = float(factors[ALPHA].item())
    if not math.isfinite(limit):
        raise ValueError(f"alpha is {limit}, expected a finite number")
    return max(limit, 0.0)


def oft_change(factors: Factors, weight: Tensor) -> Tensor:
    check_blocks(factors, weight.shape[0])
    turn = turns(factors[BLOCKS].to(weight.device, torch.float32), stored_limit(factors))
    return in_turn(weight.float().T.contiguous(), turn).T - weight.float()


KIND = Kind(
    "OFT",
    factors={BLOCKS: (BLOCKS,)},
    change=oft_change,
    training=Training("oft", OFTArguments, OFT.as_file, "1e-4 to 1e-3"),
    refused={
        "rescale": "of a rescaled OFT: ComfyUI applies it to BOFT alone",
        "oft_diag": "an OFT of LyCORIS' first versions",
    },
)
