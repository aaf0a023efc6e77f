"""LoRA_Easy_Training_Scripts: sd-scripts' options in sections, and its dataset's keys beside them.

One fork writes diffusion-pipe's words into the same sections.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from tools.importers.draft import UNSET, Draft, Leaf, Waiting
from tools.importers.machine import Document, Nearby, Source
from tools.importers.rules import Rule, choice, loosely, lost, many, number, switch, text, whole
from tools.importers.shared import (
    COMPONENT_RATES,
    OFFICIAL_IGNORES,
    THERE_IDLE,
    dataset_rule,
    settle_shared,
    shared_rule,
    spread_arguments,
)

OWN_CLASSES = "LoraEasyCustomOptimizer"
TABLES = {"subsets[]": "subsets", "datasets[].subsets[]": "subsets", "datasets[]": "datasets"}
RULES = {
    **many(f"{OFFICIAL_IGNORES} {COMPONENT_RATES}", lambda name: THERE_IDLE),
    "name": lost("the name of a folder in that program's window"),
    "random_crop_padding_percent": lost("pictures are cropped without padding here"),
    "resolution_schedule": lost(
        "one resolution after another is not trained here: see resolutions"
    ),
    "warmup_ratio": Rule("special.warmup_ratio", loosely(number)),
    "lr_scheduler": Rule("special.lr_scheduler", text),
    "lr_scheduler_type": Rule("special.lr_scheduler_type", text),
    "lr_scheduler_num_cycles": Rule("special.cycles", loosely(number)),
    **many("log_prefix_mode run_name_mode", lambda name: Rule(f"special.{name}")),
    "type": Rule("special.algo", choice({n: n for n in ("lora", "lokr", "loha")})),
    "rank": Rule("special.rank", loosely(whole)),
    "enable_ar_bucket": Rule("general.enable_bucket", loosely(switch)),
    "num_ar_buckets": lost("buckets are made of min_bucket_reso, max_bucket_reso here"),
}


def prepare(document: Document, nearby: Nearby) -> Document:
    """The document with its lists of arguments as tables."""
    return spread_arguments(document)


def other(leaf: Leaf) -> Rule | None:
    """A key of a folder or of [X_args.dataset_args] is the dataset's; any other an option."""
    section, _, key = leaf.name.rpartition(".")
    if section in TABLES:
        return dataset_rule(key, TABLES[section])
    if section.endswith(".dataset_args"):
        return dataset_rule(key, "general")
    return shared_rule(leaf)


def settle(draft: Draft) -> None:
    """The schedule with its warm-up, the names of logs, and what sd-scripts does unasked."""
    own_classes(draft)
    settle_schedule(draft)
    settle_names(draft)
    if rank := draft.take("rank"):
        written = {"train.network_dim": rank.value, "train.network_alpha": rank.value}
        draft.put(rank.leaf, written, why="alpha is the rank there")
    settle_shared(draft)


def own_classes(draft: Draft) -> None:
    """Classes that come with that program count only where they can be imported."""
    if importlib.util.find_spec(OWN_CLASSES):
        return
    for name, table in (("optimizer_type", "optimizer"), ("lr_scheduler_type", "scheduler")):
        if str(draft.value(name, "")).startswith(f"{OWN_CLASSES}.") and (found := draft.take(name)):
            draft.lose(found.leaf, "it comes with that program and is not installed here")
            for key in list(draft.table(table)):
                draft.revoke(table, key, f"it belongs to {found.value}")


def settle_schedule(draft: Draft) -> None:
    """Cycles and warm-up: a class of the user's own is told steps, a schedule by name fractions."""
    kind, name = draft.take("lr_scheduler_type"), draft.take("lr_scheduler")
    ratio, cycles = draft.take("warmup_ratio"), draft.take("cycles")
    if kind is None:
        if name:
            settle_name(draft, name)
        for waiting, target in ((ratio, "lr_warmup_steps"), (cycles, "lr_scheduler_num_cycles")):
            if waiting:
                draft.put(waiting.leaf, f"train.{target}", waiting.value)
        return
    draft.put(kind.leaf, "train.lr_scheduler_type", kind.value)
    if name:
        draft.find(UNSET, name.leaf, why="lr_scheduler_type is the schedule")
    steps = draft.train.get("max_train_steps")
    for waiting, target, factor in (
        (ratio, "warmup_steps", ratio.value if ratio else 0),
        (cycles, "first_cycle_max_steps", 1 / max(cycles.value, 1) if cycles else 0),
    ):
        if waiting and steps:
            draft.put(waiting.leaf, f"scheduler.{target}", int(steps * factor))
        elif waiting:
            message = f"give the schedule {target} in steps: lr_scheduler_args, {target}=N"
            draft.lose(waiting.leaf, message)


def settle_name(draft: Draft, name: Waiting) -> None:
    """A schedule by its name; that program's own one is a class."""
    from_class = "(" in str(name.value)
    if from_class:
        draft.lose(name.leaf, "it is a class of that program's own")
    else:
        draft.put(name.leaf, "train.lr_scheduler", name.value)


def settle_names(draft: Draft) -> None:
    """Logs may be called as the file is."""
    title: Any = draft.train.get("output_name")
    for mode, target, value in (
        ("log_prefix_mode", "log_prefix", f"{title}_"),
        ("run_name_mode", "wandb_run_name", title),
    ):
        waiting = draft.take(mode)
        if waiting and waiting.value == "output_name" and title:
            draft.put(waiting.leaf, f"train.{target}", value)
        elif waiting:
            draft.find(UNSET, waiting.leaf, why="names of logs are given by log_prefix")


SOURCE = Source("LoRA_Easy_Training_Scripts", RULES, settle, prepare, other, flat=True)
