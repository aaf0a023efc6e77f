"""Weights of 8 bits as a file has them: what they stand for, and the modules that hold them so."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, MutableMapping
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from library.anima_backend.modelling.dit import Anima
from library.anima_runtime.quantised_files import Layout, StoredWeight
from library.memory.quantised import QuantisedLinear

if TYPE_CHECKING:
    from library.settings.flags.precision import PrecisionOptions

logger = logging.getLogger(__name__)

OWN = {"float8_e4m3fn": "fp8", "int8_tensorwise": "int8"}
"""Formats of which a run stores weights itself, by the names of library/memory/quantised.py."""


class Coded(NamedTuple):
    """A weight as its file has it. scale: one number, or (out, 1); None where the codes are the values"""

    codes: Tensor
    scale: Tensor | None
    how: StoredWeight

    def dense(self, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """What the codes stand for, computed in float32 and rounded once."""
        values = self.codes.to(device).float()
        if self.scale is not None:
            values *= self.scale.to(device)
        if size := self.how.group:
            groups = values.unflatten(1, (-1, size))
            values = (groups @ regular_hadamard(size).to(device)).flatten(1)
        return values.to(dtype)

    @property
    def own_form(self) -> str | None:
        """fp8 or int8 where the codes and a scale for each row are what a run stores; else None."""
        is_plain = self.codes.dim() == 2 and not self.how.group
        return OWN.get(self.how.format) if is_plain else None

    def row_scales(self) -> Tensor:
        """(out, 1) float32."""
        scale = torch.ones(()) if self.scale is None else self.scale
        return scale.expand(len(self.codes), 1).contiguous()


Weight = Tensor | Coded


@cache
def regular_hadamard(size: int) -> Tensor:
    """Orthogonal and symmetric, float32: the Kronecker powers of the 4 x 4 matrix that has one -1 a row."""
    factor = torch.ones(4, 4) - 2 * torch.eye(4).flip(0)
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(matrix, factor)
    return matrix / math.sqrt(size)


def coded(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Weight]:
    """The weights among a file's tensors, floats and codes with their scales, by key."""
    found: dict[str, Weight] = {}
    for key, tensor in tensors.items():
        how = layout.weights.get(key)
        if how is not None:
            scale = None if how.scale is None else tensors[how.scale].float()
            if scale is not None:
                scale = scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(())
            found[key] = Coded(tensor, scale, how)
        elif key not in layout.more:
            found[key] = tensor
    return found


def whole(weight: Weight, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    if isinstance(weight, Coded):
        return weight.dense(device, dtype)
    return weight.to(device=device, dtype=dtype)


def stored_dtypes(network: nn.Module) -> dict[str, torch.dtype]:
    """By name, of the parameters that stay in the dtype that QuantisedLinears store them in."""
    return {
        f"{path}.{name}": parameter.dtype
        for path, module in network.named_modules()
        if isinstance(module, QuantisedLinear)
        for name, parameter in module.named_parameters()
        if name != "bias"
    }


def keep_codes(
    network: Anima, tensors: MutableMapping[str, Weight], dtype: torch.dtype,
    stored: PrecisionOptions | None,
) -> None:  # fmt: skip
    """Let Linears hold the codes that their weights have in the file, where the run stores such; said.

    network: without memory; tensors: by its names; dtype: what the other weights become
    """
    coded_ones = [name for name, weight in tensors.items() if isinstance(weight, Coded)]
    if not coded_ones:
        return
    form = stored.stored_form if stored is not None else None
    linears: dict[str, tuple[str, nn.Linear]] = {}
    if stored is not None and form is not None:
        forms = network.forms_to_store(form, llm_adapter=not stored.stores_unet_only)
        linears = {name: (each, linear) for each, own in forms for name, linear in own.items()}
    kept = 0
    for name, (own, linear) in linears.items():
        weight = tensors.get(f"{name}.weight")
        in_file = weight.own_form if isinstance(weight, Coded) else None
        # the run's form is taken for modulation too: to round it again would be further off
        if isinstance(weight, Coded) and in_file is not None and in_file in (own, form):
            network.set_submodule(name, QuantisedLinear.empty(linear, in_file))
            tensors[f"{name}.weight"] = weight.codes
            tensors[f"{name}.weight_scale"] = weight.row_scales()
            kept += 1
    again = sum(f"{name}.weight" in coded_ones for name in linears) - kept
    logger.info(
        "of its weights in 8 bits %d are used as they are and %d made %s again%s",
        kept,
        len(coded_ones) - kept,
        str(dtype).removeprefix("torch."),
        f"; {again} of those are rounded a second time, to {form}" if again else "",
    )
