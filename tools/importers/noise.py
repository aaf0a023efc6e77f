"""How sigma is drawn: other programs' distributions in our options. See library/training/flow_matching.py."""

from __future__ import annotations

from typing import Any

ADALN = r"blocks\.\d+\.adaln_modulation_.*"
"""The Linears of the blocks' adaLN, which the default targets leave out."""


def logit_normal(scale: float, bias: float, shift: float) -> dict[str, Any]:
    """sigma = shifted sigmoid(bias + scale * N(0, 1)); a positive bias leads to noise.

    A bias needs the density of weighting_scheme, where a positive mean leads to the picture.
    """
    if bias:
        return {
            "train.timestep_sampling": "sigma",
            "train.weighting_scheme": "logit_normal",
            "train.logit_mean": -bias,
            "train.logit_std": scale,
            **({"train.discrete_flow_shift": shift} if shift != 1 else {}),
        }
    shifted = {"train.timestep_sampling": "shift", "train.discrete_flow_shift": shift}
    written = shifted if shift != 1 else {"train.timestep_sampling": "sigmoid"}
    return written | ({"train.sigmoid_scale": scale} if scale != 1 else {})


def uniform(shift: float) -> dict[str, Any]:
    """sigma uniform in 0 to 1, then shifted."""
    if shift == 1:
        return {"train.timestep_sampling": "uniform"}
    return {"train.timestep_sampling": "sigma", "train.discrete_flow_shift": shift}
