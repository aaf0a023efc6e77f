"""Time clipping and update over one buffer against torch's own, one tensor after the other.

python -m tools.bench.update [--factors 560 --optimizers AdamW Lion] [--device cuda] [--json update.json]

Gradients are there already; both arms make of them a norm, clip, step and let go of them. Factors are those
of LoRA, (rank, width) and (width, rank) in turn. `operators` are the calls of torch's kernels in one update,
`tensors` those that they are given to write, by the list or one by one: on a GPU a list of hundreds is
some launches, each of as many tensors as its arguments hold.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from library.settings.flags.optimizer import OptimizerOptions
from library.system.program import run_main
from library.training.flat_updates import FlatUpdates, clip_norm
from library.training.optimizers import create_optimizer, optimizer_train_mode
from tools.bench.measuring import (
    Figures,
    Work,
    clock_of_work,
    compare,
    make_parser,
    report,
    settle,
    time_arms,
    whole_number,
)

MAX_NORM = 1.0


class CountCalls(TorchDispatchMode):
    """Within: how many operators run that are no views, and over how many tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.tensors = 0

    def __torch_dispatch__(
        self,
        function: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not (function.is_view or function is torch.ops.aten.detach.default):
            self.operators += 1
            foreach = "_foreach" in str(function) or "_fused" in str(function)
            self.tensors += len(args[0]) if foreach else 1
        return function(*args, **(kwargs or {}))


def make_factors(options: argparse.Namespace) -> tuple[list[nn.Parameter], list[Tensor]]:
    """Parameters and a gradient for each."""
    shapes = [(options.rank, options.width), (options.width, options.rank)]
    made = [
        nn.Parameter(torch.randn(shapes[number % 2], device=options.device))
        for number in range(options.factors)
    ]
    return made, [torch.randn_like(factor) for factor in made]


def arm(options: argparse.Namespace, name: str, flat: bool) -> Work:
    factors, gradients = make_factors(options)
    chosen = OptimizerOptions(optimizer_type=name, learning_rate=1e-4)
    optimizer = create_optimizer(chosen, [{"params": factors}])
    whole = FlatUpdates.of(optimizer, chosen) if flat else None
    optimizer_train_mode(optimizer)

    def by_itself() -> None:
        nn.utils.clip_grad_norm_(factors, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def as_one(updates: FlatUpdates) -> None:
        assert updates.gather()
        with updates.as_one():
            clip_norm(updates.gradients, MAX_NORM)
            optimizer.step()

    def work() -> None:
        for factor, gradient in zip(factors, gradients):
            factor.grad = gradient
        by_itself() if whole is None else as_one(whole)

    return work


def calls_of(work: Callable[[], object]) -> dict[str, int]:
    """Of an update that is not the first."""
    work()
    with CountCalls() as counted:
        work()
    return {"operators": counted.operators, "tensors": counted.tensors}


def measure(options: argparse.Namespace, name: str) -> list[Figures]:
    arms = {"each by itself": arm(options, name, False), "as one": arm(options, name, True)}
    calls = {each: calls_of(work) for each, work in arms.items()}
    times = time_arms(arms, options.rounds, options.device, clock_of_work(options.device))
    return [{"optimizer": name, **row, **calls[str(row["arm"])]} for row in compare(times)]


def main() -> None:
    assert __doc__
    parser = make_parser(__doc__, rounds=21)
    add = parser.add_argument
    add("--optimizers", nargs="+", default=["AdamW", "Lion", "SGDNesterov", "AdamWScheduleFree"])
    add("--factors", type=whole_number, default=560)
    add("--rank", type=whole_number, default=16)
    add("--width", type=whole_number, default=64, help="small by default: what is left is the calls")
    options = settle(parser)
    rows = [row for name in options.optimizers for row in measure(options, name)]
    report(options, rows, f"{options.factors} factors of {options.rank} x {options.width}")


if __name__ == "__main__":
    run_main(main)
