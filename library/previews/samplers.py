"""The samplers: how latents travel from noise to a picture along a list of sigmas, as in ComfyUI.

Letters as in the formulas: s a step's sigma and t the next one; D what the model takes for the picture at
s; z noise of the step. Each step ends at t; where t is 0 the latents become D and nothing is drawn.
Scalars are Python floats; latents stay float32 on their device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from library.previews.noise import StepNoise
from library.previews.sigma_rules import shifted

Predict = Callable[[Tensor, float], Tensor]
"""Latents and their sigma -> what the model takes for the picture; guided."""

JUST_BELOW_ONE = 1 - 1e-4  # the time that stands for 1 where the log of (1 - s) / s is taken
LMS_ORDER = 4
QUADRATURE = 200  # points of the integrals of er_sde


@dataclass
class Journey:
    """What a sampler needs: the model, the list of sigmas, noise, and who watches.

    on_step: called with (number of the step from 0, latents before it, its D)
    """

    predict: Predict
    sigmas: Sequence[float]
    noise: StepNoise
    on_step: Callable[[int, Tensor, Tensor], None] | None = None

    def steps(self) -> Iterator[tuple[int, float, float]]:
        for i in range(len(self.sigmas) - 1):
            yield i, self.sigmas[i], self.sigmas[i + 1]

    def look(self, i: int, x: Tensor) -> Tensor:
        """D at the start of step i."""
        found = self.predict(x, self.sigmas[i])
        if self.on_step:
            self.on_step(i, x, found)
        return found


Sampler = Callable[[Journey, Tensor], Tensor]


def euler(journey: Journey, x: Tensor) -> Tensor:
    for i, s, t in journey.steps():
        clean = journey.look(i, x)
        x = x + (x - clean) * ((t - s) / s)
    return x


def heun(journey: Journey, x: Tensor) -> Tensor:
    for i, s, t in journey.steps():
        clean = journey.look(i, x)
        slope = (x - clean) / s
        if t:
            ahead = x + slope * (t - s)
            slope = (slope + (ahead - journey.predict(ahead, t)) / t) / 2
        x = x + slope * (t - s)
    return x


def dpm_2(journey: Journey, x: Tensor) -> Tensor:
    for i, s, t in journey.steps():
        clean = journey.look(i, x)
        x = _by_middle(journey, x, clean, s, t) if t else clean
    return x


def _by_middle(journey: Journey, x: Tensor, clean: Tensor, s: float, t: float) -> Tensor:
    """From s to t with the slope that the middle of log sigma has."""
    m = math.sqrt(s * t)
    middle = x + (x - clean) * ((m - s) / s)
    return x + (middle - journey.predict(middle, m)) * ((t - s) / m)


def lms(journey: Journey, x: Tensor) -> Tensor:
    """Linear multistep: the polynomial through the last slopes, integrated exactly."""
    slopes: list[Tensor] = []
    for i, s, t in journey.steps():
        clean = journey.look(i, x)
        slopes = [*slopes, (x - clean) / s][-LMS_ORDER:]
        if not t:
            return clean
        nodes = list(journey.sigmas[i + 1 - len(slopes) : i + 1])
        for place, slope in enumerate(slopes):
            x = x + slope * _lagrange_integral(nodes, place, s, t)
    return x


def _lagrange_integral(nodes: Sequence[float], place: int, start: float, end: float) -> float:
    """The integral of the polynomial that is 1 at nodes[place] and 0 at the other nodes.

    Measured from the start, where the terms are small, so that no digits are lost.
    """
    at, coefficients = nodes[place] - start, [1.0]  # of rising powers
    for other in (node - start for j, node in enumerate(nodes) if j != place):
        up = [0.0, *coefficients]
        down = [*(c * other for c in coefficients), 0.0]
        coefficients = [(a - b) / (at - other) for a, b in zip(up, down)]
    return sum(c * (end - start) ** (k + 1) / (k + 1) for k, c in enumerate(coefficients))


def euler_ancestral(journey: Journey, x: Tensor) -> Tensor:
    for i, s, t in journey.steps():
        clean = journey.look(i, x)
        if not t:
            return clean
        u = t * t / s
        x = _noised_up(journey, x + (x - clean) * ((u - s) / s), u, s, t)
    return x


def dpm_2_ancestral(journey: Journey, x: Tensor) -> Tensor:
    for i, s, t in journey.steps():
        clean = journey.look(i, x)
        if not t:
            return clean
        u = t * t / s
        x = _noised_up(journey, _by_middle(journey, x, clean, s, u), u, s, t)
    return x


def _noised_up(journey: Journey, x: Tensor, u: float, s: float, t: float) -> Tensor:
    """From sigma u up to t by fresh noise; the step began at s."""
    keep = (1 - t) / (1 - u)
    return x * keep + journey.noise(s, t) * math.sqrt(t * t - (keep * u) ** 2)


def dpmpp_2m(journey: Journey, x: Tensor) -> Tensor:
    """Lu et al. 2022, second order multistep; in log sigma, as ComfyUI has it also for flows."""
    before: tuple[Tensor, float] | None = None
    for i, s, t in journey.steps():
        clean = journey.look(i, x)
        if not t:
            return clean
        h = math.log(s / t)
        ahead = clean
        if before:
            earlier, h_before = before
            ahead = clean + (clean - earlier) * (h / (2 * h_before))
        x = x * (t / s) + ahead * (1 - t / s)
        before = clean, h
    return x


def res_multistep(journey: Journey, x: Tensor) -> Tensor:
    """Second order exponential integrator; the first step is Euler's."""
    earlier: Tensor | None = None
    for i, s, t in journey.steps():
        clean = journey.look(i, x)
        if not t:
            return clean
        if earlier is None:
            x = x + (x - clean) * ((t - s) / s)
        else:
            h = math.log(s / t)
            c = math.log(s / journey.sigmas[i - 1]) / h
            p1 = -math.expm1(-h) / h
            p2 = (1 - p1) / h
            x = x * math.exp(-h) + (clean * (p1 - p2 / c) + earlier * (p2 / c)) * h
        earlier = clean
    return x


def er_sde(journey: Journey, x: Tensor) -> Tensor:
    """Cui et al. 2023, extended reverse-time SDE, third order; in e = s / (1 - s)."""
    cleans: list[Tensor] = []
    bend: Tensor | None = None  # D' of the step before
    for i, s, t in journey.steps():
        clean = journey.look(i, x)
        cleans = [*cleans, clean][-2:]
        if not t:
            return clean
        e_s, e_t, scale = s / (1 - s), t / (1 - t), 1 - t
        r = _er_growth(e_t) / _er_growth(e_s)
        x = x * (scale / (1 - s) * r) + clean * (scale * (1 - r))
        if i >= 1:
            change, w = e_t - e_s, (e_s - e_t) / QUADRATURE
            points = [e_t + j * w for j in range(QUADRATURE)]
            e_1 = journey.sigmas[i - 1] / (1 - journey.sigmas[i - 1])
            slope = (clean - cleans[0]) / (e_s - e_1)
            whole = w * sum(1 / _er_growth(p) for p in points)
            x = x + slope * (scale * (change + whole * _er_growth(e_t)))
            if bend is not None:
                e_2 = journey.sigmas[i - 2] / (1 - journey.sigmas[i - 2])
                curve = (slope - bend) / ((e_s - e_2) / 2)
                moment = w * sum((p - e_s) / _er_growth(p) for p in points)
                x = x + curve * (scale * (change**2 / 2 + moment * _er_growth(e_t)))
            bend = slope
        spread = e_t**2 - e_s**2 * r**2
        noise = journey.noise(s, t)
        if spread > 0:
            x = x + noise * (scale * math.sqrt(spread))
    return x


def _er_growth(e: float) -> float:
    return e * (math.exp(e**0.3) + 10)


def dpmpp_2m_sde(journey: Journey, x: Tensor) -> Tensor:
    """The stochastic form of dpmpp_2m (midpoint, eta 1); in l = log((1 - s) / s)."""
    before: tuple[Tensor, float] | None = None
    for i, s, t in journey.steps():
        clean = journey.look(i, x)
        if not t:
            return clean
        h = _log_ratio(t) - _log_ratio(s)
        share = -math.expm1(-2 * h)
        x = x * (t / s * math.exp(-h)) + clean * ((1 - t) * share)
        if before:
            earlier, h_before = before
            x = x + (clean - earlier) * (0.5 * (1 - t) * share * h / h_before)
        x = x + journey.noise(s, t) * (t * math.sqrt(share))
        before = clean, h
    return x


def dpmpp_sde(journey: Journey, x: Tensor) -> Tensor:
    """The stochastic single-step form: the model is asked at the start and in the middle of each step."""
    for i, s, t in journey.steps():
        clean = journey.look(i, x)
        if not t:
            return clean
        half = _log_ratio(s) + (_log_ratio(t) - _log_ratio(s)) / 2
        m = 1 / (1 + math.exp(half))
        middle = _sde_move(journey, x, clean, s, m)
        x = _sde_move(journey, x, journey.predict(middle, m), s, t)
    return x


def _sde_move(journey: Journey, x: Tensor, clean: Tensor, s: float, t: float) -> Tensor:
    """From s to t towards `clean`, a part of the way by fresh noise."""
    e_s, e_t = s / (1 - s), t / (1 - t)
    up = min(e_t, math.sqrt(e_t**2 * (e_s**2 - e_t**2) / e_s**2))
    k = math.sqrt(e_t**2 - up**2) / e_s
    moved = x * ((1 - t) / (1 - s) * k) + clean * ((1 - t) * (1 - k))
    return moved + journey.noise(s, t) * ((1 - t) * up)


def _log_ratio(s: float) -> float:
    return math.log((1 - s) / s)


@dataclass(frozen=True)
class Kind:
    """A sampler and what it asks of its surroundings.

    noise:    "" none, "drawn" one draw after another, "brownian" increments of a path
    shortens: the list loses the last sigma before 0, of one step more
    below_one: a first sigma of 1 is replaced by the one next to it
    """

    run: Sampler
    noise: str = ""
    shortens: bool = False
    below_one: bool = False


SAMPLERS: dict[str, Kind] = {
    "euler": Kind(euler),
    "euler_ancestral": Kind(euler_ancestral, noise="drawn"),
    "heun": Kind(heun),
    "dpm_2": Kind(dpm_2, shortens=True),
    "dpm_2_ancestral": Kind(dpm_2_ancestral, noise="drawn", shortens=True),
    "lms": Kind(lms),
    "dpmpp_2m": Kind(dpmpp_2m),
    "dpmpp_2m_sde": Kind(dpmpp_2m_sde, noise="brownian", below_one=True),
    "dpmpp_sde": Kind(dpmpp_sde, noise="brownian", below_one=True),
    "er_sde": Kind(er_sde, noise="drawn", below_one=True),
    "res_multistep": Kind(res_multistep),
    "ddim": Kind(euler),
}


def below_one(sigmas: Sequence[float], shift: float) -> list[float]:
    """The list with a first sigma of 1 or more replaced by the one next to it."""
    first, *rest = sigmas
    return [shifted(JUST_BELOW_ONE, shift) if first >= 1 else first, *rest]


SD_SCRIPTS_NAMES = {
    "euler_a": "euler_ancestral",
    "dpm_2_a": "dpm_2_ancestral",
    "dpmsolver++": "dpmpp_2m",
    "k_lms": "lms",
    "k_euler": "euler",
    "k_euler_a": "euler_ancestral",
    "k_dpm_2": "dpm_2",
    "k_dpm_2_a": "dpm_2_ancestral",
}
"""The same sampler under sd-scripts' name."""
INSTEAD_OF = {"pndm": "lms", "dpmsolver": "dpmpp_2m", "dpmsingle": "dpmpp_sde"}
"""sd-scripts' samplers that flow matching has no form of: what is used instead."""


def resolve_sampler(name: str) -> tuple[str, str] | None:
    """The name in SAMPLERS and what should be told of it, "" for nothing; None for no sampler."""
    if name in SAMPLERS or name in SD_SCRIPTS_NAMES:
        return SD_SCRIPTS_NAMES.get(name, name), ""
    if name in INSTEAD_OF:
        used = INSTEAD_OF[name]
        return used, f"{name} means nothing for flow matching; {used} is used instead."
    return None
