"""The rules by which a scheduler spreads its steps over sigma, each as ComfyUI computes it.

Each takes the number of steps and `Sigmas`, and returns a falling list without its final zero. The model's
own thousand sigmas are shifted; several rules choose among them, others only know the first and the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

TRAINED = 1000  # sigmas that ComfyUI's table of a flow model has
BETA = 0.6  # both parameters of the distribution that the beta rule draws its quantiles from
KARRAS_RHO = 7.0
LINEAR_SHARE = 0.025  # noise removed by the linear half of linear_quadratic


def shifted(time: float, shift: float) -> float:
    """Where shift puts a time in [0, 1]. Esser et al. 2024, sec. 5.3.2."""
    return shift * time / (1 + (shift - 1) * time)


@dataclass(frozen=True)
class Sigmas:
    """The model's sigmas, table[k - 1] = shifted(k / 1000), rounded to float32 as ComfyUI keeps them."""

    shift: float

    @cached_property
    def table(self) -> list[float]:
        values = [shifted(k / TRAINED, self.shift) for k in range(1, TRAINED + 1)]
        return torch.tensor(values, dtype=torch.float32).tolist()

    @property
    def low(self) -> float:
        return self.table[0]

    @property
    def high(self) -> float:
        return self.table[-1]


Rule = Callable[[int, Sigmas], list[float]]


def evenly(first: float, last: float, count: int) -> list[float]:
    """`count` numbers from first to last; one alone is the first."""
    step = (last - first) / (count - 1) if count > 1 else 0.0
    return [first + step * i for i in range(count)]


def simple(steps: int, sigmas: Sigmas) -> list[float]:
    apart = TRAINED / steps  # the quotient first: 1000 * i / steps rounds otherwise
    return [sigmas.table[-1 - int(i * apart)] for i in range(steps)]


def normal(steps: int, sigmas: Sigmas) -> list[float]:
    """The ends of its line are shifted already, and are shifted again."""
    return [shifted(t, sigmas.shift) for t in evenly(sigmas.high, sigmas.low, steps)]


def sgm_uniform(steps: int, sigmas: Sigmas) -> list[float]:
    return [shifted(t, sigmas.shift) for t in evenly(sigmas.high, sigmas.low, steps + 1)[:-1]]


def beta(steps: int, sigmas: Sigmas) -> list[float]:
    """Quantiles of a beta distribution; those that fall on one sigma of the table are one step."""
    places = [round((TRAINED - 1) * beta_quantile(1 - i / steps)) for i in range(steps)]
    return [sigmas.table[place] for place in dict.fromkeys(places)]


def karras(steps: int, sigmas: Sigmas) -> list[float]:
    low, high = sigmas.low ** (1 / KARRAS_RHO), sigmas.high ** (1 / KARRAS_RHO)
    return [root**KARRAS_RHO for root in evenly(high, low, steps)]


def exponential(steps: int, sigmas: Sigmas) -> list[float]:
    return [math.exp(log) for log in evenly(math.log(sigmas.high), math.log(sigmas.low), steps)]


def kl_optimal(steps: int, sigmas: Sigmas) -> list[float]:
    """Sabour et al. 2024. Needs two steps."""
    return [math.tan(a) for a in evenly(math.atan(sigmas.high), math.atan(sigmas.low), steps)]


def linear_quadratic(steps: int, sigmas: Sigmas) -> list[float]:
    """Half of the steps remove 0.025 of the noise together, evenly; the others ever more."""
    if steps == 1:
        return [sigmas.high]
    linear = steps // 2
    curved = steps - linear
    bend = (linear - LINEAR_SHARE * steps) / (linear * curved**2)
    slope = LINEAR_SHARE / linear - 2 * bend * linear
    removed = [LINEAR_SHARE * i / linear for i in range(linear)]
    removed += [bend * i**2 + slope * i + bend * linear**2 for i in range(linear, steps)]
    return [(1 - share) * sigmas.high for share in removed]


def ddim_uniform(steps: int, sigmas: Sigmas) -> list[float]:
    """Entries of the table at even distances, from the second lowest up: may be more than asked for."""
    apart = max(TRAINED // steps, 1)
    return sigmas.table[1::apart][::-1]


RULES: dict[str, Rule] = {
    "simple": simple,
    "normal": normal,
    "sgm_uniform": sgm_uniform,
    "beta": beta,
    "karras": karras,
    "exponential": exponential,
    "kl_optimal": kl_optimal,
    "linear_quadratic": linear_quadratic,
    "ddim_uniform": ddim_uniform,
}


def beta_quantile(share: float) -> float:
    """The x in [0, 1] below which `share` of Beta(0.6, 0.6) lies, by bisection."""
    if share in (0.0, 0.5, 1.0):
        return share
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        if beta_share(middle) < share:
            low = middle
        else:
            high = middle
    return middle


def beta_share(x: float) -> float:
    """How much of Beta(0.6, 0.6) lies below x in (0, 1): the regularised incomplete beta function.

    The continued fraction of DLMF 8.17.22, from its far end; it converges fast below the middle, and
    the distribution is symmetric.
    """
    if x > 0.5:
        return 1 - beta_share(1 - x)
    a, value = BETA, 1.0
    for m in range(60, 0, -1):
        odd = -(a + m - 1) * (2 * a + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        even = m * (a - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        value = 1 + odd / (1 + even / value)
    whole = math.gamma(a) ** 2 / math.gamma(2 * a)
    return (x * (1 - x)) ** a / (a * whole * value)
