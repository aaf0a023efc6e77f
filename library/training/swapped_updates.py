"""Updates of weights that wait in RAM, with all that the optimizer has of them, made on the device.

A gradient leaves for RAM when it is whole; an update fetches what it needs of one weight, changes it where
all others are changed, by the same kernels, and sends it back. So the bits are those of weights that stay.
With a fused backward pass a gradient never leaves: what is to be changed comes to it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from library.memory.swapping import Swap
from library.memory.visits import Visits, home_of, new_home
from library.training.single_updates import SingleUpdates, clipping, square_of, taken

if TYPE_CHECKING:
    from library.settings.run_config import TrainConfig
    from networks.trained import Trained

SUM, UPDATE = "sum", "update"  # what is done with a weight's tensors: the first half of a visit's key


def single_updates(
    cfg: TrainConfig, optimizer: Optimizer, network: Trained
) -> SingleUpdates | None:
    """As the options ask; None where all weights are updated together."""
    rounds = cfg.precision.full_bf16 and cfg.precision.stochastic_rounding
    is_fused = cfg.whole and cfg.optimizer.fused_backward_pass
    if network.swap is not None:
        return SwappedUpdates(
            optimizer, network.pairs(), network.swap, rounds=rounds, is_fused=is_fused
        )
    if not (rounds or is_fused):
        return None
    made = SingleUpdates(optimizer, network.pairs(), rounds=rounds)
    if is_fused:
        made.fuse()
    return made


class SwappedUpdates(SingleUpdates):
    """The same where the weights of a swap are among them.

    Unless it rounds or is fused it stands for an update of all weights together, with that one's norm.
    away:      numbers of the pairs whose weight waits in RAM
    gradients: number -> where its gradient waits; arrived: those that have one
    norms:     of those, as `norm` adds them up
    """

    def __init__(
        self,
        optimizer: Optimizer,
        pairs: Sequence[tuple[nn.Parameter, nn.Parameter]],
        swap: Swap,
        *,
        rounds: bool,
        is_fused: bool,
    ) -> None:
        super().__init__(optimizer, pairs, rounds=rounds)
        self.swap = swap
        self.away = {n for n, (weight, _) in enumerate(self.pairs) if id(weight) in swap.numbers}
        self.gradients: dict[int, Tensor] = {}
        self.arrived: set[int] = set()
        self.norms: dict[int, Tensor] = {}
        self.visits = Visits(swap.device, self._homes, swap.lane)
        self.here: Sequence[Tensor] = ()  # of the weight that is updated
        swap.before_reading.append(self.visits.settle)
        optimizer.register_state_dict_pre_hook(lambda _: swap.settle())
        if is_fused:
            self.fuse()
        for number in () if is_fused else self.away:
            self.pairs[number][0].register_post_accumulate_grad_hook(partial(self._leaves, number))

    def begin(self, seed: int, step: int) -> None:
        super().begin(seed, step)
        self.visits.begin()

    def norm(self) -> Tensor:
        """Of all gradients of the step; as torch.nn.utils.clip_grad_norm_ finds it, unless one by one."""
        if self.is_fused:
            return super().norm()
        found = [
            self.norms[number] if number in self.arrived else self._measured(number, weight.grad)
            for number, (weight, _) in enumerate(self.pairs)
            if number in self.arrived or weight.grad is not None
        ]
        together = torch.stack(found)
        return together.sum().sqrt() if self.rounds else torch.linalg.vector_norm(together)

    def step(self, norm: Tensor, max_norm: float) -> None:
        if self.is_fused:
            return
        self.visits.begin()
        finite, factor = torch.isfinite(norm), clipping(norm, max_norm)
        for number, (weight, held) in enumerate(self.pairs):
            if number in self.arrived:
                self.here = self.visits.come((UPDATE, number))
                gradient = self.here[-1]
            elif weight.grad is not None:
                gradient = taken(weight)
            else:
                continue
            gradient = gradient.to(torch.float32 if self.rounds else held.dtype)
            torch._foreach_mul_([gradient], factor)
            self._update(number, gradient, finite)
        self.arrived.clear()

    @torch.no_grad()
    def _leaves(self, number: int, weight: Tensor) -> None:
        """The gradient of a weight has arrived, in the backward pass: it is added to what waits in RAM."""
        gradient = taken(weight).to(self.swap.device)  # there it is, unless autograd had to copy it
        if number not in self.gradients:
            self.gradients[number] = new_home(gradient, self.swap.device)
        home = self.gradients[number]
        if number in self.arrived:
            (earlier,) = self.visits.come((SUM, number))
            gradient = earlier.add_(gradient)
            self.visits.leave((SUM, number), [(home, gradient)])
        else:
            self.visits.forget()  # what waits from the step before may have been fetched
            self.visits.send([(home, gradient)])
            self.arrived.add(number)
        self.norms[number] = self._measured(number, gradient)

    def _measured(self, number: int, gradient: Tensor | None) -> Tensor:
        """What the norm is made of: the square of a norm where it rounds, else the norm."""
        assert gradient is not None, "who asks has looked"
        if self.rounds:
            return square_of(gradient)
        (norm,) = torch._foreach_norm([gradient.to(self.pairs[number][1].dtype)])
        return norm

    def _arrived(self, number: int, weight: Tensor) -> None:
        if number in self.away:
            self.here = self.visits.come((UPDATE, number))
        super()._arrived(number, weight)

    def _update(self, number: int, gradient: Tensor, finite: Tensor) -> None:
        if number not in self.away:
            return super()._update(number, gradient, finite)
        with self._present(number):
            super()._update(number, gradient.to(self.swap.device), finite)

    def _show(self, number: int) -> None:
        if number not in self.away:
            super()._show(number)

    @contextmanager
    def _present(self, number: int) -> Iterator[None]:
        """Within: the optimizer has of a weight what came to the device. After: that goes back."""
        weight, held = self.pairs[number]
        home, states = held.data, self._states(held)
        held.data = self.here[0]
        self.optimizer.state[held].update(zip(states, self.here[1:]))
        yield
        self.swap.change(weight)
        changed = [(home, held.data)]
        if held is not weight:
            changed.append((weight.data, held.detach().to(weight.dtype)))
        held.data = home
        for name, value in self._states(held).items():
            place = states[name] if name in states else new_home(value, self.swap.device)
            changed.append((place, value))
            self.optimizer.state[held][name] = place
        self.visits.leave((UPDATE, number), changed)

    def _homes(self, key: Hashable) -> Sequence[Tensor]:
        """What is fetched of a weight: its gradients' sum, or what changes, and the gradient if it waits."""
        assert isinstance(key, tuple)
        what, number = key
        if what == SUM:
            return [self.gradients[number]]
        held = self.pairs[number][1]
        waits = [self.gradients[number]] if number in self.arrived else []
        return [held.data, *self._states(held).values(), *waits]

    def _states(self, held: nn.Parameter) -> dict[str, Tensor]:
        """Those of the optimizer's states of a weight that travel; numbers stay where its kernel wants them."""
        state = self.optimizer.state.get(held, {})
        for name, value in state.items():
            if isinstance(value, Tensor) and not value.dim() and self._on_device(name, held):
                state[name] = value.to(self.swap.device)
            elif isinstance(value, Tensor) and value.dim() and value.device.type == "cpu":
                state[name] = home_of(value, self.swap.device)
        return {name: v for name, v in state.items() if isinstance(v, Tensor) and v.dim()}

    def _on_device(self, name: str, held: nn.Parameter) -> bool:
        """Whether a number of the state is the device's: of torch's optimizers the count, where they say so."""
        group: dict[str, Any] = self.groups[id(held)]
        return name != "step" or bool(group.get("fused") or group.get("capturable"))
