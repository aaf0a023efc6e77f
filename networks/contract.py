"""NetworkModule: what a file given as --network_module has to offer, as sd-scripts has it."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from library.errors import ConfigError, Problem
from networks.network import AdapterNetwork


@runtime_checkable
class NetworkModule(Protocol):
    """What a file given as --network_module offers."""

    def create_network(
        self, multiplier: float, network_dim: int | None, network_alpha: float | None, vae: Any,
        text_encoder: Any, unet: nn.Module, neuron_dropout: float | None = None, **kwargs: Any,
    ) -> AdapterNetwork: ...  # fmt: skip

    def create_network_from_weights(
        self, multiplier: float, file: str | None, vae: Any, text_encoders: Any, unet: nn.Module,
        weights_sd: Mapping[str, Tensor] | None = None, for_inference: bool = False, **kwargs: Any,
    ) -> tuple[AdapterNetwork, dict[str, Tensor]]: ...  # fmt: skip

    def check_network_args(
        self, network_dim: int | None, network_alpha: float | None,
        neuron_dropout: float | None = None, **kwargs: Any,
    ) -> list[Problem]: ...  # fmt: skip


REQUIRED_NAMES = ("create_network", "create_network_from_weights", "check_network_args")


def check_network_module(module: ModuleType) -> NetworkModule:
    """`module`, if it offers all of NetworkModule. Raises ConfigError naming what is missing."""
    missing = [name for name in REQUIRED_NAMES if not callable(getattr(module, name, None))]
    if missing:
        raise ConfigError(
            f"--network_module {module.__name__}: not a network module; it has no "
            f"{', no '.join(missing)}."
        )
    assert isinstance(module, NetworkModule)
    return module
