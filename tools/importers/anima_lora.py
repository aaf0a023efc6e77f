"""anima_lora: its flat TOML, a method's file over base.toml, with options of sd-scripts and its own."""

from __future__ import annotations

import math
import re
from typing import Any

from tools.importers.draft import UNSET, Draft, Leaf
from tools.importers.machine import Document, Nearby, Source
from tools.importers.noise import ADALN, logit_normal
from tools.importers.rules import (
    Rule,
    idle,
    loosely,
    lost,
    many,
    number,
    path_to,
    scaled,
    sizes,
    switch,
    text,
    whole,
)
from tools.importers.sd_scripts import flat, with_dataset
from tools.importers.sd_scripts import other as option
from tools.importers.shared import kind_of, settle_shared, spread_arguments

FOLDERS = idle("pictures are read from source_image_dir and cached beside it")
OTHER_ADAPTER = lost("it changes what the adapter is; a plain one is trained")
OTHER_LOSS = lost("the loss has no such part here")
NO_SETTING = idle("here it is so without a setting, or needs none")


def edge(value: Any) -> int:
    """The edge of a square of so many pixels."""
    return math.ceil(math.sqrt(loosely(number)(value)))


def orders(value: Any) -> bool:
    """Whether tags are shuffled: a number of orders there."""
    return loosely(whole)(value) > 1


def dynamic(value: Any) -> str | None:
    return "true" if loosely(switch)(value) else None


def mix(value: Any) -> dict[str, float] | None:
    """{enabled, tag_ratio}: how many captions are tags, the others being sentences."""
    if not isinstance(value, dict):
        raise ValueError("expected a table of enabled and tag_ratio")
    if not value.get("enabled"):
        return None
    share = loosely(number)(value.get("tag_ratio", 0.7))
    share = share / 100 if share > 1 else share
    return {"tags": share, "sentences": round(1 - share, 6)}


SHARED_RULES = {
    "source_image_dir": path_to("special.source"),
    "mask_dir": path_to("special.masks"),
    "target_res": Rule("datasets.resolutions", sizes),
    **many("resized_image_dir lora_cache_dir cache_dir", lambda name: FOLDERS),
    "path_pattern": lost("all pictures of a folder are trained: name another image_dir", "*"),
    "sample_ratio": lost("all pictures of a folder are trained: see num_repeats", 1),
    "nl_tag_mix": Rule("subsets.caption_shares", mix, why="sentences stand in <name>_nl.txt here"),
    "train_adaln": Rule("special.adaln", loosely(switch)),
    "adaln_rank": Rule("special.adaln_rank", loosely(whole)),
    "t_min": Rule("train.min_timestep", scaled(1000), asks_not=(0,)),
    "t_max": Rule("train.max_timestep", scaled(1000), asks_not=(1,)),
    "sigmoid_bias": Rule("special.bias", loosely(number)),
    "use_shuffled_caption_variants": Rule("train.shuffle_caption", loosely(switch)),
    "validation_split_num": lost("a number of pictures there; validation_split is a share here"),
    "min_pixels": Rule("general.skip_image_resolution", edge, asks_not=(0,)),
    "checkpointing_epochs": Rule(
        "train.save_state", lambda value: loosely(whole)(value) > 0, why="with each saved file"
    ),
    "use_vae_cache": Rule("train.cache_latents_to_disk", loosely(switch)),
    "use_text_cache": Rule("train.cache_text_encoder_outputs_to_disk", loosely(switch)),
    **many(
        "use_ortho use_hydra use_moe use_reft reft_dim reft_layers add_reft",
        lambda name: lost(OTHER_ADAPTER.why, 1, 1.0),
    ),
    "down_init": Rule("special.down_init", text, asks_not=("kaiming",)),
    "use_timestep_mask": Rule("special.tlora", loosely(switch)),
    "min_rank": Rule("special.tlora_min_rank", loosely(whole)),
    "alpha_rank_scale": Rule("special.tlora_power", loosely(number)),
    **many("use_repa repa_mode repa_weight repa_layer repa_encoder use_cmmd", lambda n: OTHER_LOSS),
    "caption_shuffle_variants": Rule(
        "train.shuffle_caption", orders, why="each time anew, not some orders"
    ),
    "compile_dynamic_seq": Rule("train.compile_dynamic", dynamic),
    **many(
        "static_token_count lora_fp32_accumulation cache_llm_adapter_outputs use_custom_down_autograd",
        lambda name: NO_SETTING,
    ),
}
RULES = SHARED_RULES


def prepare(document: Document, nearby: Nearby) -> Document:
    """The method's file over base.toml, which lies beside it or one folder above."""
    base = Nearby(nearby.folders[:2], nearby.read).find("base.toml")
    layers = {**flat(nearby.read(base)), **flat(document)} if base else document
    return spread_arguments(without_templates(with_dataset(layers, nearby)))


def without_templates(value: Any) -> Any:
    """The document without "{name}", which stands for a folder of source_image_dir's pictures."""
    if isinstance(value, dict):
        kept = {
            k: v
            for k, v in value.items()
            if not (isinstance(v, str) and re.fullmatch(r"\{\w+\}", v))
        }
        return {k: without_templates(v) for k, v in kept.items()}
    return [without_templates(each) for each in value] if isinstance(value, list) else value


def other(leaf: Leaf) -> Rule | None:
    return option(leaf)


def settle(draft: Draft) -> None:
    """Noise, adaLN Linears, and what is trained there unasked."""
    settle_own(draft)
    if draft.subsets:
        draft.add("general.enable_bucket", True, "buckets are always made there")
    settle_shared(draft, unet_only=True)


def settle_own(draft: Draft) -> None:
    """What this program alone has."""
    if source := draft.take("source"):
        if any("image_dir" in subset for subset in draft.subsets.values()):
            draft.find(UNSET, source.leaf, why="the dataset file names the folders")
        else:
            draft.put(source.leaf, "subsets.image_dir", source.value)
    settle_noise(draft)
    settle_adaln(draft)
    settle_tlora(draft)
    settle_start(draft)
    settle_masks(draft)


def settle_start(draft: Draft) -> None:
    """The factors' start: from the base's weights, or from gradients, which is not made here."""
    start = draft.take("down_init")
    if start and start.value == "weight_svd" and kind_of(draft) in ("lora", "tlora"):
        draft.put(start.leaf, "network.svd_down", True)
    elif start:
        draft.lose(start.leaf, "factors start at random here, or by svd_down or pissa of a LoRA")


def settle_noise(draft: Draft) -> None:
    """A bias moves sigma before it is squeezed into 0 to 1."""
    bias = draft.take("bias")
    if bias and bias.value:
        shift = draft.train.pop("discrete_flow_shift", 1.0)
        shifts = draft.train.get("timestep_sampling") == "shift"
        scale = draft.train.pop("sigmoid_scale", 1.0)
        draft.put(bias.leaf, logit_normal(scale, bias.value, shift if shifts else 1.0))
    elif bias:
        draft.find(UNSET, bias.leaf)


def settle_masks(draft: Draft) -> None:
    """Masks count unless masked_loss is off."""
    masks = draft.take("masks")
    if masks and draft.train.get("masked_loss") is False:
        draft.find(UNSET, masks.leaf, why="masked_loss is off")
    elif masks:
        draft.put(masks.leaf, "subsets.mask_path", masks.value)


def settle_tlora(draft: Draft) -> None:
    """Ranks by the noise, which LoRA alone has here."""
    asking = draft.take("tlora")
    is_on = bool(asking and asking.value)
    is_lora = kind_of(draft) == "lora"
    if asking and is_on and not is_lora:
        draft.lose(asking.leaf, "only a LoRA's ranks depend on the noise here")
    elif asking and is_on:
        draft.put(asking.leaf, "network.tlora", True)
    elif asking:
        draft.find(UNSET, asking.leaf)
    for name in ("tlora_min_rank", "tlora_power"):
        if (found := draft.take(name)) and is_on and is_lora:
            draft.put(found.leaf, f"network.{name}", found.value)
        elif found:
            draft.find(UNSET, found.leaf, why="use_timestep_mask is not on")


def settle_adaln(draft: Draft) -> None:
    """adaLN Linears, with a rank of their own."""
    adaln, rank = draft.take("adaln"), draft.take("adaln_rank")
    is_on = bool(adaln and adaln.value)
    if adaln and is_on:
        draft.put(adaln.leaf, "network.include_patterns", ADALN)
    elif adaln:
        draft.find(UNSET, adaln.leaf)
    if rank and is_on:
        draft.put(rank.leaf, "network.network_reg_dims", f"{ADALN}={rank.value}")
    elif rank:
        draft.find(UNSET, rank.leaf, why="adaLN is not trained")


def knows(document: Any) -> bool:
    """Whether a document has what this program alone writes."""
    marks = {
        "source_image_dir", "target_res", "use_shuffled_caption_variants", "resized_image_dir",
        "lora_cache_dir", "use_timestep_mask", "static_token_count",
    }  # fmt: skip
    return isinstance(document, dict) and bool(marks & set(flat(document)))


SOURCE = Source("anima_lora", RULES, settle, prepare, other, flat=True)
