"""Updates of a model's masters, some of them at a time: only theirs have gradients in float32 then.

The same bits as of all at once, for optimizers that look at one weight at a time only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from library.training.single_updates import clipping, taken

if TYPE_CHECKING:
    from library.settings.run_config import TrainConfig
    from networks.trained import Trained

Pair = tuple[nn.Parameter, nn.Parameter]
"""The model's weight, which has the gradient; its master, which the optimizer changes."""

MOST = 2**27
"""Numbers of a part, unless one weight has more: half a GiB of gradients, and few calls of the optimizer."""


class PartedUpdates:
    """Makes an update of all weights together, part by part.

    most: numbers of a part
    """

    def __init__(self, optimizer: Optimizer, pairs: Sequence[Pair], most: int = MOST) -> None:
        self.optimizer = optimizer
        self.parts = list(parts_of(pairs, most))

    @staticmethod
    def of(cfg: TrainConfig, optimizer: Optimizer, network: Trained) -> PartedUpdates | None:
        """None where the options ask for another way, or nothing has a master."""
        if not cfg.updates_in_parts:
            return None
        pairs = network.pairs()
        has_masters = any(held is not weight for weight, held in pairs)
        return PartedUpdates(optimizer, pairs) if has_masters else None

    def norm(self) -> Tensor:
        """Of all gradients, on the device; as torch.nn.utils.clip_grad_norm_ finds it."""
        found: list[Tensor] = []
        for part in self.parts:
            gradients = [w.grad.to(held.dtype) for w, held in part if w.grad is not None]
            found += torch._foreach_norm(gradients) if gradients else []
        return torch.linalg.vector_norm(torch.stack(found))

    @torch.no_grad()
    def step(self, norm: Tensor, max_norm: float, step: Callable[[Tensor], None]) -> None:
        """The update, with gradients of that norm clipped to max_norm, and then dropped.

        step: the optimizer's, which is told the norm; called for each part
        """
        factor = clipping(norm, max_norm)
        for part in self.parts:
            present = [(weight, held) for weight, held in part if weight.grad is not None]
            for weight, held in present:
                held.grad = taken(weight).to(held.dtype)
            changed = [held for _, held in present]
            if changed:
                torch._foreach_mul_([held.grad for held in changed if held.grad is not None], factor)
                with self._over(changed):
                    step(norm)
            for held in changed:
                held.grad = None

    @contextmanager
    def _over(self, changed: Iterable[nn.Parameter]) -> Iterator[None]:
        """Within: the optimizer has these parameters alone."""
        ids, groups = set(map(id, changed)), self.optimizer.param_groups
        kept = [group["params"] for group in groups]
        for group, params in zip(groups, kept, strict=True):
            group["params"] = [each for each in params if id(each) in ids]
        self.optimizer.param_groups = [group for group in groups if group["params"]]
        try:
            yield
        finally:
            self.optimizer.param_groups = groups
            for group, params in zip(groups, kept, strict=True):
                group["params"] = params


def parts_of(pairs: Iterable[Pair], most: int) -> Iterator[list[Pair]]:
    """The pairs in their order, in lists of at most so many numbers, or of one pair."""
    part: list[Pair] = []
    size = 0
    for pair in pairs:
        count = pair[1].numel()
        if part and size + count > most:
            yield part
            part, size = [], 0
        part.append(pair)
        size += count
    if part:
        yield part
