"""The flags of the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from library.errors import ConfigError, Problem
from library.settings.drift_prompts import BUILTIN, PROMPTS, read_drift_prompts
from library.settings.effects import loses_to, needs, needs_data
from library.settings.flags.shared import FLOW
from library.settings.options import above, at_least, flag

LOSS_TYPES = ("l1", "l2", "huber", "smooth_l1")
LARGE_SIDE = 0.9 * 1024
"""Of a square as large as a picture, in pixels: from here multiscale_loss_weight acts. diffusion-pipe's number."""


def subsets_of(o: SimpleNamespace) -> list[Any]:
    return [subset for dataset in o.datasets for subset in dataset.subsets]


HUBER = needs(lambda o: o.loss_type in ("huber", "smooth_l1"), "loss_type is {o.loss_type}")


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Loss"""

    loss_type: str = flag("l2", "kind of loss", choices=LOSS_TYPES)
    huber_schedule: str = flag(
        "snr", "threshold by sigma", choices=("constant", "exponential", "snr"), idle=(HUBER,)
    )
    huber_c: float = flag(0.1, "threshold of huber and smooth_l1", check=above(0), idle=(HUBER,))
    huber_scale: float = flag(1.0, "factor of the threshold", check=above(0), idle=(HUBER,))
    multiscale_loss_weight: float = flag(
        0.0,
        "weight of the loss at half size, of pictures from 922 x 922 up",
        check=at_least(0),
        idle=(
            needs_data(
                lambda o: any(math.prod(d.resolution) >= LARGE_SIDE**2 for d in o.datasets),
                "no dataset has a resolution of 922 or more",
            ),
        ),
    )
    prior_loss_weight: float = flag(
        1.0,
        "weight of regularisation pictures",
        check=at_least(0),
        idle=(
            loses_to(
                lambda o: o.prior_preservation_weight, "prior_preservation_weight takes its place"
            ),
            needs_data(
                lambda o: any(s.is_reg for s in subsets_of(o)),
                "there are no regularisation pictures",
            ),
        ),
    )
    prior_preservation_weight: float = flag(
        0.0,
        "weight of regularisation pictures and prompts for which the base's own prediction is learned",
        check=at_least(0),
        idle=(
            needs_data(
                lambda o: o.prior_preservation_prompts or any(s.is_reg for s in subsets_of(o)),
                "there are no regularisation pictures and no prior_preservation_prompts",
            ),
        ),
    )
    prior_preservation_prompts: str | None = flag(
        None,
        f"file of prompts, one a line, for which each picture's noise gives the base's prediction too; "
        f"{BUILTIN}: a list of {len(PROMPTS)}",
        idle=(needs(lambda o: o.prior_preservation_weight, "prior_preservation_weight is 0"),),
        path=True,
    )
    masked_loss: bool = flag(
        False,
        "loss inside the masks of conditioning_data_dir only",
        idle=(
            needs_data(lambda o: any(s.is_masked for s in subsets_of(o)), "no subset has masks"),
        ),
    )
    min_snr_gamma: float | None = flag(
        None, "weight by SNR", ignored=f"{FLOW}; weighting_scheme = sigma_sqrt or cosmap weights it"
    )
    debiased_estimation_loss: bool = flag(False, "debiased estimation", ignored=FLOW)
    v_pred_like_loss: float | None = flag(None, "v-prediction weight", ignored=FLOW)
    scale_v_pred_loss_like_noise_pred: bool = flag(False, "scale v-prediction loss", ignored=FLOW)

    @property
    def regularisation_weight(self) -> float:
        """Of the loss of regularisation pictures."""
        return self.prior_preservation_weight or self.prior_loss_weight

    @property
    def prior_prompts(self) -> tuple[str, ...]:
        """For which the base's prediction is learned. Raises ConfigError."""
        given = self.prior_preservation_prompts if self.prior_preservation_weight else None
        return read_drift_prompts(given, "prior_preservation_prompts") if given else ()

    def problems(self) -> list[Problem]:
        """What is wrong with the prompts."""
        try:
            _ = self.prior_prompts
        except ConfigError as error:
            return list(error.problems)
        return []
