"""--network_module networks.lora_anima: LoRA on Anima's Linears, and differences of its norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from library.errors import ConfigError, Problem
from networks._anima_adapter_common import (
    AdapterArguments,
    Plan,
    make_network,
    make_network_as_file,
    read_plan,
    weights_of,
)
from networks.adapters import LoRA
from networks.factors import FULL_MATRIX_DIM, training_alpha
from networks.network import AdapterNetwork
from networks.targets import Target

_LOKR = "belongs to --network_module networks.lokr_anima."
ELSEWHERE = {
    name: _LOKR
    for name in (
        "lokr_factor", "factor", "lokr_full_matrix", "full_matrix", "lokr_decompose_both",
        "decompose_both", "lokr_rank_dropout", "lokr_module_dropout",
    )
}  # fmt: skip


def create_network(
    multiplier: float, network_dim: int | None, network_alpha: float | None, vae: Any,
    text_encoder: Any, unet: nn.Module, neuron_dropout: float | None = None, **kwargs: Any,
) -> AdapterNetwork:  # fmt: skip
    """A fresh LoRA network for `unet`; network_dim None is 4, alpha 0 or None is the rank."""
    plan = _plan(network_dim, network_alpha, neuron_dropout, kwargs)

    def make_adapter(target: Target) -> LoRA:
        base, rank = target.module, target.rank or plan.dim
        alpha = training_alpha(plan.alpha if target.alpha is None else target.alpha, rank)
        return LoRA(base.in_features, base.out_features, rank, alpha, plan.dropout)

    return make_network("LoRA", plan, unet, multiplier, make_adapter)


def create_network_from_weights(
    multiplier: float, file: str | None, vae: Any, text_encoders: Any, unet: nn.Module,
    weights_sd: Mapping[str, Tensor] | None = None, for_inference: bool = False, **kwargs: Any,
) -> tuple[AdapterNetwork, dict[str, Tensor]]:  # fmt: skip
    """A network with a file's modules, ranks and values. for_inference: nothing beyond the file."""
    tensors, source = weights_of(file, weights_sd)
    plan = _plan(None, None, kwargs.pop("neuron_dropout", None), kwargs)
    network = make_network_as_file(
        "LoRA", plan, unet, multiplier, source, tensors, for_inference=for_inference
    )
    return network, tensors


def check_network_args(
    network_dim: int | None, network_alpha: float | None, neuron_dropout: float | None = None,
    **kwargs: Any,
) -> list[Problem]:  # fmt: skip
    """What create_network would refuse without looking at a model."""
    try:
        _plan(network_dim, network_alpha, neuron_dropout, kwargs)
    except ConfigError as error:
        return list(error.problems)
    return []


def _plan(
    dim: int | None, alpha: float | None, neuron_dropout: float | None, kwargs: Mapping[str, Any]
) -> Plan:
    dims = (dim, alpha, neuron_dropout)
    plan = read_plan(AdapterArguments, dims, kwargs, ({}, ELSEWHERE), max_dim=FULL_MATRIX_DIM)
    ranks = plan.arguments.network_reg_dims
    too_large = [pattern for pattern, rank in ranks if rank >= FULL_MATRIX_DIM]
    if too_large:
        message = "asks for full matrices, which only networks.lokr_anima has."
        raise ConfigError([Problem(message, f"network_reg_dims {p!r}") for p in too_large])
    return plan
