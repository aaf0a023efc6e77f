"""A training step counted: the project's own model, adapters, loss and optimizer, without data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from library.memory.compiled_count import CountedCompiler
from library.memory.cuda_kernels import as_on_cuda
from library.memory.ledger import CUDA_GRANULE, Kernels, Ledger
from library.memory.optimizer_states import state_bytes
from library.memory.swapping import Swap
from library.settings.optimizer_names import is_elementwise, is_undoable
from library.training.parted_updates import MOST, parts_of

if TYPE_CHECKING:
    from library.settings.flags.optimizer import OptimizerOptions
    from networks.trained import Trained

AT_ONCE = 5 * 4
"""Bytes of each number of a weight that is updated alone: gradient, weight, noise, and copies, in float32."""

Stand = Callable[[Ledger], AbstractContextManager[None]]


@dataclass(frozen=True)
class Step:
    """A step that can be run again and again.

    device: where it is computed: the meta device, or, to be compared, a real one
    model:  with the adapters of `network` attached
    loss:   the loss of one micro-batch, a scalar
    swap:   of the model's weights that wait in RAM
    waits:  what else of them does, and comes in each step
    rests:  what else of them is not on the device, since no step needs it
    optimizer:   None: its states are counted by others
    accumulates: whether gradients of earlier micro-batches are there
    single:      one weight is updated after another
    parted:      masters are updated a part at a time
    compiler:    of its blocks, if they are compiled and it is counted
    """

    device: torch.device
    model: nn.Module
    network: Trained
    loss: Callable[[], Tensor]
    optimizer: OptimizerOptions | None
    swap: Swap | None = None
    waits: Sequence[Tensor] = ()
    rests: Sequence[Tensor] = ()
    accumulates: bool = False
    single: bool = False
    parted: bool = False
    compiler: CountedCompiler | None = None

    def run(self) -> None:
        """One micro-batch forward and backward; leaves no gradients."""
        self.loss().backward()
        self.network.clear_gradients()


@dataclass(frozen=True)
class StepCount:
    """What one step needs and does; bytes. The update's own kernels are not counted.

    weights:       of the frozen model, on the device, and the buffers that others pass through
    in_host:       the most at once in the host's memory of what is on the device otherwise
    states:        of the optimizer, once there are any
    kept:          what forward leaves for backward
    left:          what is there when backward is done, beside gradients; more than 0 is a leak
    peak:          the most at once on the device, everything together
    kernels:       of forward and backward, without those of compiled blocks
    away:          names of what trains and waits in RAM; states and gradients of it are not counted
    """

    weights: int
    adapters: int
    states: int
    gradients: int
    kept: int
    left: int
    peak: int
    in_host: int
    kernels: Kernels
    away: tuple[str, ...] = ()

    @property
    def activations(self) -> int:
        """What is beside weights, adapters, gradients and states when the most is in use."""
        return self.peak - self.weights - self.adapters - self.gradients - self.states


def count_step(
    step: Step, kernels: Stand = as_on_cuda, granule: int = CUDA_GRANULE,
    make_ledger: Callable[[torch.device, int], Ledger] = Ledger,
) -> StepCount:  # fmt: skip
    """One micro-batch forward and backward; leaves no gradients.

    The update comes after, when all that was kept is gone. It needs less, unless there are so many
    trained parameters that what an elementwise optimizer has twice for a moment needs more: gradients, and
    where an update can be taken back, parameters and states.
    kernels: which kernels the meta device stands for; granule: see Ledger
    """
    passes = step.compiler.trace(step.run, Ledger(step.device)) if step.compiler else 0
    trained = step.network.get_trainable_params()
    states = state_bytes(step.optimizer, trained) if step.optimizer else 0
    ledger = make_ledger(step.device, granule)
    away = trained_away(step.network)
    ledger.enter_in_host(away.values())
    adapters = ledger.enter(trained)
    weights = enter_weights(ledger, step)
    resident = ledger.on_device.now
    if step.accumulates:
        enter_gradients(ledger, step.network, set(away))
    seen = step.compiler.seen_by(ledger, passes) if step.compiler else nullcontext()
    with kernels(ledger), ledger, seen:
        kept = kept_between(step, ledger)
    after = ledger.on_device.now - resident
    step.network.clear_gradients()
    left = ledger.on_device.now - resident
    gradients = after - left
    update = resident + gradients + beside_update(step, gradients, adapters + states)
    return StepCount(
        weights=weights,
        adapters=adapters,
        states=states,
        gradients=gradients,
        kept=kept,
        left=left,
        peak=states + max(ledger.on_device.peak, update),
        in_host=ledger.in_host.peak,
        kernels=ledger.kernels,
        away=tuple(away),
    )


def kept_between(step: Step, ledger: Ledger) -> int:
    """A loss and its gradients are computed; the bytes that forward has left for backward."""
    start = ledger.on_device.now
    loss = step.loss()
    kept = ledger.on_device.now - start
    loss.backward()
    return kept


def trained_away(network: Trained) -> dict[str, Tensor]:
    """What trains of the weights that wait in RAM, and waits there too, by its name."""
    if network.swap is None:
        return {}
    named = zip(network.tensors().items(), network.pairs(), strict=True)
    return {name: held for (name, held), (weight, _) in named if id(weight) in network.swap.numbers}


def enter_gradients(ledger: Ledger, network: Trained, away: set[str]) -> None:
    """Those of earlier micro-batches, where they stay."""
    names = list(network.tensors()) if away else []
    for number, (weight, _) in enumerate(network.pairs()):
        if not (away and names[number] in away):
            weight.grad = torch.zeros_like(weight)
            ledger.enter([weight.grad])


def enter_weights(ledger: Ledger, step: Step) -> int:
    """Bytes on the device of the frozen model; what of it waits in RAM is entered there first."""
    if step.swap is not None:
        ledger.enter_in_host(weight for group in step.swap.groups for weight in group)
    ledger.enter_in_host(step.waits)
    resting = set(map(id, step.rests))
    held = step.model.state_dict(keep_vars=True).values()
    weights = ledger.enter(weight for weight in held if id(weight) not in resting)
    return weights + (ledger.enter(each.memory for each in step.swap.buffers) if step.swap else 0)


def beside_update(step: Step, gradients: int, changing: int) -> int:
    """Bytes that an update needs beside gradients. changing: parameters and states."""
    if step.network.is_whole:
        pairs = step.network.pairs()
        if step.single:
            return AT_ONCE * max(held.numel() for _, held in pairs)
        if step.parted:  # its gradients are in both dtypes for a moment
            parts = parts_of(pairs, MOST)
            return max(sum(held.nbytes for weight, held in p if held is not weight) for p in parts)
        masters = sum(held.nbytes for weight, held in pairs if held is not weight)
        return max(0, masters - gradients)  # gradients become float32, one after another
    size = 0
    if step.optimizer and is_elementwise(step.optimizer):
        size += gradients
    if step.optimizer and is_undoable(step.optimizer):  # what an update is taken back to
        size += changing
    return size
