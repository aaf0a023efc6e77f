"""Bytes of an optimizer's states, by the optimizer itself: one update of one tensor of each shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from library.training.optimizer_trial import unnoticed
from library.training.optimizers import create_optimizer, optimizer_train_mode

if TYPE_CHECKING:
    from library.settings.flags.optimizer import OptimizerOptions


def state_bytes(options: OptimizerOptions, parameters: Iterable[Tensor]) -> int:
    """Of all parameters, of which only shapes and dtypes are read. Raises what the optimizer raises."""
    counts = Counter((tuple(p.shape), p.dtype) for p in parameters)
    sizes = state_sizes(options, list(counts))
    return sum(size * count for size, count in zip(sizes, counts.values()))


def state_sizes(
    options: OptimizerOptions, shapes: Sequence[tuple[tuple[int, ...], torch.dtype]]
) -> list[int]:
    """Bytes of the state of one parameter of each shape, after an update.

    Two of each are made, so that tables which all of them share are told from what is their own.
    """
    with unnoticed():
        made = [
            nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape, dtype in shapes for _ in "ab"
        ]
        optimizer = create_optimizer(options, [{"params": made}])
        optimizer_train_mode(optimizer)
        for parameter in made:
            parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer.step()
        states = [own_tensors(optimizer.state[parameter]) for parameter in made]
    users = Counter(address for state in states for address in state)
    return [
        sum(size for address, size in state.items() if users[address] == 1) for state in states[::2]
    ]


def own_tensors(state: Mapping[str, object]) -> dict[int, int]:
    """The bytes of a state's tensors by their addresses."""
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    return {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
