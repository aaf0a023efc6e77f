"""The flags of noise: how sigma is drawn, and what is added."""

from __future__ import annotations

from dataclasses import dataclass

from library.errors import Problem
from library.settings.effects import Condition, needs
from library.settings.flags.shared import FLOW
from library.settings.options import above, between, flag

TIMESTEP_SAMPLINGS = ("sigma", "uniform", "sigmoid", "shift", "flux_shift")
WEIGHTING_SCHEMES = ("sigma_sqrt", "logit_normal", "mode", "cosmap", "none", "uniform")
MODE_SCALES = (-1.0, 7.235)
"""Within them the density `mode` keeps sigma in [0, 1]."""


def uses_density(scheme: str) -> Condition:
    return lambda o: (o.timestep_sampling, o.weighting_scheme) == ("sigma", scheme)


SAMPLING = "timestep_sampling is {o.timestep_sampling}"
NORMAL_DRAWS = ("sigmoid", "shift", "flux_shift")
"""Of timestep_sampling: what is drawn is normal, then goes through a sigmoid."""
DENSITY = "it belongs to timestep_sampling = sigma with weighting_scheme = "


@dataclass(frozen=True, kw_only=True)
class FlowOptions:
    """Noise"""

    timestep_sampling: str = flag(
        "sigmoid",
        "how sigma is drawn",
        choices=TIMESTEP_SAMPLINGS,
    )
    sigmoid_scale: float = flag(
        1.0,
        "spread of sigmoid, shift and flux_shift",
        check=above(0),
        idle=(
            needs(lambda o: o.timestep_sampling in NORMAL_DRAWS, SAMPLING),
        ),
    )
    discrete_flow_shift: float = flag(
        1.0,
        "shift of shift and sigma; 3 leans to noise",
        check=between(1e-6, 1e6),  # beyond, float32 has no sigma for it
        idle=(needs(lambda o: o.timestep_sampling in ("shift", "sigma"), SAMPLING),),
    )
    weighting_scheme: str = flag(
        "uniform", "loss weight (sigma_sqrt, cosmap), or density of sigma (logit_normal, mode)",
        choices=WEIGHTING_SCHEMES, idle=(needs(lambda o: o.timestep_sampling == "sigma" or o.weighting_scheme not in ("logit_normal", "mode"), SAMPLING),))  # fmt: skip
    logit_mean: float = flag(
        0.0,
        "mean of logit_normal",
        idle=(needs(uses_density("logit_normal"), DENSITY + "logit_normal"),),
    )
    logit_std: float = flag(
        1.0,
        "spread of logit_normal",
        check=above(0),
        idle=(needs(uses_density("logit_normal"), DENSITY + "logit_normal"),),
    )
    mode_scale: float = flag(
        1.29, "scale of mode", idle=(needs(uses_density("mode"), DENSITY + "mode"),)
    )
    min_timestep: int | None = flag(None, "lowest timestep, 0 to 1000", check=between(0, 1000))
    max_timestep: int | None = flag(None, "highest timestep, 0 to 1000", check=between(0, 1000))
    noise_offset: float | None = flag(None, "extra noise per channel")
    noise_offset_random_strength: bool = flag(
        False,
        "draw its strength in [0, noise_offset]",
        idle=(needs(lambda o: o.noise_offset, "noise_offset is not set"),),
    )
    ip_noise_gamma: float | None = flag(None, "extra noise in the input alone")
    ip_noise_gamma_random_strength: bool = flag(
        False,
        "draw its strength in [0, ip_noise_gamma]",
        idle=(needs(lambda o: o.ip_noise_gamma, "ip_noise_gamma is not set"),),
    )
    multires_noise_iterations: int | None = flag(None, "pyramid noise", ignored=FLOW)
    multires_noise_discount: float = flag(0.3, "decay of pyramid noise", ignored=FLOW)
    adaptive_noise_scale: float | None = flag(None, "noise offset by latents' mean", ignored=FLOW)
    zero_terminal_snr: bool = flag(False, "rescale the beta schedule", ignored=FLOW)

    def problems(self) -> list[Problem]:
        found = []
        lowest, highest = self.min_timestep or 0, self.max_timestep
        if lowest >= (1000 if highest is None else highest):
            found = [Problem("expected less than max_timestep (1000).", f"min_timestep = {lowest}")]
        smallest, largest = MODE_SCALES
        if uses_density("mode")(self) and not smallest <= self.mode_scale <= largest:
            message = f"expected {smallest:g} to {largest:g}: beyond, sigma would leave [0, 1]."
            found.append(Problem(message, f"mode_scale = {self.mode_scale:g}"))
        return found
