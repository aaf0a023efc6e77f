"""sd-scripts and its forks: options of train_args.toml or a command line, and the dataset file.

What official sd-scripts takes without effect on this model is left out, since it would act here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from library.data.dataset_file import repeated_folders
from library.errors import ConfigError
from library.settings.foreign_names import KINDS
from tools.importers.draft import CONVERTED, KEPT, LOST, UNSET, Draft, Leaf
from tools.importers.machine import Document, Nearby, Source
from tools.importers.rules import Rule, loosely, lost, many, number, path_to
from tools.importers.shared import (
    BY_NAME,
    COMPONENT_RATES,
    OFFICIAL_IGNORES,
    THERE_IDLE,
    dataset_rule,
    settle_shared,
    shared_rule,
    spread_arguments,
)
from tools.importers.whole_model import settle_whole

DATASET = "dataset_config."
ELSEWHERE = Rule("train.dataset_config", is_path=True, why="the file is not found from here")
OF_SCRIPTS = {
    "launcher": lost("it belongs to accelerate launch: give it there"),
    "unresolved": lost("it needs a value that the file does not hold"),
    "repeated": lost("it is given again, and the last counts"),
    "conditional": lost("a condition or a loop assigns it, which is not followed"),
}
RULES = {
    **many(OFFICIAL_IGNORES, lambda name: THERE_IDLE),
    **many(COMPONENT_RATES, lambda name: Rule(f"special.{name}", loosely(number))),
    "train_data_dir": path_to("special.train_data_dir"),
    "reg_data_dir": path_to("special.reg_data_dir"),
    "config_file": lost("the file is not found from here"),
    "program": Rule("special.program"),
}
ADAPTER_OPTIONS = "network_dim network_alpha network_dropout network_weights dim_from_weights network_train_unet_only"


def prepare(document: Document, nearby: Nearby) -> Document:
    """The options of the file that a command line names beneath those that are typed, and the dataset."""
    document = one_value_each(document)
    found = nearby.find(document.get("config_file")) or nearby.find(
        f"{document.get('config_file')}.toml"
    )
    if found:
        beneath = spread_arguments(flat(nearby.read(found)))
        document = {**beneath, **{k: v for k, v in document.items() if k != "config_file"}}
    document = spread_arguments(document)
    return with_dataset(document, nearby)


def flat(document: Any) -> Document:
    """The keys of all sections on one level, as sd-scripts reads them."""
    if not isinstance(document, dict):
        raise ConfigError("holds no options: expected name = value.")
    level: Document = {}
    for key, value in document.items():
        level |= (
            value
            if isinstance(value, dict) and key not in ("network_args", "optimizer_args")
            else {key: value}
        )
    return level


def with_dataset(document: Document, nearby: Nearby) -> Document:
    """The document with the dataset file's content in the place of its name, where it is found."""
    for key, value in document.items():
        if isinstance(value, dict):
            document = {**document, key: with_dataset(value, nearby)}
        elif key == "dataset_config" and (path := nearby.dataset or nearby.find(value)):
            document = {**document, key: with_plain_attributes(nearby.read(path))}
    return document


def with_plain_attributes(table: Any) -> Any:
    """The dataset's tables with what custom_attributes holds under the names that it has here.

    Where pictures were before a program made them smaller is where they are read from.
    """
    if isinstance(table, list):
        return [with_plain_attributes(each) for each in table]
    if not isinstance(table, dict):
        return table
    found = {k: with_plain_attributes(v) for k, v in table.items() if k != "custom_attributes"}
    more = table.get("custom_attributes")
    more = dict(more) if isinstance(more, dict) else {}
    sampling = more.pop("timestep_sampling", None)
    if isinstance(sampling, dict) and "offset" in sampling:
        found["timestep_offset"] = sampling["offset"]
    if isinstance(source := more.pop("source_dir", None), str):
        found["image_dir"] = source
    return found | more


def other(leaf: Leaf) -> Rule | None:
    """The rule of any option, and of any key of the dataset file in its place there."""
    if rule := OF_SCRIPTS.get(leaf.name.partition(".")[0]):
        return rule
    if leaf.name.rpartition(".")[2] == "dataset_config":
        return ELSEWHERE
    if DATASET not in leaf.name:
        return shared_rule(leaf)
    section, _, key = leaf.name.partition(DATASET)[2].rpartition(".")
    table = {"general": "general", "datasets[]": "datasets", "datasets[].subsets[]": "subsets"}.get(
        section
    )
    return dataset_rule(key, table) if table else None


def settle(draft: Draft) -> None:
    """The folders of pictures, the adapter, and what sd-scripts does unasked."""
    settle_folders(draft)
    settle_trained(draft, whole=trains_model(draft))


def settle_trained(draft: Draft, *, whole: bool) -> None:
    """Adapters, or the model itself, whose parts alone have rates of their own there."""
    for name in COMPONENT_RATES.split():
        waiting = draft.take(name)
        if waiting and whole:
            draft.put(waiting.leaf, f"train.{name}", waiting.value)
        elif waiting:
            draft.find(LOST if waiting.value else UNSET, waiting.leaf, why=THERE_IDLE.why)
    if whole:
        settle_whole(draft, llm_adapter=True)
    else:
        settle_shared(draft)


def trains_model(draft: Draft, *, told: bool = False) -> bool:
    """Whether the model itself is trained: where it is told, or the file has no word of an adapter."""
    if program := draft.take("program"):
        draft.find(KEPT, program.leaf)
        told = True
    words = ("network_module", "algo", *KINDS)
    if told or any(map(draft.has, words)) or draft.table("network"):
        return told
    if any(name in draft.train for name in ADAPTER_OPTIONS.split()):
        return False
    draft.notes.append(
        "the file names no adapter, so the model itself is trained; for a LoRA write "
        "network_module into it, and import it again."
    )
    return True


def settle_folders(draft: Draft) -> None:
    """The `<repeats>_<class>` folders in those that options name; the options where none is found."""
    named = {
        name: waiting
        for name in ("train_data_dir", "reg_data_dir")
        if (waiting := draft.take(name))
    }
    if draft.subsets:
        for waiting in named.values():
            draft.lose(waiting.leaf, "the dataset file names the folders")
        return
    listed = {name: folders_in(draft, f"--{name}", w.value) for name, w in named.items()}
    for name, waiting in named.items():
        if "in_json" in draft.train or not all(listed.values()):
            draft.put(waiting.leaf, f"train.{name}", waiting.value)
            continue
        for folder, repeats, class_name in listed[name]:
            subset = draft.table("subsets", (len(draft.subsets),))
            subset |= {"image_dir": folder.as_posix(), "num_repeats": repeats}
            subset |= {"class_tokens": class_name} if class_name else {}
            subset |= {"is_reg": True} if name == "reg_data_dir" else {}
        names = ", ".join(f"image_dir = {folder.name}" for folder, _, _ in listed[name])
        draft.find(CONVERTED, waiting.leaf, names, "its folders one by one")


def folders_in(draft: Draft, option: str, parent: str) -> list[tuple[Path, int, str]]:
    """(folder, repeats, class) of the folders that sd-scripts would read; none where it is not here."""
    notes: list[str] = []
    try:
        found = repeated_folders(option, Path(parent), notes)
    except (ConfigError, ValueError):  # a zero byte in the name
        return []
    draft.notes += notes
    return found


def knows(document: Any) -> bool:
    """Whether a document has options of sd-scripts: at least three, on any level."""
    keys = [key for key in flat(document)] if isinstance(document, dict) else []
    return sum(shared_rule(Leaf(str(key), str(key), None)) is not None for key in keys) >= 3


def one_value_each(document: Document) -> Document:
    """Options of a command line: of one that takes a single value and is given again the last counts."""
    repeated = {
        key: value
        for key, value in document.items()
        if key in BY_NAME and not BY_NAME[key].many and isinstance(value, list)
        if len(value) > 1 and all(isinstance(each, str) for each in value)
    }
    last = {key: value[-1] for key, value in repeated.items()}
    earlier = {key: value[:-1] for key, value in repeated.items()}
    return document | last | ({"repeated": earlier} if earlier else {})


SOURCE = Source("sd-scripts", RULES, settle, prepare, other, flat=True)
