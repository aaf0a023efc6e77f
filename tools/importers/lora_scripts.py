"""lora-scripts and lora-scripts-next: sd-scripts' options, flat or under [metadata] and [data].

What decides the adapter or the optimizer stands at the top. Its fast mode has anima_lora's keys.
"""

from __future__ import annotations

from typing import Any

from library.settings.foreign_names import OPTIMIZER_ARGS
from tools.importers import anima_lora
from tools.importers.draft import UNSET, Draft, Leaf
from tools.importers.machine import Document, Nearby, Source
from tools.importers.prompts import write_prompts
from tools.importers.rules import Rule, idle, loosely, lost, many, switch, text
from tools.importers.sd_scripts import RULES as OPTIONS
from tools.importers.sd_scripts import prepare as with_layers
from tools.importers.sd_scripts import settle_folders, settle_trained, trains_model
from tools.importers.shared import kind_of, literal

ONE_OPTIMIZERS = (
    "prodigy_d_coef prodigy_d0 prodigy_growth_rate prodigy_safeguard_warmup prodigy_use_bias_correction "
    "came_weight_decay came_betas came_eps came_clip_threshold"
)
PREVIEWS = {
    "sample_width": "width", "sample_height": "height", "sample_steps": "steps", "sample_cfg": "cfg",
    "sample_seed": "seed", "negative_prompts": "negative",
}  # fmt: skip
RULES = {
    **anima_lora.SHARED_RULES,
    **OPTIONS,
    **many(ONE_OPTIMIZERS, lambda name: Rule(f"special.{name}", literal)),
    **many(
        " ".join(("enable_preview positive_prompts", *PREVIEWS)),
        lambda name: Rule(f"special.{name}"),
    ),
    "sample_scheduler": idle("pictures are drawn as ComfyUI draws them"),
    "randomly_choice_prompt": lost("the prompts of sample_prompts are drawn, not captions"),
    "random_prompt_include_subdirs": idle("it belongs to randomly_choice_prompt"),
    "model_train_type": Rule("special.train_type"),
    "fast_variant": Rule("special.variant"),
    "tlora_rank_schedule": Rule("special.rank_schedule", text),
    "tlora_orthogonal_init": lost("svd_down starts from the base's main directions"),
    "pissa_init": Rule("special.pissa", loosely(switch)),
    **many(
        "pissa_method pissa_niter pissa_oversample pissa_apply_conv2d pissa_export_mode",
        lambda name: idle("it belongs to how pissa_init is found and written there"),
    ),
    **many(
        "prefer_json_caption caption_source_mode",
        lambda name: lost("captions are text files, or in metadata_file, here", "auto", "txt"),
    ),
    **many(
        "template_version scope base_model version author train_type description name method "
        "ui_custom_params network_option_kwargs",
        lambda name: idle("by it the program remembers something of its own"),
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
    settle_variants(draft)
    settle_previews(draft)
    anima_lora.settle_own(draft)
    kind = draft.take("train_type")
    if kind:
        draft.find(UNSET, kind.leaf, why="the program remembers its page by it")
    is_whole = kind is not None and "finetune" in str(kind.value).lower()
    settle_trained(draft, whole=trains_model(draft, told=is_whole))


def settle_previews(draft: Draft) -> None:
    """The prompt of the program's page, where previews are switched on."""
    asking, prompts = draft.take("enable_preview"), draft.take("positive_prompts")
    is_on = bool(asking and asking.value in (True, "true"))
    options = {option: draft.take(name) for name, option in PREVIEWS.items()}
    if asking:
        draft.find(UNSET, asking.leaf, why="sample_prompts says so here")
    write_prompts(
        draft, [prompts] if prompts else [], options, off="" if is_on else "enable_preview is off"
    )


def settle_variants(draft: Draft) -> None:
    """T-LoRA's schedule, and PiSSA's start of a LoRA."""
    variant, schedule = draft.take("variant"), draft.take("rank_schedule")
    if variant and variant.value == "tlora":
        draft.put(variant.leaf, "network.tlora", True)
    elif variant:
        draft.find(UNSET, variant.leaf)
    if schedule and schedule.value == "linear":
        draft.put(schedule.leaf, "network.tlora_power", 1.0)
    elif schedule:
        draft.lose(schedule.leaf, "ranks follow a power of 1 - sigma here: see tlora_power")
    elif kind_of(draft) == "tlora":
        draft.notes.append(
            "ranks follow a cosine there, here a power of 1 - sigma: see tlora_power."
        )
    pissa = draft.take("pissa")
    is_tlora = (
        draft.value("tlora") or "tlora" in draft.table("network") or kind_of(draft) == "tlora"
    )
    if pissa and pissa.value and is_tlora:
        draft.lose(pissa.leaf, "it does not go with T-LoRA here")
    elif pissa and pissa.value and kind_of(draft) == "lora":
        draft.put(pissa.leaf, "network.pissa", True)
    elif pissa:
        draft.find(UNSET, pissa.leaf, why="" if not pissa.value else "only a LoRA starts so")


def knows(document: Any) -> bool:
    """Whether a document has what these programs alone write."""
    if not isinstance(document, dict):
        return False
    sections = [each for each in document.values() if isinstance(each, dict)]
    keys = set(document).union(*sections)
    marks = {"model_train_type", "lycoris_algo", "lora_type", "enable_preview"}
    return bool(keys & marks) or {"metadata", "data"} <= set(document)


SOURCE = Source("lora-scripts", RULES, settle, prepare, other, flat=True)
