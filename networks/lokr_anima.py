"""--network_module networks.lokr_anima: LoKr on Anima's Linears, and differences of its norms."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from networks.adapters import LinearAdapter, LoKr
from networks.factors import forces_full_matrix, lokr_shape, training_alpha
from networks.network import AdapterNetwork
from networks.targets import Target

logger = logging.getLogger(__name__)

ALIASES = {
    "factor": "lokr_factor",
    "full_matrix": "lokr_full_matrix",
    "decompose_both": "lokr_decompose_both",
    "lokr_rank_dropout": "rank_dropout",
    "lokr_module_dropout": "module_dropout",
}


@dataclass(frozen=True, kw_only=True)
class LoKrArguments(AdapterArguments):
    """network_args of LoKr. lokr_factor -1: as near to a square as the sizes allow."""

    lokr_factor: int = 8
    lokr_full_matrix: bool = False
    lokr_decompose_both: bool = False

    @staticmethod
    def problems_of(values: Mapping[str, Any]) -> list[Problem]:
        problems = AdapterArguments.problems_of(values)
        factor = values.get("lokr_factor", 8)
        if factor < 1 and factor != -1:
            problems.append(Problem("expected -1, or 1 or more.", f"lokr_factor={factor}"))
        return problems


def create_network(
    multiplier: float, network_dim: int | None, network_alpha: float | None, vae: Any,
    text_encoder: Any, unet: nn.Module, neuron_dropout: float | None = None, **kwargs: Any,
) -> AdapterNetwork:  # fmt: skip
    """A fresh LoKr network for `unet`; network_dim >= 100000 asks for full matrices."""
    plan = _plan(network_dim, network_alpha, neuron_dropout, kwargs)
    if forces_full_matrix(plan.dim):
        logger.info("network_dim=%d >= 100000, forcing lokr_full_matrix=true", plan.dim)
        plan = replace(plan, arguments=replace(plan.arguments, lokr_full_matrix=True))
    options = plan.arguments

    def make_adapter(target: Target) -> LoKr:
        rank = target.rank or plan.dim
        shape = lokr_shape(
            target.module.out_features, target.module.in_features, rank, options.lokr_factor,
            decompose_both=options.lokr_decompose_both, full_matrix=options.lokr_full_matrix,
        )  # fmt: skip
        alpha = training_alpha(plan.alpha if target.alpha is None else target.alpha, rank)
        return LoKr(shape, alpha, plan.dropout)

    network = make_network("LoKr", plan, unet, multiplier, make_adapter)
    report_rank_dropout(network, plan)
    report_full_matrices(network, plan, was_given=network_dim is not None)
    return network


def create_network_from_weights(
    multiplier: float, file: str | None, vae: Any, text_encoders: Any, unet: nn.Module,
    weights_sd: Mapping[str, Tensor] | None = None, for_inference: bool = False, **kwargs: Any,
) -> tuple[AdapterNetwork, dict[str, Tensor]]:  # fmt: skip
    """A network with a file's modules, ranks and values. for_inference: nothing beyond the file."""
    tensors, source = weights_of(file, weights_sd)
    plan = _plan(None, None, kwargs.pop("neuron_dropout", None), kwargs)
    network = make_network_as_file(
        "LoKr", plan, unet, multiplier, source, tensors, for_inference=for_inference
    )
    report_rank_dropout(network, plan)
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
    return read_plan(LoKrArguments, (dim, alpha, neuron_dropout), kwargs, (ALIASES, {}))


def report_rank_dropout(network: AdapterNetwork, plan: Plan) -> None:
    """Say once where rank dropout finds no rank to drop."""
    linears = [p.adapter for p in network.placements if isinstance(p.adapter, LinearAdapter)]
    full = sum(adapter.rank is None for adapter in linears)
    if plan.dropout.rank and full:
        logger.warning(
            "lokr_rank_dropout has no effect on %d of %d layers, whose matrices are full",
            full, len(linears),
        )  # fmt: skip


def report_full_matrices(network: AdapterNetwork, plan: Plan, *, was_given: bool) -> None:
    """Say once what does nothing where no matrix is factored. was_given: network_dim was"""
    linears = [p.adapter for p in network.placements if isinstance(p.adapter, LoKr)]
    options, idle = plan.arguments, []
    if options.lokr_decompose_both and all(each.shape.w1_rank is None for each in linears):
        idle.append("lokr_decompose_both")
    if all(each.rank is None for each in linears):
        idle += ["network_alpha"] * (plan.alpha not in (None, 0, 1))
        asked = was_given and not forces_full_matrix(plan.dim)
        idle += ["network_dim"] * (options.lokr_full_matrix and asked)
    if idle and linears:
        logger.warning("%s: no effect where every matrix is full", ", ".join(idle))
