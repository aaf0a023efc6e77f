"""Whose configuration a file is: those of other trainers, told by what only they have.

They are not read: each gets one sentence that says what it is, and the command that imports it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

GUI_NAMES = {f"anima_{name}" for name in ("qwen3", "vae", "attn_mode", "discrete_flow_shift")}
ROOT_STYLE_SECTIONS = {"model", "training"}
CONVERTER = "tools/convert_anima_root_to_kohya.py"
IMPORTER = "tools/import_config.py"


class Foreign(NamedTuple):
    """A kind of file: whose it is, and how its content is recognised.

    advice: what to do where it cannot be imported by itself
    """

    program: str
    is_it: Callable[[Any], bool]
    advice: str = ""


def foreign_message(document: Any, text: str, path: Path) -> str | None:
    """What a file of another program is and what to do; None when it is not known to be one.

    document: the value of the TOML or JSON; None when the text is neither
    """
    if document is None:
        document = yaml_keys(text)
    elif ROOT_STYLE_SECTIONS <= {key for key in keys(document) if table(document, key)}:
        return (
            "is a root-style configuration (it has [model] and [training]), not train_args.toml. "
            f"Convert it: {command(CONVERTER, '--input', path)}"
        )
    for kind in FOREIGN:
        if kind.is_it(document):
            cure = kind.advice or f"Import it: {import_command(path)}"
            return f"is a file of {kind.program}, which is not read here. {cure}"
    if document is None and re.search(r"accelerate(\.exe)?\s+launch|train_network\.py", text):
        return (
            f"is a start script, not a configuration. Import it: {import_command(path)}, or run it "
            "with anima_train_network.py as the program."
        )
    return None


def import_command(path: Path) -> str:
    """The command that makes a configuration of ours of another program's file."""
    return command(IMPORTER, path)


def command(tool: str, *words: str | Path) -> str:
    """The command that runs a tool, from the current folder."""
    root = Path(__file__).resolve().parents[2]
    program = tool if Path.cwd() == root else str(root / tool)
    quoted = [f'"{word}"' if " " in str(word) else str(word) for word in (program, *words)]
    return f"python {' '.join(quoted)}"


def yaml_keys(text: str) -> dict[str, Any] | None:
    """The keys of a YAML text at the margin, and "process" where it stands inside; None: no YAML."""
    keys = re.findall(r"^([A-Za-z_]\w*)\s*:(?:\s|$)", text, re.MULTILINE)
    if not keys:
        return None
    inner: dict[str, list] = (
        {"process": []} if re.search(r"^\s+process\s*:", text, re.MULTILINE) else {}
    )
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


def is_animalora(document: Any) -> bool:
    top = set(document) if isinstance(document, dict) else set()
    return {"transformer_path", "data_dir"} <= top and bool({"lora_type", "lora_rank"} & top)


def has_source_images(document: Any) -> bool:
    return "source_image_dir" in set(keys(document))


NAMED_BY = f"Import the file that names it: python {IMPORTER} FILE"
FOREIGN = (
    Foreign("LoRA_Easy_Training_Scripts", is_lets),
    Foreign("OneTrainer", is_onetrainer),
    Foreign("OneTrainer (its concepts)", is_onetrainer_concepts, NAMED_BY),
    Foreign("kohya_ss GUI", is_kohya_gui),
    Foreign("ai-toolkit", is_ai_toolkit),
    Foreign("AnimaLoraStudio", is_animalora),
    Foreign("anima_lora", has_source_images),
    Foreign("diffusion-pipe", is_diffusion_pipe),
    Foreign("diffusion-pipe (its dataset)", is_diffusion_pipe_dataset, NAMED_BY),
)
