"""Which --network_module is taken, and what to write instead of another."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from library.anima_runtime.family import ANIMA, MODULES
from library.errors import Problem
from library.settings.flags.network import NetworkOptions
from library.settings.moved_keys import ALGORITHMS, equivalent_lines
from library.settings.user_classes import separate_assignments
from networks.arguments import unquoted

OTHER_MODULES = {module.removesuffix("_anima"): module for module in MODULES}


def with_module(network: NetworkOptions, problems: list[Problem]) -> NetworkOptions:
    """With the family's first kind of adapter unless one is named."""
    module = network.network_module or next(iter(MODULES))
    if module not in MODULES:
        problems.append(network_module_problem(module, network.network_args or ()))
    return dataclasses.replace(network, network_module=module)


def arguments_of(network_args: Collection[str]) -> dict[str, str]:
    """Those that stand together in one text, which is told elsewhere, are read as well."""
    items = (part for item in network_args for part in separate_assignments(item))
    pairs = (item.partition("=")[::2] for item in items)
    return {key.strip(): unquoted(value) for key, value in pairs}


def network_module_problem(module: str, network_args: Collection[str]) -> Problem:
    """Why a network module is not taken, and the lines to write instead."""
    where = f"network_module = {module}"
    if module == "lycoris.kohya":
        return Problem(lycoris_message(arguments_of(network_args)), where)
    near = OTHER_MODULES.get(module)
    advice = f" Write {near}." if near else ""
    known = " or ".join(f"{name} ({kind})" for name, kind in MODULES.items())
    return Problem(f"expected {known}.{advice}", where)


def lycoris_message(args: dict[str, str]) -> str:
    """The lines that train the same here, with LyCORIS's defaults; what has no counterpart."""
    algo = args.pop("algo", "lora").lower()
    if algo not in ALGORITHMS:
        known = " and ".join(f"{kind} ({name})" for name, kind in MODULES.items())
        return f"LyCORIS is not used here, and {algo} does not exist: only {known}."
    lines = equivalent_lines(algo, args, [], ANIMA.modules, is_lycoris=True)
    return f"LyCORIS is not used here: its layers are built in. {lines}"
