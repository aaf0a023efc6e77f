"""Trained: what a run trains, as its stages, its loop and its files see it.

Adapters inside a model, or the model itself: who asks neither needs to know. `Subject` is the same before
there is a model: what the options ask for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from library.errors import Problem
from library.memory.swapping import Swap

ROUNDED_AWAY = (
    "the %s are kept in %s: updates much smaller than a value are rounded away, unless "
    "stochastic_rounding is set"
)


class Subject(ABC):
    """What a run will train, by its options."""

    def mark(self, model: nn.Module) -> None:
        """Before it is decided where weights are: let those of the model that will train require gradients."""

    @abstractmethod
    def problems(self) -> list[Problem]:
        """What is wrong with the options, found without a model."""

    @abstractmethod
    def made_for(self, model: nn.Module) -> Trained:
        """The same for a model, not attached yet; the model may be on the meta device."""


class Trained(ABC):
    """Everything of one run that trains.

    multiplier: at which strength a step uses it; 1 as it is trained
    is_whole:   it is the model itself, of whose weights nothing is there twice without need
    swap:       of the model's weights that wait in RAM, where some of them train
    """

    multiplier: float
    is_whole = False
    swap: Swap | None = None

    @abstractmethod
    def attach(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Let `model` train by it, held in `dtype`. The model is on the device that computes."""

    @abstractmethod
    def set_multiplier(self, multiplier: float) -> None:
        """The strength from here on."""

    @abstractmethod
    def set_training(self, active: bool) -> None:
        """Whether dropout is active."""

    def within_pass(self) -> AbstractContextManager[None]:
        """What stands around a forward pass that is recorded."""
        return nullcontext()

    def unrecordable(self) -> str | None:
        """Why its passes cannot be recorded, if they cannot: in a sentence without its full stop."""
        return None

    def on_epoch_start(self, text_encoder: Any, unet: nn.Module) -> None:
        self.set_training(True)

    @abstractmethod
    def paths(self) -> list[str]:
        """Of the model's modules that another run would find changed."""

    @abstractmethod
    def get_trainable_params(self) -> list[nn.Parameter]:
        """What the optimizer changes, in an order that another start has again."""

    @abstractmethod
    def prepare_optimizer_params(
        self, text_encoder_lr: Any, unet_lr: float | None, learning_rate: float | None
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Optimizer groups, one per rate, and their names; without any rate: no "lr" entry."""

    def pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """(weight of the model, which gets a gradient; what the optimizer changes for it), in that order."""
        return [(each, each) for each in self.get_trainable_params()]

    @abstractmethod
    def check_trainables(self) -> None:
        """Assert that exactly this trains, as it was chosen. Free of cost."""

    def gather_gradients(self) -> None:
        """Before an update: let what the optimizer changes have its gradients."""

    def show(self) -> None:
        """After a change of that: let the model compute with it."""

    def clear_gradients(self) -> None:
        """Drop what a backward pass has left, wherever it is."""
        for parameter in self.get_trainable_params():
            parameter.grad = None

    def scale_weight_norms(self, limit: float) -> dict[str, Tensor]:
        """Limit what was trained after an update; scalars for the log."""
        return {}

    def limit_problems(self, limit: float | None) -> list[Problem]:
        """Why it cannot be limited so."""
        return []

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that a state may hold, by names that are unique in the model."""

    @abstractmethod
    def kept(self) -> Collection[str]:
        """The names of what a state does hold."""

    @abstractmethod
    def needed(self) -> Collection[str]:
        """The names of what a state has to hold."""

    def took(self, names: Collection[str]) -> None:
        """Hear that the tensors of these names now hold what a state had."""

    @abstractmethod
    def changes(self) -> list[Tensor | None]:
        """How far each of `paths` is from where it began, by the norm; None where that is not known."""

    @abstractmethod
    def summary(self) -> list[str]:
        """Lines to log: what is trained, with how many parameters."""

    @abstractmethod
    def in_short(self) -> str:
        """What is trained, in a few words."""

    @abstractmethod
    def described(self) -> str:
        """How much is trained, and a hash of what, with which shapes: the same for the same."""

    def sizes(self) -> Mapping[str, float | None]:
        """What decides its size, by sd-scripts' names of options."""
        return {}

    @abstractmethod
    def options(self) -> Mapping[str, str]:
        """The effective options of what is trained, as text, rates among them (<part>_lr)."""
