"""The flags of validation."""

from __future__ import annotations

from dataclasses import dataclass

from library.settings.effects import needs_data
from library.settings.flags.shared import fits_epochs, fits_steps, key_flag
from library.settings.options import at_least, between, flag

VALIDATED = needs_data(
    lambda o: any(dataset.validation_split for dataset in o.datasets), "validation_split is 0"
)


@dataclass(frozen=True, kw_only=True)
class ValidationOptions:
    """Validation"""

    validation_split: float = key_flag(
        "validation_split", "share of pictures kept for validation", check=between(0, 0.9)
    )
    validation_seed: int | None = key_flag("validation_seed", "which of them; 0 if not given")
    validate_every_n_steps: int | None = flag(
        None,
        "validate every n steps",
        check=at_least(1),
        off=(0,),
        idle=(VALIDATED, fits_steps("validate_every_n_steps")),
    )
    validate_every_n_epochs: int | None = flag(
        None,
        "validate every n epochs; every epoch if neither is given",
        check=at_least(1),
        off=(0,),
        idle=(VALIDATED, fits_epochs("validate_every_n_epochs")),
    )
    max_validation_steps: int | None = flag(
        None,
        "most batches of a validation; all if not given",
        check=at_least(1),
        off=(0,),
        idle=(VALIDATED,),
    )
