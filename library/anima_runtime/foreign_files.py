"""Whose configuration a file is: those of other trainers, told by what only they have.

They are not read: each gets one sentence that says what it is and what to write by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

DOCUMENT = 'docs/anima_train_network.md, "Coming from another trainer", has the table of names.'


GUI_NAMES = {f"anima_{name}" for name in ("qwen3", "vae", "attn_mode", "discrete_flow_shift")}
ROOT_STYLE_SECTIONS = {"model", "training"}
CONVERTER = "tools/convert_anima_root_to_kohya.py"


class Foreign(NamedTuple):
    """A kind of file: whose it is, how its content is recognised, what to write instead."""

    program: str
    is_it: Callable[[Any], bool]
    advice: str


def foreign_message(document: Any, text: str, path: Path) -> str | None:
    """What a file of another program is and what to do; None when it is not known to be one.

    document: the value of the TOML or JSON; None when the text is neither
    """
    if document is None:
        document = yaml_keys(text)
    elif ROOT_STYLE_SECTIONS <= {key for key in keys(document) if table(document, key)}:
        return root_style_message(path)
    for kind in FOREIGN:
        if kind.is_it(document):
            return f"is a file of {kind.program}, which is not read here. {kind.advice} {DOCUMENT}"
    if document is None and re.search(r"accelerate(\.exe)?\s+launch", text):
        return (
            "is a start script, not a configuration. Run it with anima_train_network.py as the "
            "program, or write each --name value as name = value."
        )
    return None


def root_style_message(path: Path) -> str:
    """A configuration of the earlier trainer is recognised and pointed to its converter."""
    root = Path(__file__).resolve().parents[2]
    tool = Path(CONVERTER) if Path.cwd() == root else root / CONVERTER
    words = [f'"{word}"' if " " in word else word for word in (str(tool), str(path))]
    return (
        "is a root-style configuration (it has [model] and [training]), not train_args.toml. "
        f"Convert it: python {words[0]} --input {words[1]}"
    )


def yaml_keys(text: str) -> dict[str, Any] | None:
    """The keys of a YAML text at the margin, and "process" where it stands inside; None: no YAML."""
    keys = re.findall(r"^([A-Za-z_]\w*)\s*:(?:\s|$)", text, re.MULTILINE)
    if not keys:
        return None
    inner: dict[str, list] = {"process": []} if re.search(r"^\s+process\s*:", text, re.MULTILINE) else {}
    return {key: inner for key in keys}


def table(document: Any, name: str) -> dict[str, Any]:
    """The table of that name; {} when there is none."""
    inner = document.get(name) if isinstance(document, dict) else None
    return inner if isinstance(inner, dict) else {}


def tables(document: Any, name: str) -> list[dict[str, Any]]:
    """The array of tables of that name."""
    inner = document.get(name) if isinstance(document, dict) else document if not name else None
    return [each for each in inner if isinstance(each, dict)] if isinstance(inner, list) else []


def keys(document: Any) -> Iterator[str]:
    """The keys at the top and those of its tables."""
    for key, value in document.items() if isinstance(document, dict) else ():
        yield key
        yield from value if isinstance(value, dict) else ()


def is_lets(document: Any) -> bool:
    return any(
        key.endswith("_args") and {"args", "dataset_args"} & set(table(document, key))
        for key in keys(document)
    )


def is_diffusion_pipe(document: Any) -> bool:
    return isinstance(table(document, "model").get("type"), str)


def is_diffusion_pipe_dataset(document: Any) -> bool:
    return any("path" in each for each in tables(document, "directory"))


def is_onetrainer(document: Any) -> bool:
    top = set(document) if isinstance(document, dict) else set()
    return "training_method" in top or {"model_type", "base_model_name"} <= top


def is_onetrainer_concepts(document: Any) -> bool:
    listed = tables(document, "") if isinstance(document, list) else tables(document, "concepts")
    return any("path" in each and {"image", "text"} & set(each) for each in listed)


def is_kohya_gui(document: Any) -> bool:
    top = set(document) if isinstance(document, dict) else set()
    return "LoRA_type" in top or bool(top & GUI_NAMES)


def is_ai_toolkit(document: Any) -> bool:
    return "process" in table(document, "config") or (
        isinstance(document, dict) and "job" in document
    )


def has_source_images(document: Any) -> bool:
    return "source_image_dir" in set(keys(document))


FOREIGN = (
    Foreign(
        "LoRA_Easy_Training_Scripts",
        is_lets,
        "Write the keys of every [..._args.args] as they are into train_args.toml, network_args and "
        'optimizer_args as lists of "key=value"; and [[subsets]] as [[datasets.subsets]], with the '
        "keys of [..._args.dataset_args] under [general], into a dataset file.",
    ),
    Foreign(
        "OneTrainer",
        is_onetrainer,
        "Write lora_rank as network_dim, lora_alpha as network_alpha, epochs as max_train_epochs, "
        "learning_rate as it is, the three model files as pretrained_model_name_or_path, vae and "
        "qwen3, and each concept as [[datasets.subsets]] of a dataset file.",
    ),
    Foreign(
        "OneTrainer (its concepts)",
        is_onetrainer_concepts,
        "Write each concept as [[datasets.subsets]] under one [[datasets]] with the resolution: path "
        "as image_dir, balancing as num_repeats.",
    ),
    Foreign(
        "kohya_ss GUI",
        is_kohya_gui,
        "Print its command in the GUI and write each --name value of it as name = value; by hand: "
        "anima_X is X, optimizer is optimizer_type, max_resolution is resolution, epoch is "
        "max_train_epochs, and LoRA_type Anima is network_module networks.lora_anima.",
    ),
    Foreign(
        "ai-toolkit",
        is_ai_toolkit,
        "Write network.linear as network_dim, linear_alpha as network_alpha, train.steps as "
        "max_train_steps, train.lr as learning_rate, train.optimizer as optimizer_type, "
        "training_folder/name as output_dir, and each entry of datasets as [[datasets.subsets]] of "
        "a dataset file, folder_path as image_dir.",
    ),
    Foreign(
        "anima_lora",
        has_source_images,
        "Write source_image_dir as image_dir and target_res as resolutions into a dataset file, and "
        'use_lokr as network_module = "networks.lokr_anima" with network_args = ["lokr_factor=N"]; '
        "options that sd-scripts has keep their names.",
    ),
    Foreign(
        "diffusion-pipe",
        is_diffusion_pipe,
        "Write transformer_path as pretrained_model_name_or_path, vae_path as vae, llm_path as qwen3, "
        "epochs as max_train_epochs, the rank of [adapter] as network_dim and network_alpha, and lr "
        "of [optimizer] as learning_rate; the pictures belong in a dataset file.",
    ),
    Foreign(
        "diffusion-pipe (its dataset)",
        is_diffusion_pipe_dataset,
        "Write resolutions under [[datasets]] and each [[directory]] as [[datasets.subsets]], path as "
        "image_dir; num_repeats, mask_path, min_ar and max_ar keep their names.",
    ),
)
