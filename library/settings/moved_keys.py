"""Keys of other programs that decide the adapter or the optimizer, and the lines to write instead.

Elsewhere they stand at the top of the file; here they are items of network_args and optimizer_args.
Left out, they would silently train something else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from library.settings.config_text import assignment, value_text
from library.settings.foreign_names import (
    KINDS,
    LYCORIS_ONLY,
    NETWORK_ARGS,
    OF_OFT,
    ONLY_OF,
    OPTIMIZER_ARGS,
)

LYCORIS = "lycoris.kohya"
ALGORITHMS = {
    "lora": "LoRA", "locon": "LoRA", "lokr": "LoKr", "loha": "LoHa", "diag-oft": "OFT", "boft": "OFT",
}  # fmt: skip
"""LyCORIS's names of what it trains -> the kind of adapter here."""
LYCORIS_DEFAULTS = {"train_norm": "false", "train_llm_adapter": "false"}
LYCORIS_LOKR_DEFAULTS = {"lokr_factor": "-1", **LYCORIS_DEFAULTS}


class Key(NamedTuple):
    """A key without a flag: its name, its value, and its line."""

    name: str
    value: Any
    where: str


def is_moved(name: str) -> bool:
    """Whether a key of this name decides the adapter or the optimizer elsewhere."""
    return name in NETWORK_ARGS or name in OPTIMIZER_ARGS or name in (*KINDS, *LYCORIS_ONLY)


def adapter_lines(
    keys: Sequence[Key], given: Mapping[str, Any], modules: Mapping[str, str]
) -> tuple[list[Key], str]:
    """The keys that ask for an adapter, and what to write instead of all of them.

    given:   the values of network_module and network_args, where they are set
    modules: kind of adapter -> the --network_module that trains it
    """
    asking = [k for k in keys if k.name not in OPTIMIZER_ARGS and _asks(k)]
    kind = _kind(asking, given.get("network_module"), modules)
    if kind == "lora" and given.get("network_module") != LYCORIS:
        asking = [k for k in asking if not NETWORK_ARGS.get(k.name, "").startswith("lokr_")]
        asking = [k for k in asking if k.name not in ("lora_type", "network_type")]
    if not asking:
        return [], ""
    if kind and kind not in ALGORITHMS:
        known = " and ".join(f"{name} ({module})" for name, module in modules.items())
        return asking, f"{kind} does not exist here, only {known}."
    args = dict(item.partition("=")[::2] for item in given.get("network_args") or ())
    args |= {NETWORK_ARGS[k.name]: _text(k.value) for k in asking if k.name in NETWORK_ARGS}
    is_lycoris = given.get("network_module") == LYCORIS or {"algo", "lycoris_algo"} & {
        k.name for k in asking
    }
    lost = [k.name for k in asking if k.name in LYCORIS_ONLY]
    return asking, equivalent_lines(kind, args, lost, modules, is_lycoris=bool(is_lycoris))


def equivalent_lines(
    kind: str | None, args: Mapping[str, str], lost: Sequence[str], modules: Mapping[str, str],
    *, is_lycoris: bool,
) -> str:  # fmt: skip
    """The lines that train the same here. kind: one of ALGORITHMS, None where it stays.

    args: network_args, in LyCORIS's words or ours. lost: what has no counterpart
    """
    wanted = {NETWORK_ARGS.get(name, name): value for name, value in args.items() if name != "algo"}
    dropout = wanted.pop("dropout", None)
    known = (*NETWORK_ARGS.values(), "train_norm", "norm_export", "verbose")
    lost = [*lost, *(n for n in wanted if n in LYCORIS_ONLY or (is_lycoris and n not in known))]
    if is_lycoris:
        wanted = {**(LYCORIS_LOKR_DEFAULTS if kind == "lokr" else LYCORIS_DEFAULTS), **wanted}
    if kind and kind != "lokr":
        wanted = {n: value for n, value in wanted.items() if not n.startswith("lokr_")}
    if kind:
        is_oft = ALGORITHMS[kind] == "OFT"
        wanted = {n: value for n, value in wanted.items() if is_oft or n not in OF_OFT}
        wanted |= {"boft": "true"} if kind == "boft" else {}
    items = [f"{name}={value}" for name, value in wanted.items() if name not in lost]
    lines = [f'network_module = "{modules[ALGORITHMS[kind]]}"'] if kind else []
    lines += [f"network_args = {json.dumps(items, ensure_ascii=False)}"] if items else []
    lines += [f"network_dropout = {dropout}"] if dropout is not None else []
    message = f"Write {' and '.join(lines)}." if lines else "Remove it."
    return message + (f" Without counterpart: {', '.join(dict.fromkeys(lost))}." if lost else "")


def optimizer_line(
    keys: Sequence[Key], given: Mapping[str, Any]
) -> tuple[list[Key], list[Key], str]:
    """The keys for the chosen optimizer, those for another one, and what to write instead."""
    asking = [k for k in keys if k.name in OPTIMIZER_ARGS and k.value not in ("", None)]
    chosen = str(given.get("optimizer_type") or "AdamW").lower()
    idle = [k for k in asking for part, names in ONLY_OF.items()
            if k.name in names and part not in chosen]  # fmt: skip
    asking = [k for k in asking if k not in idle]
    items = list(given.get("optimizer_args") or ())
    taken = {item.partition("=")[0].strip() for item in items}
    items += [
        assignment(OPTIMIZER_ARGS[k.name], k.value)
        for k in asking
        if OPTIMIZER_ARGS[k.name] not in taken
    ]
    return asking, idle, f"Write optimizer_args = {json.dumps(items, ensure_ascii=False)}."


def _kind(
    keys: Sequence[Key], module: str | None, modules: Mapping[str, str]
) -> str | None:
    """lora, lokr or another kind that the keys ask for; None when none is asked for."""
    named = [str(k.value).lower() for k in keys if k.name in KINDS and isinstance(k.value, str)]
    named += [k.name.removeprefix("use_") for k in keys if k.name in KINDS and k.value is True]
    if named:
        return next((kind for kind in named if kind != "lora"), named[0])
    has_lokr_keys = any(NETWORK_ARGS.get(k.name, "").startswith("lokr_") for k in keys)
    if has_lokr_keys and module != modules["LoKr"]:
        return "lokr"
    return "lora" if module == LYCORIS else None


def _asks(key: Key) -> bool:
    """Whether a value asks for anything: false and 0 are the defaults, except the LLM adapter's."""
    if key.name == "train_llm_adapter":
        return True
    return key.value not in (None, False, "", 0, "0")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value_text(value)
