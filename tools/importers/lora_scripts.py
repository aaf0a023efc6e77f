"""lora-scripts and lora-scripts-next: sd-scripts' options, flat or under [metadata] and [data].

What decides the adapter or the optimizer stands at the top. Its fast mode has anima_lora's keys.
"""

from __future__ import annotations

from typing import Any

from library.settings.foreign_names import OPTIMIZER_ARGS
from tools.importers import anima_lora
from tools.importers.draft import UNSET, Draft, Leaf
from tools.importers.machine import Document, Nearby, Source
from tools.importers.rules import Rule, lost, many
from tools.importers.sd_scripts import RULES as OPTIONS
from tools.importers.sd_scripts import prepare as with_layers
from tools.importers.sd_scripts import settle_folders
from tools.importers.shared import literal, settle_shared

ONE_OPTIMIZERS = (
    "prodigy_d_coef prodigy_d0 prodigy_growth_rate prodigy_safeguard_warmup prodigy_use_bias_correction "
    "came_weight_decay came_betas came_eps came_clip_threshold"
)
RULES = {
    **anima_lora.SHARED_RULES,
    **OPTIONS,
    **many(ONE_OPTIMIZERS, lambda name: Rule(f"special.{name}", literal)),
    **many(
        "template_version scope base_model version author train_type description name method "
        "model_train_type ui_custom_params network_option_kwargs",
        lambda name: lost("by it the program remembers something of its own"),
    ),
}


def prepare(document: Document, nearby: Nearby) -> Document:
    """The document with its layers, as for sd-scripts."""
    return with_layers(document, nearby)


def other(leaf: Leaf) -> Rule | None:
    return anima_lora.other(leaf)


def settle(draft: Draft) -> None:
    """The optimizer's own keys, and what sd-scripts does unasked."""
    settle_folders(draft)
    chosen = str(draft.value("optimizer_type", "AdamW")).lower()
    for name in ONE_OPTIMIZERS.split():
        waiting = draft.take(name)
        part, _, key = name.partition("_")
        if waiting and part in chosen:
            draft.put(waiting.leaf, f"optimizer.{OPTIMIZER_ARGS.get(name, key)}", waiting.value)
        elif waiting:
            draft.find(UNSET, waiting.leaf, why=f"optimizer_type is {chosen}")
    anima_lora.settle_noise(draft)
    anima_lora.settle_adaln(draft)
    anima_lora.settle_tlora(draft)
    anima_lora.settle_masks(draft)
    settle_shared(draft)


def knows(document: Any) -> bool:
    """Whether a document has what these programs alone write."""
    if not isinstance(document, dict):
        return False
    sections = [each for each in document.values() if isinstance(each, dict)]
    keys = set(document).union(*sections)
    marks = {"model_train_type", "lycoris_algo", "lora_type", "enable_preview"}
    return bool(keys & marks) or {"metadata", "data"} <= set(document)


SOURCE = Source("lora-scripts", RULES, settle, prepare, other, flat=True)
