"""The flags of evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from library.errors import ConfigError, Problem
from library.settings.drift_prompts import BUILTIN, PROMPTS, read_drift_prompts
from library.settings.effects import needs, needs_data
from library.settings.flags.shared import fits_epochs, fits_steps
from library.settings.flags.validation import VALIDATED
from library.settings.options import at_least, flag

EVALUABLE = needs_data(
    lambda o: o.drift_prompts or any(dataset.validation_split for dataset in o.datasets),
    "validation_split is 0 and drift_prompts is not set",
)
EVALUATED = needs(
    lambda o: o.evaluate_every_n_steps or o.evaluate_every_n_epochs,
    "neither evaluate_every_n_steps nor evaluate_every_n_epochs is set",
)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Evaluation: which file to keep"""

    evaluate_every_n_steps: int | None = flag(
        None,
        "compare the loss of trained and of held-out pictures with the base's, every n steps and at "
        "the end",
        check=at_least(1),
        off=(0,),
        idle=(EVALUABLE, fits_steps("evaluate_every_n_steps")),
    )
    evaluate_every_n_epochs: int | None = flag(
        None,
        "the same every n epochs",
        check=at_least(1),
        off=(0,),
        idle=(EVALUABLE, fits_epochs("evaluate_every_n_epochs")),
    )
    evaluation_pictures: int = flag(
        16,
        "most pictures of each kind that an evaluation looks at",
        check=at_least(1),
        idle=(EVALUATED, VALIDATED),
    )
    drift_prompts: str | None = flag(
        None,
        f"file of prompts, one a line, for which evaluations measure how far the model has moved; "
        f"{BUILTIN}: a list of {len(PROMPTS)}",
        idle=(EVALUATED,),
        path=True,
    )

    def problems(self) -> list[Problem]:
        """What is wrong with the prompts."""
        try:
            read_drift_prompts(self.drift_prompts or BUILTIN)
        except ConfigError as error:
            return list(error.problems)
        return []
