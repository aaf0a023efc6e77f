"""What programs around sd-scripts have in common: its options, and its lists of arguments.

Any option of the trainer is a rule. What stands elsewhere here, or is called otherwise, is known by
the tables that the trainer's own messages are made of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from library.anima_backend.modelling.params import PUBLISHED
from library.anima_runtime.command_line import GROUPS
from library.anima_runtime.family import ANIMA
from library.errors import Problem
from library.settings.dataset_keys import KEYS, Key
from library.settings.dataset_keys import convert as convert_key
from library.settings.flag_values import convert, value_problem
from library.settings.foreign_names import (
    CLASSES,
    DATASET_KEYS,
    FLAGS,
    KINDS,
    LYCORIS_ONLY,
    NETWORK_ARGS,
    OF_OFT,
    OPTIMIZER_ARGS,
    OWN,
    VALUES,
)
from library.settings.moved_keys import ALGORITHMS
from library.settings.optimizer_names import ALIASES, OPTIMIZERS
from library.settings.options import Flag, all_flags
from library.settings.user_classes import is_installed, separate_assignments
from networks._anima_arguments import AdapterArguments
from networks.arguments import unquoted
from tools.importers.draft import LOST, UNSET, Draft, Leaf, Waiting
from tools.importers.rules import Rule, loosely, lost, number, plain, size_text, text

BY_DEST = all_flags(GROUPS)
BY_NAME = {name.removeprefix("--"): flag for flag in BY_DEST.values() for name in flag.names}
LISTS = {"network_args": "network", "optimizer_args": "optimizer", "lr_scheduler_args": "scheduler"}
ADAPTER_WORDS = {field.name for field in dataclasses.fields(AdapterArguments)} | set(NETWORK_ARGS)
PATHS = ("pretrained_model_name_or_path", "dataset_config")
MODULES = {
    "networks.lora": "lora", "networks.lora_anima": "lora", "networks.lokr": "lokr",
    "networks.lokr_anima": "lokr", "networks.loha": "loha",
    "networks.loha_anima": "loha", "networks.oft_anima": "diag-oft", "lycoris.kohya": "",
    "networks.tlora": "tlora", "networks.tlora_anima": "tlora",
}  # fmt: skip
COMPONENT_RATES = "llm_adapter_lr self_attn_lr cross_attn_lr mlp_lr mod_lr"
OFFICIAL_IGNORES = "noise_offset adaptive_noise_scale min_timestep max_timestep min_snr_gamma"
THERE_IDLE = lost(
    "official sd-scripts takes it without effect on this model, where it would have one here",
    1000,
)
OWN_MEMORY = lost("by it the program remembers something of its own")


def flag_rule(name: str) -> Rule | None:
    """The rule for an option of the trainer, by any of its names; None where there is none."""
    flag = BY_NAME.get(name)
    if flag is None:
        return None
    if flag.dest in ("config_file", "output_config"):
        return lost("it belongs on the command line")
    if flag.dest == "torch_compile":
        return Rule("train.compile", lambda value: read_flag(flag, value), why="block by block")
    if flag.ignored or flag.refused:
        return lost(flag.ignored or flag.refused, *off_values(flag))
    secret = flag.dest in ("wandb_api_key", "huggingface_token")
    is_path = flag.path or flag.dest in PATHS
    target = f"special.{flag.dest}" if flag.dest in SETTLED else f"train.{name}"
    return Rule(target, lambda value: read_flag(flag, value), is_path=is_path, secret=secret)


def off_values(flag: Flag) -> tuple[Any, ...]:
    return (flag.default, str(flag.default), *flag.off)


LEAVES_TEXT_ENCODER = (
    "network_train_unet_only", "cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk"
)  # fmt: skip
SETTLED = ("network_module", "optimizer_type", "text_encoder_lr")


def read_flag(flag: Flag, value: Any) -> Any:
    """The value of an option in its type, also of text and in other programs' words."""
    if flag.many and isinstance(value, str):
        value = separate_assignments(value) if flag.type is str else value.replace(",", " ").split()
    if flag.choices and isinstance(value, str) and value not in flag.choices:
        meant = VALUES.get(value.strip().lower(), ())
        value = next((word for word in meant if word in flag.choices), value)
    is_text = isinstance(value, str) or (flag.many and flag.type is not str)
    try:
        made = convert(flag, value, is_text)
    except ValueError as error:
        raise ValueError(f"expected {error}") from error
    if problem := value_problem(flag, made):
        raise ValueError(problem)
    return list(made) if isinstance(made, tuple) else made


def shared_rule(leaf: Leaf) -> Rule | None:
    """The rule for a key of sd-scripts, wherever it stands; None where it is unknown."""
    section, _, key = leaf.name.rpartition(".")
    parent = section.rpartition(".")[2]
    if parent in LISTS:
        return argument_rule(LISTS[parent], key)
    if key in KINDS:
        return Rule(f"special.{key}")
    if key in LYCORIS_ONLY:  # also where an option here has that name for something else
        return argument_rule("network", key)
    if rule := flag_rule(key) or flag_rule(FLAGS.get(key, "")):
        return rule
    if key in OWN:
        return OWN_MEMORY
    if key in ADAPTER_WORDS:
        return argument_rule("network", key)
    if key in OPTIMIZER_ARGS:
        return argument_rule("optimizer", OPTIMIZER_ARGS[key])
    return dataset_rule(key, "general")


def argument_rule(table: str, key: str) -> Rule | None:
    """The rule for an item of network_args, optimizer_args or lr_scheduler_args."""
    if table != "network":
        return Rule(f"{table}.{key}", literal)
    if key in ("algo", *KINDS):
        return Rule(f"special.{key}")
    if key in LYCORIS_ONLY:
        return lost("LyCORIS's own, without counterpart", 1, "full", "1", "anima")
    if key == "dropout":
        return Rule("train.network_dropout", loosely(number))
    if key in ADAPTER_WORDS:
        return Rule(f"network.{NETWORK_ARGS.get(key, key)}", argument)
    return None


def argument(value: Any) -> Any:
    """A value of network_args: texts without quotes of their own, true and false in small letters."""
    if isinstance(value, list):
        return ",".join(str(argument(each)) for each in value)
    value = unquoted(value) if isinstance(value, str) else value
    return value.lower() if isinstance(value, str) and value.lower() in ("true", "false") else value


def literal(value: Any) -> Any:
    """A value of optimizer_args, which are read as Python's."""
    value = unquoted(value) if isinstance(value, str) else value
    return (
        value.capitalize()
        if isinstance(value, str) and value.lower() in ("true", "false", "none")
        else value
    )


def dataset_rule(key: str, table: str) -> Rule | None:
    """The rule for a key of the dataset file, under its name here or elsewhere."""
    name = key if key in KEYS else DATASET_KEYS.get(key)
    if name is None:
        return None
    if KEYS[name].ignored:
        return lost(KEYS[name].ignored)
    if table == "general" and "g" not in KEYS[name].levels:
        if name != "image_dir":  # of a folder: without one it means nothing
            return None
        table = "subsets"
    return Rule(
        f"{table}.{name}",
        lambda value: read_key(KEYS[name], value),
        is_path=KEYS[name].kind == "path",
    )


def read_key(key: Key, value: Any) -> Any:
    """The value of a key of the dataset file, numbers and sizes of text too."""
    if isinstance(value, str) and key.kind == "size":
        value = size_text(value)
    elif isinstance(value, str) and key.kind not in ("text", "path"):
        value = plain(value)
    if key.kind != "path":
        convert_key(key, value)
    return text(value) if key.kind == "path" else value


def spread_arguments(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with its lists of "key=value" as tables, at every depth."""
    spread: dict[str, Any] = {}
    for key, value in document.items():
        if key in LISTS and isinstance(value, (list, str)):
            items = separate_assignments(value) if isinstance(value, str) else value
            value = {name: words if equals else None for name, equals, words in map(parts, items)}
        elif isinstance(value, dict):
            value = spread_arguments(value)
        spread[key] = value
    return spread


def parts(item: Any) -> tuple[str, str, str]:
    name, equals, words = str(item).partition("=")
    return name.strip(), equals, words.strip()


def settle_shared(draft: Draft, *, unet_only: bool = False) -> None:
    """Adapter, optimizer and what sd-scripts does unasked. unet_only: no text encoder trains there."""
    settle_adapter(draft)
    settle_optimizer(draft)
    if unet_only:
        draft.add("train.network_train_unet_only", True, "the text encoder does not train there")
    settle_text_encoder(draft)


def settle_text_encoder(draft: Draft) -> None:
    """Whether the text encoder trains: there unless it is told not to, or texts are cached."""
    rate, usual = draft.take("text_encoder_lr"), draft.train.get("learning_rate")
    told = [name for name in LEAVES_TEXT_ENCODER if draft.train.get(name)]
    if told and rate:
        rates = rate.value if isinstance(rate.value, list) else [rate.value]
        why = f"{told[0]} is set: the text encoder does not train"
        draft.find(LOST if any(rates) else UNSET, rate.leaf, why=why)
    elif rate:
        draft.put(rate.leaf, "train.text_encoder_lr", rate.value)
    elif usual and not told:
        why = "there the text encoder trains as well, unless network_train_unet_only is set"
        draft.add("train.text_encoder_lr", usual, why)


def hub_visibility(draft: Draft, private: Waiting | None, *, is_on: bool) -> None:
    """Whether a repository that is made for uploads is private."""
    if private and is_on:
        value = "private" if private.value else "public"
        draft.put(private.leaf, "train.huggingface_repo_visibility", value)
    elif private:
        draft.find(UNSET, private.leaf, why="nothing is uploaded")


def swap_share(draft: Draft, waiting: Waiting, share: float) -> None:
    """A share of the layers that wait in RAM, as a number of the published model's blocks."""
    blocks = round(PUBLISHED.num_blocks * min(max(share, 0), 1))
    if blocks:
        draft.put(
            waiting.leaf, {"train.blocks_to_swap": blocks}, why=f"of {PUBLISHED.num_blocks} blocks"
        )
    else:
        draft.find(UNSET, waiting.leaf)


def kind_of(draft: Draft) -> str:
    """The adapter that is asked for, in small letters."""
    module = str(draft.value("network_module", ""))
    words = [str(draft.value(name)).lower() for name in ("algo", *KINDS) if draft.has(name)
             and draft.value(name) not in (True, False, 0, 1)]  # fmt: skip
    words += [name.removeprefix("use_") for name in KINDS if draft.value(name) in (True, "true", 1)]
    known = MODULES.get(module, module)
    asked = next((word for word in words if word not in ("lora", "locon", "lycoris")), None)
    return asked or known or "lora"


def module_of(kind: str) -> str | None:
    """The --network_module that trains a kind of adapter; None where there is none."""
    known = {name.lower(): module for name, module in ANIMA.modules.items()}
    return known.get(ALGORITHMS.get(kind, kind).lower())


def settle_adapter(draft: Draft) -> None:
    """The module, and the arguments that differ where they are not given."""
    kind = kind_of(draft)
    module = module_of("lora" if kind == "tlora" else kind)
    asking = [w for name in ("network_module", "algo", *KINDS) if (w := draft.take(name))]
    if module is None:
        known = " and ".join(ANIMA.modules)
        message = f"{kind} does not exist here, only {known}. Write one of these there, and import it again."
        draft.problems.append(Problem(message, asking[0].leaf.shown))
        return
    for waiting in asking:
        draft.put(waiting.leaf, "train.network_module", module)
    draft.add("train.network_module", module, "what is trained there")
    untrained(draft)
    if kind == "boft":
        draft.add("network.boft", True, "the kind that is trained there")
    if kind == "tlora":
        draft.add("network.tlora", True, "the kind that is trained there")
    if module == module_of("lokr"):
        draft.add("network.lokr_factor", -1, "the default there")
    for name in list(draft.table("network")):
        if name.startswith("lokr_") and module != module_of("lokr"):
            draft.revoke("network", name, "it belongs to LoKr, and another adapter is trained")
        if name in OF_OFT and module != module_of("diag-oft"):
            draft.revoke("network", name, "it belongs to OFT, and another adapter is trained")
        if name.startswith("tlora_") and not draft.table("network").get("tlora"):
            draft.revoke("network", name, "it belongs to T-LoRA, and another adapter is trained")


def untrained(draft: Draft) -> None:
    """Norms and the LLM adapter train here unless they are told not to."""
    draft.add("network.train_llm_adapter", False, "the default there")
    if "train_norm" not in draft.train:
        draft.add("network.train_norm", False, "the default there")


OPTIMIZER_WORDS = {
    "adamw_optimi": ("AdamW", "without Kahan summation"),
    "adamw8bitkahan": ("AdamW8bit", "without Kahan summation"),
    "adamw_8bit": ("AdamW8bit", ""),
    "adamw_adv": ("AdamW", "without what the other adds"),
    "schedule_free_adamw": ("AdamWScheduleFree", ""),
    "schedule_free_sgd": ("SGDScheduleFree", ""),
    "lion_8bit": ("Lion8bit", ""),
    "adagrad": ("torch.optim.Adagrad", ""),
    "adam": ("torch.optim.Adam", ""),
    "sgd": ("torch.optim.SGD", ""),
}
"""Other programs' names of optimizers, in small letters -> the name here, and what is lost."""


def optimizer_name(written: str) -> tuple[str, str]:
    """The optimizer by its name here, and what of the other one is lost."""
    folded = {name.lower(): name for name in OPTIMIZERS} | ALIASES
    low = written.strip().lower()
    if low in folded or "." in written:
        return folded.get(low, written), ""
    return OPTIMIZER_WORDS.get(low) or (CLASSES.get(low, written), "")


def settle_optimizer(draft: Draft) -> None:
    """The optimizer by its name here; a class of a program of its own only where it can be imported."""
    waiting = draft.take("optimizer_type")
    if waiting is None:
        return
    name, missing = optimizer_name(str(waiting.value))
    draft.put(waiting.leaf, "train.optimizer_type", name, missing)
    package = name.partition(".")[0] if "." in name else ""
    if package and not is_installed(package):
        draft.notes.append(f"optimizer_type = {name}: its package is not installed here.")
