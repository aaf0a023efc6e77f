"""From the network flags to adapters for a model: fresh, from a file, or merged into the base."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from library.errors import ConfigError, Problem
from library.utils import log_lines
from networks.contract import NetworkModule, check_network_module
from networks.merging import merge_file
from networks.network import AdapterNetwork
from networks.trained import Subject

if TYPE_CHECKING:
    from library.settings.flags.network import NetworkOptions

logger = logging.getLogger(__name__)


def load_network_module(name: str) -> NetworkModule:
    """The module given as --network_module, checked at once for all that it must offer."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"--network_module {name}: no such module ({error}).") from error
    return check_network_module(module)


@dataclass(frozen=True)
class Adapters(Subject):
    """The adapters of --network_module. arguments: of the module, by name"""

    options: NetworkOptions
    arguments: Mapping[str, Any]

    @property
    def module(self) -> NetworkModule:
        assert self.options.network_module, "the family chooses one"
        return load_network_module(self.options.network_module)

    def problems(self) -> list[Problem]:
        net = self.options
        dims = net.network_dim, net.network_alpha, net.network_dropout
        return self.module.check_network_args(*dims, **self.arguments)

    def made_for(self, model: nn.Module) -> AdapterNetwork:
        return make_network(self.module, self.options, self.arguments, model)


def make_network(
    module: NetworkModule, options: NetworkOptions, kwargs: Mapping[str, Any], model: nn.Module
) -> AdapterNetwork:
    """The adapters for `model`, not yet attached: fresh, or as --network_weights has them."""
    if options.network_weights and options.dim_from_weights:
        network, _ = module.create_network_from_weights(
            1.0, options.network_weights, None, None, model,
            neuron_dropout=options.network_dropout, **kwargs,
        )  # fmt: skip
        return network
    network = module.create_network(
        1.0, options.network_dim, options.network_alpha, None, None, model,
        neuron_dropout=options.network_dropout, **kwargs,
    )  # fmt: skip
    if options.network_weights:
        asked = [placement.adapter.alpha for placement in network.placements]
        network.load_weights(options.network_weights)
        log_lines(logger, decided_by_file(network, asked), logging.WARNING)
    return network


def decided_by_file(network: AdapterNetwork, asked: Sequence[float | None]) -> Iterator[str]:
    """What was asked for and a file has decided since. asked: the alpha of each placement before"""
    other = sum(place.adapter.alpha != alpha for place, alpha in zip(network.placements, asked))
    filled = sum(place.loaded and not place.is_norm for place in network.placements)
    settings = network.settings
    if other:
        yield f"{other} adapters take their alpha from --network_weights, not from network_alpha and network_args"
    trained = settings.kinds.trained
    for name in (n for kind in settings.used for n in trained[kind].arguments.OF_THE_START):
        if filled and settings.network_args.get(name) == "true":
            yield f"network_args: {name} has no effect on the {filled} adapters that --network_weights fills"


def merge_base_weights(options: NetworkOptions, model: nn.Module) -> None:
    """Add each file of --base_weights to the base model, at its multiplier (1 where none is given).

    On the meta device: only check that the files can be merged.
    """
    multipliers = list(options.base_weights_multiplier or [])
    for index, file in enumerate(options.base_weights or []):
        strength = multipliers[index] if index < len(multipliers) else 1.0
        count = merge_file(model, file, strength)
        logger.info("base_weights: merged %s into %d modules at strength %g", file, count, strength)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence this package's loggers, for a trial whose messages come again in earnest."""
    parent = logging.getLogger("networks")
    level = parent.level
    parent.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        parent.setLevel(level)
