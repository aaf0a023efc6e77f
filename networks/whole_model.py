"""The model itself as what is trained: full fine-tuning.

Where a step computes in fewer bits than what is learned needs, each weight has a float32 form of its own
(its master), which the optimizer changes and of which the model holds the rounded copy.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from library.errors import ConfigError, Problem
from library.memory.side_by_side import lay_all
from library.memory.swapping import Swap, in_ram
from networks.model_layout import ModelLayout
from networks.trained import ROUNDED_AWAY, Subject, Trained

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Whole(Subject):
    """A model by its parts.

    component_of: the component of a module or weight by its path, "" for what belongs to none
    rates:        component -> its learning rate, where it has one of its own; 0 freezes
    computed:     the dtype in which a step computes
    layout:       how the model's file spells it; asked for once
    """

    component_of: Callable[[str], str]
    rates: Mapping[str, float]
    computed: torch.dtype
    layout: Callable[[], ModelLayout]

    def problems(self) -> list[Problem]:
        return []

    def made_for(self, model: nn.Module) -> WholeModel:
        return WholeModel(self, model)

    def mark(self, model: nn.Module) -> None:
        for part in self.made_for(model).parts:
            part.weight.requires_grad_(True)


@runtime_checkable
class Swaps(Protocol):
    """A model whose weights may wait in RAM."""

    swap: Swap | None


def as_wide(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """In another dtype, in memory of the same kind."""
    return in_ram(wide.to(dtype), pinned=True) if wide.is_pinned() else wide.to(dtype)


@dataclass
class Part:
    """One weight that trains.

    weight: the model's
    held:   what the optimizer changes: the same, or its float32 form
    lr:     None is the run's own learning rate
    """

    name: str
    weight: nn.Parameter
    held: nn.Parameter
    component: str
    lr: float | None

    @property
    def has_master(self) -> bool:
        return self.held is not self.weight


@dataclass(eq=False)
class WholeModel(Trained):
    """All weights of a model but those of components that are frozen."""

    subject: Whole
    model: nn.Module
    multiplier: float = 1.0
    parts: list[Part] = field(init=False)

    is_whole = True

    def __post_init__(self) -> None:
        self.dtype = torch.float32
        self.parts = []
        found = set()
        for name, weight in self.model.named_parameters():
            component = self.subject.component_of(name)
            found.add(component)
            lr = self.subject.rates.get(component)
            if lr != 0:
                self.parts.append(Part(name, weight, weight, component, lr))
        if unknown := sorted(self.subject.rates.keys() - found):
            problems = [Problem("this model has no such part.", f"{each}_lr") for each in unknown]
            raise ConfigError(problems)
        if not self.parts:
            raise ConfigError("nothing to train: the learning rate of every part is 0.")

    @cached_property
    def layout(self) -> ModelLayout:
        return self.subject.layout()

    @torch.no_grad()
    def attach(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Let the model's weights train, held in `dtype`; the model computes in the subject's.

        The model is of the wider of the two dtypes, as its file was read. What is held for a weight that
        waits in RAM waits there too.
        """
        assert model is self.model, "made for another model"
        _ = self.layout  # while the file is there
        computed, self.dtype = self.subject.computed, dtype
        if dtype != torch.float32:
            logger.warning(ROUNDED_AWAY, "weights", dtype)
        model.requires_grad_(False)
        trained = {part.name: part for part in self.parts}
        for name, weight in model.named_parameters():
            wide = weight.data
            weight.data = as_wide(wide, computed)
            if part := trained.get(name):
                weight.requires_grad_(True)
                if dtype != computed:
                    part.held = nn.Parameter(as_wide(wide, dtype))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.data = buffer.data.to(computed)
        swap = model.swap if isinstance(model, Swaps) else None
        lay_all(model, away=swap.numbers if swap else ())  # what was cast lies apart
        if swap and any(id(part.weight) in swap.numbers for part in self.parts):
            self.swap = swap

    def settle(self) -> None:
        """Before the host reads or changes what is held: let all of it be where it is kept."""
        if self.swap:
            self.swap.settle()

    def set_multiplier(self, multiplier: float) -> None:
        """A model has no strength: another than 1 is told, once."""
        if multiplier != 1.0 and self.multiplier == 1.0:
            logger.warning("a strength of %g has no effect: the model itself is trained", multiplier)
        self.multiplier = float(multiplier)

    def set_training(self, active: bool) -> None:
        """The model has no dropout."""

    def paths(self) -> list[str]:
        owners = (part.name.rpartition(".")[0] for part in self.parts)
        return list(dict.fromkeys(owners))

    def changes(self) -> list[Tensor | None]:
        """Not known: where the weights began is not kept."""
        return [None for _ in self.paths()]

    def get_trainable_params(self) -> list[nn.Parameter]:
        return [part.held for part in self.parts]

    def pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [(part.weight, part.held) for part in self.parts]

    def prepare_optimizer_params(
        self, text_encoder_lr: Any, unet_lr: float | None, learning_rate: float | None
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """One group for each component with a rate of its own, and one for the rest."""
        groups: dict[tuple[str, float | None], list[nn.Parameter]] = {}
        for part in self.parts:
            name = f"unet {part.component}" if part.lr is not None else "unet"
            rate = learning_rate if part.lr is None else part.lr
            groups.setdefault((name, rate), []).append(part.held)
        described = [{"params": held, "lr": rate} for (_, rate), held in groups.items()]
        return described, [name for name, _ in groups]

    def check_trainables(self) -> None:
        actual = {n for n, p in self.model.named_parameters() if p.requires_grad}
        expected = {part.name for part in self.parts}
        assert actual == expected, f"train otherwise: {sorted(actual ^ expected)[:8]}"
        wrong = [part.name for part in self.parts if part.held.dtype != self.dtype]
        assert not wrong, f"held in another dtype than {self.dtype}: {wrong[:8]}"

    def clear_gradients(self) -> None:
        for part in self.parts:
            part.weight.grad = part.held.grad = None

    def gather_gradients(self) -> None:
        """Move the weights' gradients to their masters, in float32."""
        for part in self.parts:
            if part.has_master and part.weight.grad is not None:
                part.held.grad = part.weight.grad.to(part.held.dtype)
                part.weight.grad = None

    @torch.no_grad()
    def show(self) -> None:
        """Round the masters into the model."""
        self.settle()
        masters = [part for part in self.parts if part.has_master]
        if masters:
            torch._foreach_copy_([p.weight for p in masters], [p.held for p in masters])

    def tensors(self) -> dict[str, Tensor]:
        self.settle()
        return {part.name: part.held for part in self.parts}

    def kept(self) -> list[str]:
        return [part.name for part in self.parts]

    def needed(self) -> list[str]:
        return self.kept()

    def took(self, names: Collection[str]) -> None:
        self.show()

    def whole(self) -> dict[str, Tensor]:
        """All of the model's tensors by name, those that train as they are held."""
        self.settle()
        held = {part.name: part.held.detach() for part in self.parts}
        return {name: held.get(name, tensor) for name, tensor in self.model.state_dict().items()}

    def counts(self) -> dict[str, int]:
        """Component -> how many parameters of it train."""
        found: Counter[str] = Counter()
        for part in self.parts:
            found[part.component or "rest"] += part.held.numel()
        return dict(found)

    def summary(self) -> list[str]:
        counts = self.counts()
        parts = ", ".join(f"{name} {number:,}" for name, number in counts.items())
        lines = [f"the whole model: {sum(counts.values()):,} trained parameters ({parts})"]
        if frozen := [name for name, lr in self.subject.rates.items() if lr == 0]:
            lines.append(f"frozen by a learning rate of 0: {', '.join(frozen)}")
        if any(part.has_master for part in self.parts):
            lines.append("each weight is held in float32 too, and updated there")
        if swap := self.swap:
            count = sum(id(part.weight) in swap.numbers for part in self.parts)
            lines.append(
                f"{count} of {len(self.parts)} weights wait in RAM, with all that the optimizer has of them"
            )
        return lines

    def in_short(self) -> str:
        return f"the whole model, {sum(self.counts().values()) / 1e6:.2f} M"

    def described(self) -> str:
        shapes = sorted((part.name, tuple(part.held.shape)) for part in self.parts)
        digest = hashlib.sha256(repr(shapes).encode()).hexdigest()[:12]
        return f"{len(shapes)} weights, {sum(self.counts().values())} parameters, {digest}"

    def options(self) -> dict[str, str]:
        return {f"{name}_lr": f"{rate:g}" for name, rate in self.subject.rates.items()}
