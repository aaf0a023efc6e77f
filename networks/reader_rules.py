"""What each program does with the keys of an adapter file, and what it wants of the metadata.

A rule says which keys it is about; of a program's rules the first that hits a key counts, so the
order in a tuple matters. What no rule of a program hits is applied as it was trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum

from networks.file_contents import Contents, Entry, Place
from networks.kinds.full import DIFF, SET_WEIGHT
from networks.kinds.lora import LORA_DOWN, LORA_UP
from networks.kinds.norm import B_NORM, W_NORM
from networks.kinds.oft import BLOCKS
from networks.kinds.stored import ALPHA, BIAS, DIFF_B, DORA_SCALE, MAGNITUDE, WEIGHT

DOWN_UP = ("lora_down.weight", "lora_up.weight")
A_B = ("lora_A.weight", "lora_B.weight")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
BLOCK = re.compile(r"blocks[._]\d+[._]")
FEED_FORWARD = re.compile(r"_\d+_mlp_")


class Effect(Enum):
    """What a program does, as the verb of a sentence about it."""

    REFUSES = "refuses the whole file for"
    DROPS = "drops"
    SPOILS = "reads wrongly"
    MISSES = "misses"


@dataclass(frozen=True)
class Rule:
    """What becomes of the keys that it hits.

    what:    a noun phrase
    advice:  a sentence, or none
    of_file: asked once of a file: whether the rule holds for it at all
    """

    id: str
    effect: Effect
    what: str
    hits: Callable[[Entry, Contents], bool]
    advice: str = ""
    of_file: Callable[[Contents], bool] = lambda _: True


@dataclass(frozen=True)
class Want:
    """Something about the metadata that holds when `lacks` does; words as in a Rule."""

    id: str
    effect: Effect
    what: str
    lacks: Callable[[Contents], bool]
    advice: str = ""


# Which keys


def has_factor(
    *factors: str, place: Collection[Place] = tuple(Place)
) -> Callable[[Entry, Contents], bool]:
    return lambda entry, _: entry.factor in factors and entry.place in place


def has_ending(*endings: str) -> Callable[[Entry, Contents], bool]:
    return lambda entry, _: entry.ending in endings


def is_of(place: Place) -> Callable[[Entry, Contents], bool]:
    return lambda entry, _: entry.place is place


def is_unknown(entry: Entry, contents: Contents) -> bool:
    return not entry.factor


def is_half(entry: Entry, contents: Contents) -> bool:
    """One factor of a LoRA without the other."""
    pair = {LORA_DOWN, LORA_UP}
    return entry.factor in pair and not pair <= contents.factors[entry.name]


def is_up_alone(entry: Entry, contents: Contents) -> bool:
    return entry.factor == LORA_UP and is_half(entry, contents)


def is_flat_front(entry: Entry, contents: Contents) -> bool:
    return entry.place is Place.FLAT and entry.path.startswith(f"{contents.family.front}_")


def is_flat_feed_forward(entry: Entry, contents: Contents) -> bool:
    return entry.place is Place.FLAT and FEED_FORWARD.search(entry.path) is not None


def is_flat_outside_blocks(entry: Entry, contents: Contents) -> bool:
    path = entry.path.removeprefix(f"{contents.family.front}_")
    return entry.place is Place.FLAT and not BLOCK.match(path)


def is_of_embedding(entry: Entry, contents: Contents) -> bool:
    return entry.path in contents.family.embeddings


def text_encoder_prefix(contents: Contents) -> str:
    return f"text_encoders.{contents.family.text_encoder}.transformer.model."


def is_named_otherwise(entry: Entry, contents: Contents) -> bool:
    """As ComfyUI sees it."""
    if entry.place is not Place.TEXT_ENCODER:
        return entry.place is Place.ELSEWHERE
    known = (text_encoder_prefix(contents), "text_encoders.transformer.model.", "lora_te_")
    return not entry.name.startswith(known) or entry.name.startswith("lora_te_model_")


def is_named_otherwise_for_sd_next(entry: Entry, contents: Contents) -> bool:
    if entry.place is not Place.TEXT_ENCODER:
        return entry.place is Place.ELSEWHERE
    return not entry.name.startswith((text_encoder_prefix(contents), "lora_te_"))


# ComfyUI, and those that apply files as it does


CONVERT = "Convert the names and spellings to those of ComfyUI."
UNIVERSAL = "Write a universal file: lora_A and lora_B with alpha in lora_B, and no norms."
REFUSES, DROPS, SPOILS, MISSES = Effect.REFUSES, Effect.DROPS, Effect.SPOILS, Effect.MISSES

NAMES = "names that do not begin with diffusion_model. or lora_unet_"
LOKR_SPELLING = Rule(
    "lokr_spelling", DROPS, "LoKr factors spelled with .weight",
    has_ending(*(f"{name}.weight" for name in LOKR)), CONVERT,
)  # fmt: skip
HALVES = Rule("halves", DROPS, "one factor of a LoRA without the other", is_half)
WHOLE = Rule(
    "whole_weights", DROPS, "whole weights, which are no differences", has_factor(WEIGHT, BIAS)
)
UNKNOWN = Rule("unknown", DROPS, "keys that are no factors", is_unknown)

COMFY_RULES = (
    Rule("names", DROPS, NAMES, is_named_otherwise, CONVERT),
    LOKR_SPELLING,
    Rule("up_alone", REFUSES, "a lora_up without its lora_down", is_up_alone),
    HALVES,
    Rule("magnitude", DROPS, "DoRA's magnitudes as PEFT spells them (it applies the LoRA beside)",
         has_factor(MAGNITUDE)),
    Rule("norm_biases", DROPS, "differences of the norms' biases, which the norms do not have",
         has_factor(B_NORM)),
    WHOLE,
    UNKNOWN,
)  # fmt: skip

FORGE_RULES = (
    Rule("text_encoder", DROPS, "what is of the text encoder", is_of(Place.TEXT_ENCODER)),
    *COMFY_RULES,
)

# SD.Next


def is_spelled_otherwise(entry: Entry, contents: Contents) -> bool:
    return entry.factor in (LORA_DOWN, LORA_UP) and entry.ending not in DOWN_UP + A_B


SD_NEXT_RULES = (
    Rule("names", DROPS, NAMES, is_named_otherwise_for_sd_next, CONVERT),
    Rule("flat_front", DROPS, "the part that reads the text encoder, under lora_unet_ names",
         is_flat_front, CONVERT),
    LOKR_SPELLING,
    Rule("lora_spelling", DROPS, "other spellings than lora_down, lora_up, lora_A and lora_B",
         is_spelled_otherwise, CONVERT),
    HALVES,
    Rule("set_weight", DROPS, "whole weights (set_weight)", has_factor(SET_WEIGHT)),
    Rule("bias_diff", DROPS, "differences of biases spelled bias.diff", has_ending("bias.diff")),
    Rule("oft", SPOILS, "OFT and BOFT: alpha is another limit there, and 0 leaves nothing of them",
         has_factor(BLOCKS)),
    WHOLE,
    UNKNOWN,
)  # fmt: skip

# InvokeAI: one name that begins with lora_unet_ or lora_te_ makes it read the file as flat


ITS_OWN = ("base_model.model.transformer.", "transformer.")
DOTTED_LAYERS = {*DOWN_UP, *A_B, *LOKR, ALPHA, DORA_SCALE}
FLAT_LAYERS = {"lora_up.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a", "diff", "w_norm"}
NOT_FLAT = tuple(place for place in Place if place is not Place.FLAT)


def has_no_blocks(contents: Contents) -> bool:
    """No name is of a block of the model; a flat one may be of the front's."""
    front = f"{contents.family.front}_"
    return not any(
        BLOCK.match(_own_path(entry).removeprefix(front if entry.place is Place.FLAT else ""))
        for entry in contents.entries
    )


def _own_path(entry: Entry) -> str:
    known = (prefix for prefix in ITS_OWN if entry.path.startswith(prefix))
    return (
        entry.path.removeprefix(next(known, "")) if entry.place is Place.ELSEWHERE else entry.path
    )


def makes_no_layer(entry: Entry, contents: Contents) -> bool:
    """The file is refused when one module's factors are none of those that it looks for."""
    if is_half(entry, contents):
        return True
    if contents.has_flat_names:
        return not FLAT_LAYERS & contents.endings[entry.name]
    has_factors = contents.factors[entry.name] - {ALPHA, DORA_SCALE}
    return entry.ending not in DOTTED_LAYERS or not has_factors


def is_lost_by_invoke(entry: Entry, contents: Contents) -> bool:
    """Names that it finds no module for."""
    if entry.place is Place.DOTTED:
        return contents.has_flat_names
    if entry.place is Place.TEXT_ENCODER:
        known = "lora_te_" if contents.has_flat_names else "text_encoder."
        return not entry.name.startswith(known)
    own = entry.name.startswith(ITS_OWN) and not contents.has_flat_names
    return entry.place is Place.ELSEWHERE and not own


def is_beside_a_b(entry: Entry, contents: Contents) -> bool:
    return not contents.has_flat_names and A_B[0] in contents.endings[entry.name]


INVOKE_RULES = (
    Rule("no_blocks", REFUSES, "its names: it finds no block of the model in them",
         lambda *_: True, of_file=has_no_blocks),
    Rule("norms", REFUSES, "differences of norms",
         has_factor(W_NORM, B_NORM, place=NOT_FLAT), UNIVERSAL),
    Rule("loha", REFUSES, "LoHa",
         lambda entry, contents: entry.factor.startswith("hada_")
         and (entry.place is not Place.FLAT or DORA_SCALE in contents.factors[entry.name])),
    Rule("full_rank", REFUSES, "differences of full rank and whole weights",
         has_factor(DIFF, DIFF_B, SET_WEIGHT, WEIGHT, BIAS, place=NOT_FLAT)),
    Rule("layers", REFUSES, "modules whose factors it does not know, spelled as they are",
         makes_no_layer, CONVERT),
    Rule("names", DROPS, "names that it finds no module for", is_lost_by_invoke, CONVERT),
    Rule("flat_norms", DROPS, "differences of norms", has_factor(W_NORM, B_NORM)),
    Rule("flat_feed_forward", DROPS, "the MLPs, under lora_unet_ names",
         is_flat_feed_forward, CONVERT),
    Rule("flat_others", DROPS, "what is not of a block, under lora_unet_ names",
         is_flat_outside_blocks, CONVERT),
    Rule("alpha", SPOILS, "alpha beside lora_A and lora_B: it applies the scale 1",
         lambda entry, contents: entry.factor == ALPHA and is_beside_a_b(entry, contents), UNIVERSAL),
    Rule("dora", DROPS, "DoRA's magnitudes (it applies what stands beside them)",
         lambda entry, contents: entry.factor == DORA_SCALE
         and (is_beside_a_b(entry, contents) or bool({*LOKR} & contents.factors[entry.name]))),
)  # fmt: skip

# diffusers, from 0.42 on


def has_no_lora_in_it(entry: Entry, contents: Contents) -> bool:
    return "lora" not in entry.key


def without_lora(*factors: str) -> Callable[[Entry, Contents], bool]:
    return lambda entry, _: "lora" not in entry.key and entry.factor in factors


def is_loaded_by_diffusers(entry: Entry) -> bool:
    return entry.place is Place.DOTTED or entry.key.startswith(
        ("transformer.", "text_conditioner.")
    )


DIFFUSERS_RULES = (
    Rule("dora", DROPS, "DoRA's magnitudes (it applies what stands beside them)",
         lambda entry, _: "dora_scale" in entry.key),
    Rule("alpha", REFUSES, "alpha", without_lora(ALPHA), UNIVERSAL),
    Rule("norms", REFUSES, "differences of norms", without_lora(W_NORM, B_NORM), UNIVERSAL),
    Rule("lokr", REFUSES, "LoKr", without_lora(*LOKR), "Write a LoRA of it (by SVD)."),
    Rule("no_lora", REFUSES, 'keys without "lora" in them', has_no_lora_in_it),
    Rule("names", DROPS, "names that do not begin with diffusion_model.",
         lambda entry, _: not is_loaded_by_diffusers(entry), CONVERT),
    Rule("down_up", REFUSES, "lora_down and lora_up",
         has_ending(*DOWN_UP, "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
         UNIVERSAL),
    Rule("embeddings", SPOILS, "a LoRA of an embedding: its layer stays without values",
         is_of_embedding),
    Rule("spelling", SPOILS, "lora_A and lora_B without .weight or with a name before it, and one "
         "without the other: their layers stay without values",
         lambda entry, contents: is_half(entry, contents)
         or entry.ending in ("lora_A", "lora_B", "lora_A.default.weight", "lora_B.default.weight"),
         UNIVERSAL),
    UNKNOWN,
)  # fmt: skip

# The metadata


def folders_of_tags(contents: Contents) -> list[str] | None:
    """Of ss_tag_frequency, in its order; None where it cannot be read."""
    try:
        found = json.loads(contents.metadata.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return None
    return list(found) if isinstance(found, dict) else None


def has_no_resolution(contents: Contents) -> bool:
    found = contents.metadata.get("modelspec.resolution", "")
    return re.fullmatch(r"[0-9]{1,6}x[0-9]{1,6}", found) is None


SD_NEXT_WANTS = (
    Want("base_model", MISSES, "ss_base_model_version, which it knows the family by",
         lambda contents: not contents.metadata.get("ss_base_model_version", "").lower()
         .startswith(contents.family.name)),
)  # fmt: skip
SWARM_WANTS = (
    Want("architecture", MISSES, "modelspec.architecture, which it knows the family by",
         lambda contents: contents.family.name
         not in contents.metadata.get("modelspec.architecture", "").lower()),
    Want("resolution", MISSES, "modelspec.resolution as WIDTHxHEIGHT", has_no_resolution),
)  # fmt: skip
MANAGER_WANTS = (
    Want("tags", DROPS, "the tags of all folders but the first of ss_tag_frequency",
         lambda contents: len(folders_of_tags(contents) or ()) > 1,
         "It matters where the first folder is not the most important one."),
    Want("broken_tags", MISSES, "ss_tag_frequency: its text is no JSON object",
         lambda contents: folders_of_tags(contents) is None),
    Want("hash", MISSES, "sshs_model_hash, whose beginning is the AutoV3 hash",
         lambda contents: re.fullmatch(
             "[0-9a-fA-F]{64}", contents.metadata.get("sshs_model_hash", "")) is None),
)  # fmt: skip
