"""Updates of one weight after another: what an update needs beside the weights is there for one at a time.

So a weight in bf16 can be updated in float32 and rounded by chance (stochastic rounding), and so an update
can be made inside the backward pass, as soon as a weight's gradient is there, which then goes (fused).
For optimizers that look at one weight at a time only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from library.training.rounding import stochastically_rounded
from library.utils import position_seed


class SingleUpdates:
    """Makes the updates of an optimizer weight by weight.

    pairs:    (the model's weight, which has the gradient; what the optimizer changes for it)
    rounds:   the second is bf16, updated in float32 and rounded by chance
    is_fused: each update is made in the backward pass; the norm is then known afterwards
    """

    def __init__(
        self, optimizer: Optimizer, pairs: Sequence[tuple[nn.Parameter, nn.Parameter]], *, rounds: bool
    ) -> None:
        self.optimizer, self.pairs, self.rounds = optimizer, list(pairs), rounds
        self.groups: dict[int, dict[str, Any]] = {}  # of each parameter, by its id
        self.is_fused = False
        self.seed = self.number_of_step = 0
        self.squares: list[Tensor] = []  # of the gradients of the updates made so far, in a fused step
        self.generators: dict[torch.device, torch.Generator] = {}

    def fuse(self) -> None:
        """Update each weight from here on in the backward pass."""
        self.is_fused = True
        for number, (weight, _) in enumerate(self.pairs):
            weight.register_post_accumulate_grad_hook(partial(self._arrived, number))

    def begin(self, seed: int, step: int) -> None:
        """Before the first backward pass of a step: the position from which chance is drawn."""
        self.seed, self.number_of_step = seed, step
        self.squares.clear()
        groups = self.optimizer.param_groups  # others than before, once a state was loaded
        self.groups = {id(p): group for group in groups for p in group["params"]}

    def norm(self) -> Tensor:
        """Of all gradients of the step, float32 on the device."""
        squares = self.squares or [
            square_of(weight.grad) for weight, _ in self.pairs if weight.grad is not None
        ]
        return torch.stack(squares).sum().sqrt()

    def step(self, norm: Tensor, max_norm: float) -> None:
        """The update, unless it was made in the backward pass; gradients clipped to max_norm, then dropped.

        Where the norm is not finite nothing changes; the host does not wait.
        """
        if self.is_fused:
            return
        finite, factor = torch.isfinite(norm), clipping(norm, max_norm)
        for number, (weight, _) in enumerate(self.pairs):
            if weight.grad is not None:
                self._update(number, taken(weight).float() * factor, finite)

    def _arrived(self, number: int, weight: Tensor) -> None:
        """The gradient of a weight is whole, in the backward pass."""
        gradient = taken(weight).float()
        square = square_of(gradient)
        self.squares.append(square)
        self._update(number, gradient, torch.isfinite(square))

    @torch.no_grad()
    def _update(self, number: int, gradient: Tensor, finite: Tensor) -> None:
        """One weight by its gradient, unless that is not finite (a scalar on the device)."""
        _, held = self.pairs[number]
        changed = nn.Parameter(held.float()) if self.rounds else held
        changed.grad = torch.where(finite, gradient, 0.0).to(changed.dtype)
        with self._alone(held, changed), self._left_out_unless(finite, changed):
            self.optimizer.step()
        changed.grad = None
        if self.rounds:
            held.copy_(stochastically_rounded(changed.detach(), self._chance(number, held.device)))
        self._show(number)

    def _show(self, number: int) -> None:
        """Let the model compute with what was changed."""
        weight, held = self.pairs[number]
        if held is not weight:
            weight.copy_(held)

    def _chance(self, number: int, device: torch.device) -> torch.Generator:
        """For a weight at this step, the same in every process and after any resume."""
        generator = self.generators.setdefault(device, torch.Generator(device))
        return generator.manual_seed(
            position_seed(self.seed, "rounding", self.number_of_step, number)
        )

    @contextmanager
    def _alone(self, held: nn.Parameter, changed: nn.Parameter) -> Iterator[None]:
        """Within: the optimizer is over `changed` alone, with the state of `held`."""
        optimizer, group, states = self.optimizer, self.groups[id(held)], self.optimizer.state
        kept = optimizer.param_groups, group["params"]
        optimizer.param_groups, group["params"] = [group], [changed]
        if changed is not held and held in states:
            states[changed] = states.pop(held)
        try:
            yield
        finally:
            optimizer.param_groups, group["params"] = kept
            if changed is not held and changed in states:
                states[held] = states.pop(changed)

    @contextmanager
    def _left_out_unless(self, finite: Tensor, changed: nn.Parameter) -> Iterator[None]:
        """Within: an update that leaves no trace where the condition is false, by the kernel or undone."""
        if skips_on_device(self.optimizer):
            with found_inf(self.optimizer, ~finite):
                yield
            return
        before, state = changed.detach().clone(), self.optimizer.state.get(changed, {})
        kept = {key: value.clone() for key, value in state.items() if isinstance(value, Tensor)}
        yield
        changed.copy_(torch.where(finite, changed, before))
        now = self.optimizer.state[changed]
        for key, value in kept.items():
            now[key] = torch.where(finite.to(value.device), now[key], value)


def taken(weight: Tensor) -> Tensor:
    """Its gradient, which it has no longer."""
    gradient, weight.grad = weight.grad, None
    assert gradient is not None, "it has arrived"
    return gradient


def clipping(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of that norm are multiplied by, as torch.nn.utils.clip_grad_norm_ does."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


def square_of(gradient: Tensor) -> Tensor:
    return torch.linalg.vector_norm(gradient, dtype=torch.float32).square()


def skips_on_device(optimizer: Optimizer) -> bool:
    """Whether the kernel obeys `found_inf`: torch's fused Adam and AdamW.

    Fused SGD has the argument too, but leaves its momentum uninitialized when the first is skipped.
    """
    known = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
    return known and all(group.get("fused") for group in optimizer.param_groups)


@contextmanager
def found_inf(optimizer: Any, is_so: Tensor) -> Iterator[None]:
    """Within: the fused kernel leaves out an update where the condition (a scalar) is true."""
    optimizer.found_inf = is_so.float()
    try:
        yield
    finally:
        del optimizer.found_inf
