"""Updates over one tensor for each group, whatever the number of factors.

An elementwise optimizer does not know where a tensor ends. The parameters become views of one buffer; in an
update their gradients are gathered into another, and norm, clipping and the optimizer's own arithmetic are
a handful of kernels for all of them instead of some for each. Between updates the optimizer is as anyone
expects: over the parameters, with a state for each, so that what is saved and loaded has the same form.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors
from torch.optim import Optimizer

from library.settings.optimizer_names import is_elementwise, is_undoable

if TYPE_CHECKING:
    from library.settings.flags.optimizer import OptimizerOptions

logger = logging.getLogger(__name__)

ALIGNED = 64  # elements: each view begins where a kernel may read whole vectors
ROW = 1024  # elements whose squares are added up at once for the norm

State = dict[str, Any]


class FlatUpdates:
    """The parameters of an optimizer, its gradients and its states, each as one tensor for each group.

    values:    (N,), all parameters in turn; they are views of it
    gradients: (N,), in an update
    can_undo:  all that an update changes is in tensors of the device, once there are any, and in groups
    counted:   numbers of each group before the last update, for `settle`; undone: whether it was
    """

    def __init__(self, optimizer: Optimizer, *, can_undo: bool = False) -> None:
        self.optimizer = optimizer
        self.can_undo = can_undo
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        sizes = [_rounded_up(p.numel(), ALIGNED) for p in self.parameters]
        like = self.parameters[0].detach()
        self.values = like.new_zeros(_rounded_up(sum(sizes), ROW))
        self.gaps = [like.new_zeros(n - p.numel()) for n, p in zip(sizes, self.parameters)]
        self.rest = like.new_zeros(len(self.values) - sum(sizes))
        self.flat: list[nn.Parameter] = []
        start = 0
        for group in optimizer.param_groups:
            shapes = [p.shape for p in group["params"]]
            length = _length(shapes)
            flat = self.values[start : start + length]
            for parameter, view in zip(group["params"], _views(flat, shapes)):
                view.copy_(parameter.detach())
                parameter.data = view
            self.flat.append(nn.Parameter(flat))
            start += length
        # the CPU's allocator would clear the pages of a large buffer anew each time
        self.buffer = torch.empty_like(self.values) if like.device.type == "cpu" else None
        self.gradients = self.values[:0]
        self.states: defaultdict[Tensor, State] = defaultdict(dict)  # of the flat parameters
        self.shown = optimizer.state  # of the parameters: views of those
        self.has_updated = self.gave_up = False
        self.counted: list[dict[str, float]] = []
        self.undone = Flag(like.device)
        optimizer.register_step_post_hook(self._note_update)
        optimizer.register_state_dict_pre_hook(self.settle)

    @staticmethod
    def of(optimizer: Optimizer, options: OptimizerOptions) -> FlatUpdates | None:
        """For an optimizer that the table calls elementwise; None for others."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        alike = len({(p.dtype, p.device) for p in parameters}) == 1
        if not (alike and is_elementwise(options)):
            return None
        return FlatUpdates(optimizer, can_undo=is_undoable(options))

    def gather(self) -> bool:
        """Move all gradients into one buffer; False where each parameter has to be updated by itself.

        That is so from the first time on that one has no gradient, or when a state was loaded whose
        parts differ in what is one for all of a group, such as the count of updates.
        """
        self.settle()
        if self.gave_up:
            return False
        if self.optimizer.state is not self.shown and not self._take_over_loaded():
            return self._give_up("the state has other counts of updates for some than for others")
        assert self.parameters[0].data_ptr() == self.values.data_ptr(), "factors were moved"
        pieces: list[Tensor] = []
        for parameter, gap in zip(self.parameters, self.gaps):
            if parameter.grad is None:
                return self._give_up("some have no gradient")
            pieces.append(parameter.grad)
            if len(gap):
                pieces.append(gap)
        for parameter in self.parameters:
            parameter.grad = None
        pieces.append(self.rest)
        if self.buffer is None:
            self.gradients = _flatten_dense_tensors(pieces)
        else:
            self.gradients = torch.cat([piece.reshape(-1) for piece in pieces], out=self.buffer)
        return True

    @contextmanager
    def as_one(self) -> Iterator[None]:
        """Within, after `gather`: the optimizer is over one parameter for each group."""
        groups = self.optimizer.param_groups
        kept = [group["params"] for group in groups]
        for group, flat, part in zip(groups, self.flat, self.gradients.split(self._lengths())):
            flat.grad = part
            group["params"] = [flat]
        self.optimizer.state = self.states
        try:
            yield
        finally:
            for group, parameters, flat in zip(groups, kept, self.flat):
                group["params"] = parameters
                flat.grad = None
            self.gradients = self.values[:0]
            self.optimizer.state = self.shown
            self._show()

    @property
    def undoes(self) -> bool:
        """Whether `undone_if` is possible now: there is a state to go back to."""
        values = [value for state in self.states.values() for value in state.values()]
        device = self.values.device
        on_device = all(isinstance(v, Tensor) and v.device == device for v in values)
        return self.can_undo and self.has_updated and not self.gave_up and on_device

    @contextmanager
    def undone_if(self, condition: Tensor) -> Iterator[None]:
        """Within `as_one`: an update that leaves no trace where the condition (a scalar) is true.

        Parameters and states are there twice meanwhile. Numbers of the groups are put back by `settle`, so
        that the host need not wait for this update.
        """
        groups = self.optimizer.param_groups
        numbers = [numbers_of(group) for group in groups]
        states = [value for state in self.states.values() for value in state.values()]
        changing = [*(flat.detach() for flat in self.flat), *states]
        kept = [tensor.clone() for tensor in changing]
        yield
        for tensor, before in zip(changing, kept):
            torch.where(condition, before, tensor, out=tensor)
        counted = [
            {name: value for name, value in before.items() if group[name] != value}
            for before, group in zip(numbers, groups)
        ]
        if any(counted):
            self.counted = counted
            self.undone.send(condition)

    def settle(self, *_: object) -> None:
        """Put back what an update that was undone counted. It is over since a step, or this waits for it."""
        counted, self.counted = self.counted, []
        if counted and self.undone.is_true():
            for group, numbers in zip(self.optimizer.param_groups, counted):
                group.update(numbers)

    def _lengths(self) -> list[int]:
        lengths = [len(flat) for flat in self.flat]
        return [*lengths, len(self.values) - sum(lengths)]

    def _note_update(self, *_: object) -> None:
        self.has_updated = True

    def _show(self) -> None:
        """Give each parameter its part of the states, where they are other tensors than before."""
        for flat, group in zip(self.flat, self.optimizer.param_groups):
            own, parameters = self.states.get(flat, {}), group["params"]
            first = self.shown.get(parameters[0], {})
            if own.keys() == first.keys() and all(_is_part(first[k], own[k]) for k in own):
                continue
            parts = {key: _parts(value, flat, parameters) for key, value in own.items()}
            for number, parameter in enumerate(parameters):
                self.shown[parameter] = {key: part[number] for key, part in parts.items()}

    def _take_over_loaded(self) -> bool:
        """Make one of the states of the parameters; False when they are not alike."""
        states: defaultdict[Tensor, State] = defaultdict(dict)
        for flat, group in zip(self.flat, self.optimizer.param_groups):
            found = [self.optimizer.state.get(p, {}) for p in group["params"]]
            if len({frozenset(state) for state in found}) != 1:
                return False
            for key in found[0]:
                whole = _whole([state[key] for state in found], flat, group["params"])
                if whole is None:
                    return False
                states[flat][key] = whole
        self.states, self.shown = states, self.optimizer.state
        self.has_updated = bool(states)
        self._show()
        return True

    def _give_up(self, reason: str) -> bool:
        logger.info("each factor is updated by itself: %s", reason)
        self.gave_up = True
        for parameter, state in self.optimizer.state.items():  # a count is shared no longer
            self.optimizer.state[parameter] = {
                key: value.clone() if isinstance(value, Tensor) else value
                for key, value in state.items()
            }
        self.states.clear()
        return False


class Flag:
    """A truth of the device on its way to the host."""

    def __init__(self, device: torch.device) -> None:
        self.is_on_card = device.type == "cuda"
        self.tensor = torch.zeros((), dtype=torch.bool, pin_memory=self.is_on_card)
        self.seen = self.tensor.numpy()  # the same memory
        self.arrival: torch.cuda.Event | None = None

    def send(self, condition: Tensor) -> None:
        self.tensor.copy_(condition, non_blocking=True)
        if self.is_on_card:
            self.arrival = torch.cuda.Event()
            self.arrival.record()

    def is_true(self) -> bool:
        """Waits until it is there."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return bool(self.seen)


def numbers_of(group: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in group.items() if isinstance(value, int | float)}


def clip_norm(gradients: Tensor, max_norm: float) -> Tensor:
    """The norm (a scalar, float32) of gradients (N,), which are shrunk to `max_norm` if longer.

    N is a multiple of ROW: squares are added up by rows, then the rows, so that the rounding is that of a
    few additions and not of millions. The factor is torch.nn.utils.clip_grad_norm_'s.
    """
    rows = torch.linalg.vector_norm(gradients.view(-1, ROW), dim=1, dtype=torch.float32)
    norm = torch.linalg.vector_norm(rows)
    if max_norm < float("inf"):
        gradients.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _rounded_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _length(shapes: Sequence[torch.Size]) -> int:
    return sum(_rounded_up(shape.numel(), ALIGNED) for shape in shapes)


def _views(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The parts of a group's tensor in the parameters' shapes."""
    sizes = [_rounded_up(shape.numel(), ALIGNED) for shape in shapes]
    parts = zip(flat.split(sizes), shapes)
    return [part[: shape.numel()].view(shape) for part, shape in parts]


def _parts(value: Any, flat: Tensor, parameters: Sequence[Tensor]) -> Sequence[Any]:
    """An entry of a group's state for each parameter: its part, or what is one for all."""
    if isinstance(value, Tensor) and value.shape == flat.shape:
        return _views(value, [p.shape for p in parameters])
    return [value] * len(parameters)


def _is_part(part: Any, value: Any) -> bool:
    """Whether this is the first of the `_parts` of a value."""
    if not isinstance(part, Tensor) or not isinstance(value, Tensor):
        return part is value
    return part.data_ptr() == value.data_ptr()


def _whole(parts: Sequence[Any], flat: Tensor, parameters: Sequence[Tensor]) -> Any:
    """The opposite of `_parts`; None when there is no such value."""
    first = parts[0]
    if not isinstance(first, Tensor):
        return first if all(part == first for part in parts) else None
    if all(part.shape == p.shape for part, p in zip(parts, parameters)):
        whole = torch.zeros_like(flat, dtype=first.dtype, device=first.device).detach()
        for view, part in zip(_views(whole, [p.shape for p in parameters]), parts):
            view.copy_(part)
        return whole
    return first if all(torch.equal(part, first) for part in parts) else None
