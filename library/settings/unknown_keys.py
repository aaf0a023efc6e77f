"""What to say of a name that is no flag: what it is called here, where it belongs, or nothing.

Nearest meaning comes before nearest letters, and a program's own key gets no suggestion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from library.settings.config_text import assignment
from library.settings.dataset_keys import KEYS as DATASET_KEYS
from library.settings.foreign_names import DATASET_KEYS as FOREIGN_KEYS
from library.settings.foreign_names import FLAGS, LYCORIS_ONLY, NETWORK_ARGS, OPTIMIZER_ARGS, OWN
from library.utils import nearest_name


def explain_key(key: str, value: Any, flags: Iterable[str]) -> tuple[str, str | None]:
    """What is wrong with a key of train_args.toml, "" for nothing; and the flag it stands for."""
    if key in DATASET_KEYS or key in ("datasets", "subsets"):
        return f"belongs in the dataset file{_flag_instead(key)}.", None
    if key in FLAGS:
        return f"is called {FLAGS[key]} here.", FLAGS[key]
    if key in FOREIGN_KEYS:
        return f"belongs in the dataset file, as {FOREIGN_KEYS[key]}.", None
    near = None if key in OWN or isinstance(value, dict) else nearest_name(key, flags)
    return (f"no such option. Did you mean {near}?", near) if near else ("", None)


def _flag_instead(key: str) -> str:
    flag = DATASET_KEYS[key].flag if key in DATASET_KEYS else None
    return f"; the flag of that meaning is {flag}" if flag else ""


def explain_typed(name: str, words: list[str], names: list[str]) -> tuple[str, str | None]:
    """The same for an option of the command line, --name. names: those that exist."""
    plain = name.lstrip("-")
    longer = next((each for each in names if each.startswith(f"{name}_")), None)
    if plain in FLAGS:
        return f"no such option. It is called --{FLAGS[plain]} here.", f"--{FLAGS[plain]}"
    for flag, table in (("network_args", NETWORK_ARGS), ("optimizer_args", OPTIMIZER_ARGS)):
        if plain in table:
            value = words[0] if len(words) == 1 else words
            return f"no such option. Write --{flag} {assignment(table[plain], value)}.", None
    if plain in LYCORIS_ONLY or plain in OWN:
        return "no such option, and nothing here is like it.", None
    if plain in DATASET_KEYS or plain in FOREIGN_KEYS:
        belongs = FOREIGN_KEYS.get(plain, plain)
        return f"no such option. It belongs in the dataset file, as {belongs}.", None
    near = longer or nearest_name(name, names)
    return f"no such option.{f' Did you mean {near}?' if near else ''}", near


def explain_dataset_key(key: str, flags: Iterable[str]) -> str:
    """What is wrong with a key of the dataset file that it does not know."""
    if key in FOREIGN_KEYS:
        return f"is called {FOREIGN_KEYS[key]} here."
    if key in flags or key in FLAGS:
        name = f", as {FLAGS[key]}" if key in FLAGS and key not in flags else ""
        return f"belongs in train_args.toml{name}, or on the command line."
    near = None if key in OWN else nearest_name(key, DATASET_KEYS)
    return f"no such option.{f' Did you mean {near}?' if near else ''}"


def ignored_note(keys: Mapping[str, None] | list[str], source: str) -> str:
    """One line for the keys of a file that belong to other programs."""
    *first, last = keys
    if not first:
        return f"{source}: {last} is not an option of this trainer and was ignored."
    names = f"{', '.join(first)} and {last}"
    return f"{source}: {names} are not options of this trainer and were ignored."
