"""What every holder of factors shares: named float32 factors, the user's strength, its place.

Factors are float32 Parameters whatever the base dtype and are cast to the input's dtype at use.
Dropout draws masks from the global torch RNG (the one that checkpointing rewinds) and never skips a
branch, so every factor has a gradient on every rank.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from networks.kinds.stored import ALPHA, Factors


@dataclass(frozen=True)
class Dropout:
    """Probabilities in [0, 1); active in training mode only.

    neuron: of each entry between the factors (LoRA) or of the adapter's output (LoKr)
    rank:   of each rank entry; the rest is divided by 1 - rank
    module: of the whole adapter, for one call; not rescaled, as sd-scripts and LyCORIS do it
    """

    neuron: float = 0.0
    rank: float = 0.0
    module: float = 0.0


NO_DROPOUT = Dropout()


class Adapter(nn.Module):
    """The holder of one module's factors.

    zero_factor: the factor that starts at zero; LoRA+ raises its learning rate
    changed:     the parameters of the base that merging changes
    alpha:       what a file has beside the factors; None for kinds without one
    fused:       whether it uses kernels of our own, as the model does
    """

    zero_factor = ""
    changed: tuple[str, ...] = ("weight",)
    rank: int | None = None
    alpha: float | None = None
    fused = False

    def __init__(self) -> None:
        super().__init__()
        self.multiplier = 1.0

    def factors(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by factor name."""
        return dict(self.named_parameters(recurse=False))

    def parameter_names(self) -> list[str]:
        """How the factors are called as parameters of this module, in their order."""
        return list(self.factors())

    def stored(self) -> dict[str, Tensor]:
        """What files hold of the factors, by their names."""
        return {name: factor.detach() for name, factor in self.factors().items()}

    def adopt(self, base: nn.Module) -> AdaptedModule:
        """The module that takes the place of `base` and carries this adapter."""
        raise NotImplementedError

    def change_norm(self) -> Tensor | None:
        """The Frobenius norm of what is added to the base at strength 1, a scalar where the factors are.

        None for a kind that adds nothing.
        """
        return None

    def merged(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each of `changed` becomes at this strength; float32 in and out."""
        raise NotImplementedError

    @torch.no_grad()
    def fill(self, factors: Factors, base: nn.Module, whole: Collection[str]) -> None:
        """Take over a file's factors, which fit. whole: those that hold the base's own parameter."""
        assert not whole, "only a norm's difference is stored as a whole parameter"
        own = self.factors()
        for name in factors.keys() - {ALPHA}:
            own[name].copy_(factors[name].to(own[name].device, torch.float32))

    def _add_factors(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=torch.float32)))


class AdaptedModule(nn.Module):
    """A base module's stand-in: its own Parameter objects under its own names, and an adapter.

    Checkpoint keys, `.to`, DDP, checkpointing and compile see the model they know. `release` gives
    the original module back.
    """

    adapter: Adapter
    original: nn.Module

    def take_over(self, base: nn.Module, adapter: Adapter) -> None:
        """Share `base`'s parameters and hold `adapter`."""
        for name in ("weight", "weight_scale", "bias"):
            self.register_parameter(name, getattr(base, name, None))
        self.adapter = adapter
        # Past nn.Module's registry: a registered original would put every base parameter in twice.
        self.__dict__["original"] = base
        self.train(base.training)

    def release(self) -> nn.Module:
        """The original module, with the parameters as they are now."""
        for name, parameter in self.named_parameters(recurse=False):
            self.original.register_parameter(name, parameter)
        return self.original.train(self.training)


def merged_parameters(
    base: nn.Module, adapter: Adapter, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """What each parameter that the adapter changes becomes at its strength; float32."""
    parameters = {}
    assert getattr(base, "weight_scale", None) is None, "a quantised weight cannot be merged into"
    for name in adapter.changed:
        parameter = base.get_parameter(name).detach()
        parameters[name] = parameter.to(device or parameter.device, torch.float32)
    return {name: merged.detach() for name, merged in adapter.merged(parameters).items()}


def at_use(factor: Tensor, x: Tensor) -> Tensor:
    """A factor as it is applied to `x`: the one place where factors leave float32."""
    return factor.to(x.dtype)


def keep_mask(shape: tuple[int, ...], drop: float, like: Tensor, rescale: bool = False) -> Tensor:
    """1 with probability 1 - drop, else 0, in the dtype and on the device of `like`.

    rescale: divide by 1 - drop, so that the mean stays
    """
    kept = (torch.rand(shape, device=like.device) >= drop).to(like.dtype)
    return kept / (1 - drop) if rescale else kept
