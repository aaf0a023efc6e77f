"""What a run that trains the model itself does not take of the options, and why: one table, all told at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from library.errors import Problem
from library.settings.options import Flag

OF_ADAPTERS = "there are no adapters: the model itself is trained. Leave it out"
FROZEN = "there are no frozen matrices to store in 8 or 4 bits: they train. Leave it out, or train adapters"
NO_BASE = (
    "compares with the base, of which a run that trains the model itself has no second copy. Leave it out"
)
NOT_FOR_MODELS: dict[str, str] = {
    **dict.fromkeys(
        (
            *("network_module", "network_dim", "network_alpha", "network_dropout", "network_args"),
            *("network_weights", "dim_from_weights", "scale_weight_norms"),
            *("network_train_unet_only", "export_format", "export_rank", "norm_export"),
        ),
        OF_ADAPTERS,
    ),
    "unet_lr": f"{OF_ADAPTERS}: learning_rate is the rate",
    "text_encoder_lr": "the text encoder does not train. Leave it out",
    "train_norm": "norms train with the part that they belong to. Leave it out; a rate of 0 freezes a part",
    **dict.fromkeys(("fp8_base", "fp8_base_unet", "int8_base", "int8_compute", "nf4_base"), FROZEN),
    "cuda_graphs": "steps of adapters are recorded, those of a model that trains are not. Leave it out",
    **dict.fromkeys(
        ("evaluate_every_n_steps", "evaluate_every_n_epochs", "evaluation_pictures", "drift_prompts"),
        NO_BASE,
    ),
    "prior_preservation_weight": "learns the base's own prediction, and the base changes. Leave it out",
    "prior_preservation_prompts": "belongs to prior_preservation_weight, which needs a base. Leave it out",
}
"""Option -> the reason."""


def refused(
    flags: Mapping[str, Flag], values: Mapping[str, Any], explicit: Collection[str]
) -> list[Problem]:
    """A problem for each option that was set to something else than its default."""
    return [
        Problem(f"{reason}.", f"{flags[name].names[0].removeprefix('--')} = {values[name]}")
        for name, reason in NOT_FOR_MODELS.items()
        if name in explicit and values[name] != flags[name].default
    ]
