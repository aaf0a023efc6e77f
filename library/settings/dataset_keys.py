"""The keys of dataset.toml as a table: type, default, where each may stand, which flag it answers to.

Every key of sd-scripts is here, and those of our own (flag None and no counterpart there).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from library.settings.effects import Idle, loses_to, needs, needs_plan
from library.settings.paths import expand_path

INTERPOLATIONS = ("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box")
CAPTION_LINES = ("first", "join", "each")
CAPTION_FORMS = ("tags", "sentences", "tags_sentences", "sentences_tags")
"""What a caption may consist of where a picture has tags and sentences, in the order of the shares."""
LEVELS = {"general": "[general]", "datasets": "[[datasets]]", "subsets": "[[datasets.subsets]]"}


@dataclass(frozen=True)
class Key:
    """What is known of one key of the file.

    levels:  where it may stand: g, d, s
    flag:    the command line's name for it; None when only the file has it
    ignored: why it never has an effect; "" when it has one
    idle:    when it has none beside the other options
    flag_acts: the flag has a use of its own, also where the file has the key
    """

    kind: str
    default: Any = None
    levels: str = "gds"
    low: float = -math.inf
    high: float = math.inf
    flag: str | None = "="
    choices: tuple[str, ...] = ()
    ignored: str = ""
    idle: tuple[Idle, ...] = ()
    flag_acts: bool = False


BUCKETS = needs(lambda o: o.enable_bucket, "enable_bucket is off")
OWN_SIZES = loses_to(
    lambda o: o.bucket_no_upscale, "bucket_no_upscale makes buckets as pictures are"
)
NO_CAPTIONS = loses_to(
    lambda o: o.caption_dropout_rate == 1 or o.caption_dropout_every_n_epochs == 1,
    "every caption is dropped as a whole",
)
FROM_CLASS = loses_to(lambda o: o.dataset_class, "captions come from dataset_class")
CHANGING_TAGS = needs(
    lambda o: o.shuffle_caption or o.token_warmup_step or o.caption_tag_dropout_rate,
    "tags are neither shuffled nor dropped (shuffle_caption, caption_tag_dropout_rate)",
)
TAGS = needs(
    lambda o: (
        o.shuffle_caption or o.token_warmup_step or o.caption_tag_dropout_rate
        or o.keep_tokens_separator or o.secondary_separator or o.trigger_word or o.metadata_file or o.caption_lines == "join"
    ),
    "captions stay as they are; only the tag counts of the metadata are divided by it",
)  # fmt: skip
SENTENCES = needs(
    lambda o: any((o.caption_shares or ())[1:]), "caption_shares does not ask for sentences"
)
OTHER_MASK = "another mask of the subset is used"

KEYS = {
    "batch_size": Key("counts", 1, "gd", low=1, flag="train_batch_size"),
    "resolution": Key("size", None, "gd"),
    "enable_bucket": Key("bool", False, "gd"),
    "min_bucket_reso": Key("int", 256, "gd", low=1, idle=(BUCKETS, OWN_SIZES)),
    "max_bucket_reso": Key("int", 1024, "gd", low=1, idle=(BUCKETS, OWN_SIZES)),
    "bucket_reso_steps": Key("int", 64, "gd", low=1, idle=(BUCKETS,)),
    "bucket_no_upscale": Key("bool", False, "gd", idle=(BUCKETS,)),
    "resize_interpolation": Key("text", None, choices=INTERPOLATIONS),
    "num_repeats": Key("int", 1, low=1, flag="dataset_repeats"),
    "shuffle_caption": Key("bool", False, idle=(NO_CAPTIONS,)),
    "caption_separator": Key("text", ",", idle=(NO_CAPTIONS, TAGS)),
    "keep_tokens": Key("int", 0, low=0, idle=(NO_CAPTIONS, CHANGING_TAGS)),
    "keep_tokens_separator": Key("text", "", idle=(NO_CAPTIONS,)),
    "secondary_separator": Key("text", "", idle=(NO_CAPTIONS,)),
    "enable_wildcard": Key("bool", False, idle=(NO_CAPTIONS,)),
    "caption_prefix": Key("text", "", idle=(NO_CAPTIONS,)),
    "caption_suffix": Key("text", "", idle=(NO_CAPTIONS,)),
    "flip_aug": Key("bool", False),
    "token_warmup_min": Key(
        "int",
        1,
        low=0,
        idle=(NO_CAPTIONS, needs(lambda o: o.token_warmup_step, "token_warmup_step is not set")),
    ),
    "token_warmup_step": Key("float", 0, low=0, idle=(NO_CAPTIONS,)),
    "caption_dropout_rate": Key("float", 0.0, low=0, high=1),
    "caption_dropout_every_n_epochs": Key(
        "int",
        0,
        low=0,
        idle=(
            needs_plan(
                lambda o: o.caption_dropout_every_n_epochs <= o.plan.epochs,
                "the run has {o.plan.epochs} epochs",
            ),
        ),
    ),
    "caption_tag_dropout_rate": Key("float", 0.0, low=0, high=1, idle=(NO_CAPTIONS,)),
    "image_dir": Key("path", None, "s", flag=None),
    "caption_extension": Key(
        "text",
        ".txt",
        idle=(NO_CAPTIONS, loses_to(lambda o: o.metadata_file, "captions are in metadata_file"), FROM_CLASS),
    ),
    "class_tokens": Key("text", "", flag=None, idle=(NO_CAPTIONS,)),
    "cache_info": Key("bool", False),
    "network_multiplier": Key("float", 1.0, "gd", flag=None),
    "validation_split": Key("float", 0.0, "gd", low=0, high=0.9),
    "validation_seed": Key(
        "int",
        None,
        "gd",
        flag_acts=True,
        idle=(needs(lambda o: o.validation_split, "validation_split is 0"),),
    ),
    "skip_image_resolution": Key("size", None, "gd"),
    "color_aug": Key("bool", False),
    "random_crop": Key("bool", False),
    "face_crop_aug_range": Key("range", None),
    "is_reg": Key("bool", False, "s", flag=None),
    "metadata_file": Key("path", None, "s", flag=None),
    "dataset_class": Key("text", None, "s"),
    "alpha_mask": Key("bool", False, "s", idle=(loses_to(lambda o: not o.alpha_mask, OTHER_MASK),)),
    "conditioning_data_dir": Key(
        "path",
        None,
        "s",
        idle=(
            needs(lambda o: o.masked_loss, "--masked_loss is off"),
            loses_to(lambda o: not o.conditioning_data_dir, OTHER_MASK),
        ),
    ),
    "custom_attributes": Key(
        "table", None, flag=None,
        idle=(needs(lambda o: o.dataset_class, "beside timestep_sampling.offset it is read by a dataset_class alone"),),
    ),
    # beyond sd-scripts
    "resolutions": Key("sizes", None, "gd", flag=None),
    "recursive": Key("bool", False, flag=None),
    "mask_path": Key("path", None, "s", flag=None),
    "min_ar": Key("float", None, low=0.01, high=100, flag=None),
    "max_ar": Key("float", None, low=0.01, high=100, flag=None),
    "skip_empty_caption": Key("bool", False, flag=None),
    "loss_multiplier": Key("float", 1.0, low=0, flag=None),
    "timestep_offset": Key(
        "float", 0.0, low=-10, high=10, flag=None,
        idle=(needs(lambda o: o.timestep_sampling in ("sigmoid", "shift", "flux_shift"), "timestep_sampling is {o.timestep_sampling}"),),
    ),
    "caption_lines": Key("text", None, flag=None, choices=CAPTION_LINES, idle=(NO_CAPTIONS,)),
    "trigger_word": Key("text", "", flag=None, idle=(NO_CAPTIONS,)),
    "caption_shares": Key("shares", None, flag=None, idle=(NO_CAPTIONS,)),
    "sentence_suffix": Key(
        "text",
        "_nl",
        flag=None,
        idle=(
            NO_CAPTIONS,
            SENTENCES,
            loses_to(lambda o: o.metadata_file, "captions are in metadata_file"), FROM_CLASS,
        ),
    ),
}
TYPES: dict[str, type] = {
    "bool": bool, "int": int, "float": float, "text": str, "path": str, "table": dict
}  # fmt: skip
EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "text": "text in quotes",
    "path": "text in quotes",
    "size": "a whole number or [width, height]",
    "sizes": "a list of sizes such as [512, 768, 1024]",
    "counts": "a whole number, or one for each resolution such as {512 = 4, 1024 = 1}",
    "range": "two numbers, [min, max]",
    "shares": "shares such as {tags = 2, sentences = 1, tags_sentences = 1, sentences_tags = 1}",
    "table": "a table",
}


def default_of(name: str) -> Any:
    """The value of a key that nobody sets; of its flag and its field too."""
    return KEYS[name].default


def belongs(name: str, level: str) -> str:
    places = [header for table, header in LEVELS.items() if table[0] in KEYS[name].levels]
    return f"{name} belongs in {' or '.join(places)}, not in {LEVELS.get(level, level)}."


def convert(key: Key, value: Any) -> Any:
    """The value in the key's type. Raises ValueError saying what was expected."""
    numbers = value if isinstance(value, list) else [value]
    if any(type(number) is int and abs(number) >= 2**63 for number in numbers):
        raise ValueError("expected numbers of at most 18 digits.")
    if key.kind == "size":
        return _size(key, value)
    if key.kind == "sizes":
        if not isinstance(value, list) or not value:
            raise ValueError(_type_message(key, value))
        return tuple(dict.fromkeys(_size(key, each) for each in value))
    if key.kind == "counts":
        return _counts(key, value)
    if key.kind == "range":
        return _range(key, value)
    if key.kind == "shares":
        return _shares(key, value)
    if key.kind == "float" and type(value) is int:
        value = float(value)
    if key.kind == "bool" and type(value) is int and value in (0, 1):
        value = bool(value)
    found = type(value)  # a bool is no whole number here
    if found is not TYPES[key.kind]:
        raise ValueError(_type_message(key, value))
    if key.kind == "path":
        return expand_path(value)
    if key.choices and value not in key.choices:
        raise ValueError(f"{value!r} is unknown. Choose one of {', '.join(key.choices)}.")
    if key.kind in ("int", "float") and not key.low <= value <= key.high:
        bound = f"at least {key.low:g}" if value < key.low else f"at most {key.high:g}"
        raise ValueError(f"{value} is out of range: expected {bound}.")
    if key is KEYS["network_multiplier"] and value == 0:
        raise ValueError("at strength 0 adapters learn nothing. Leave these pictures out instead.")
    if key is KEYS["caption_extension"] and not value.startswith("."):
        raise ValueError(f'an extension starts with a dot. Write ".{value}".')
    if key is KEYS["caption_separator"] and not value:
        raise ValueError('a separator cannot be empty. The usual one is ",".')
    if key is KEYS["sentence_suffix"] and (not value or set(value) & set("/\\")):
        raise ValueError('expected what stands between name and extension, such as "_nl" for x_nl.txt.')
    return value


def _size(key: Key, value: Any) -> tuple[int, int]:
    edges = value if isinstance(value, list) and len(value) == 2 else [value, value]
    if not all(type(edge) is int and edge > 0 for edge in edges):
        raise ValueError(_type_message(key, value))
    return edges[0], edges[1]


def _counts(key: Key, value: Any) -> int | dict[tuple[int, int], int]:
    """One number for all sizes, or a number for each: "512" or "512,768" (width, height) -> number."""
    by_size = value if isinstance(value, dict) else {"1": value}
    if not by_size:
        raise ValueError(_type_message(key, value))
    found = {}
    for name, count in by_size.items():
        if type(count) is not int:
            raise ValueError(_type_message(key, count))
        if count < key.low:
            raise ValueError(f"{count} is out of range: expected at least {key.low:g}.")
        try:
            size = _size(key, split_numbers(str(name).replace("x", ",")))
        except ValueError:
            raise ValueError(f'{name!r} is no resolution. Write 512 or "512,768".') from None
        found[size] = count
    return found if isinstance(value, dict) else value


def _range(key: Key, value: Any) -> tuple[float, float]:
    is_pair = isinstance(value, list) and len(value) == 2
    if not is_pair or not all(type(end) in (int, float) for end in value):
        raise ValueError(_type_message(key, value))
    low, high = map(float, value)
    if not 0 < low <= high < math.inf:
        raise ValueError(f"expected 0 < min <= max, got {value}.")
    return low, high


def _shares(key: Key, value: Any) -> tuple[float, ...]:
    """The share of each form, in the order of CAPTION_FORMS; they need not add up to anything."""
    if not isinstance(value, dict) or not value:
        raise ValueError(_type_message(key, value))
    for name, share in value.items():
        if name not in CAPTION_FORMS:
            known = ", ".join(CAPTION_FORMS)
            raise ValueError(f"{name!r} is no form of a caption. There are {known}.")
        if type(share) not in (int, float):
            raise ValueError(_type_message(key, share))
        if not 0 <= share < math.inf:
            raise ValueError(f"{name} = {share} is out of range: expected at least 0.")
    if not any(value.values()):
        raise ValueError("every share is 0. Give one of them more.")
    return tuple(float(value.get(name, 0)) for name in CAPTION_FORMS)


def _type_message(key: Key, value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    names |= {list: "a list", dict: "a table"}
    message = f"expected {EXPECTED[key.kind]}, got {names.get(type(value), type(value).__name__)}."
    if isinstance(value, str) and key.kind in ("bool", "int", "counts", "float", "size"):
        message += " Remove the quotes."
        if key.kind == "size" and "," in value:
            message += " Write [width, height]."
    return message


def split_numbers(value: Any) -> Any:
    """A flag's "512" or "512,768" as the file would have it; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        numbers = [float(part) if "." in part else int(part) for part in value.split(",")]
    except ValueError:
        return value
    return numbers[0] if len(numbers) == 1 else numbers
