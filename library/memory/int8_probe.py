"""Whether int8 products are faster here than those in floats: timed on a run's own shapes before it starts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from library.memory.quantised import Rotated, quantised_product
from library.memory.trials import apart_from, wait_for

ROUNDS = 5
ROWS_ON_CPU = 512  # more take seconds there and tell the same
FURTHEST = 0.1  # |found - expected| / |expected|, of a kernel that computes what it should


@dataclass(frozen=True)
class Products:
    """Of a step: rows of activations, and how many frozen matrices there are of each shape (out, in)."""

    rows: int
    shapes: Mapping[tuple[int, int], int]


Wrap = Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]


def why_not(products: Products, dtype: torch.dtype, device: torch.device, wrap: Wrap) -> str | None:
    """Why int8 products are to be left off, forward and backward together; None: they are faster.

    wrap: what compiles a function, where the run does
    """
    rows = min(products.rows, ROWS_ON_CPU) if device.type == "cpu" else products.rows
    generator = torch.Generator().manual_seed(0)
    whole, integer = 0.0, 0.0
    for (out, width), count in products.shapes.items():
        weight = torch.randn(out, width, generator=generator) * width**-0.5
        x = torch.randn(rows, width, generator=generator).to(device, dtype).requires_grad_(True)
        plain = nn.Parameter(weight.to(device, dtype), requires_grad=False)
        stored = Rotated.of(weight.to(device), "int8_rotated")
        expected, seconds = timed(wrap(partial(F.linear, weight=plain)), x)
        try:
            found, others = timed(wrap(partial(quantised_product, weight=stored)), x)
        except RuntimeError as error:  # no such kernel for this device or these sizes
            return f"{device} cannot ({str(error).strip().splitlines()[0]})"
        if any(apart_from(*pair, torch.float32) > FURTHEST for pair in zip(found, expected)):
            return f"{device} computes ({rows}, {width}) x ({width}, {out}) wrongly in int8"
        whole, integer = whole + count * seconds, integer + count * others
    if integer < whole:
        return None
    name = str(dtype).removeprefix("torch.")
    return f"they take {1e3 * integer:.1f} ms a step here, in {name} {1e3 * whole:.1f} ms"


def timed(
    product: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[tuple[Tensor, Tensor], float]:
    """(output, gradient of the input), and the median of seconds, after one round that does not count."""
    seconds = []
    for _ in range(1 + ROUNDS):
        wait_for(x.device)
        start = time.perf_counter()
        out = product(x)
        (gradient,) = torch.autograd.grad(out, x, out.detach())
        wait_for(x.device)
        seconds.append(time.perf_counter() - start)
    return (out.detach(), gradient), statistics.median(seconds[1:])
