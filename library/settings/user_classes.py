"""Classes and keyword arguments named by the user: dotted class paths and key=value lists.

Values are read with ast.literal_eval, never executed; what the class does not take is an error that
names what it does take.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from library.errors import ConfigError, Problem
from library.settings.foreign_names import PACKAGES
from library.utils import nearest_name


def parse_assignments(
    items: Sequence[str] | None, flag: str
) -> tuple[dict[str, Any], list[Problem]]:
    """The `key=value` items of `--flag` as keywords, values read as Python literals; and what is wrong."""
    found: dict[str, Any] = {}
    problems = []
    for item in items or ():
        key, separator, text = (part.strip() for part in item.partition("="))
        if len(parts := separate_assignments(item, commas=True)) > 1:
            problems.append(Problem(several_message(parts), item, f"--{flag}"))
        elif not separator or not key.isidentifier():
            problems.append(
                Problem("expected key=value, e.g. weight_decay=0.01.", item, f"--{flag}")
            )
        elif key in found:
            problems.append(Problem(f"{key} is given twice. Remove one.", item, f"--{flag}"))
        else:
            try:
                found[key] = ast.literal_eval(text)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                problems.append(Problem(_unreadable(key, text), item, f"--{flag}"))
    return found, problems


def separate_assignments(text: str, *, commas: bool = False) -> list[str]:
    """The `key=value` parts of a text that may hold several: "a=1 b=2" -> ["a=1", "b=2"].

    commas: they may part them too
    """
    gap = r"(?<![\s,=])[\s,]+" if commas else r"(?<![\s,=])\s+"
    return re.split(rf"{gap}(?=[A-Za-z_]\w*\s*=)", text.strip())


def several_message(parts: Sequence[str]) -> str:
    """What to do with one text that holds several arguments."""
    quoted = ", ".join(f'"{part}"' for part in parts)
    words = " ".join(f'"{part}"' if " " in part else part for part in parts)
    return (
        f"holds {len(parts)} arguments. Write each by itself: [{quoted}], or {words} on the "
        f"command line."
    )


def _unreadable(key: str, text: str) -> str:
    if text.lower() in ("true", "false", "none"):
        return f"{text} is not a Python value. Write {key}={text.capitalize()}."
    return (
        f"{text or 'the empty text'} is not a Python value: expected a number, True, False, None, "
        f"a tuple such as 0.9,0.99, or text in quotes: {key}='{text}'."
    )


def is_installed(package: str) -> bool:
    """Whether a top-level package can be found; it is not imported."""
    return importlib.util.find_spec(package) is not None


def missing_package(path: str, requirement: str | None = None) -> str | None:
    """What to do where the package of a dotted class path is not installed; None where it is.

    requirement: what to give to `pip install`; from the table, or the package's name, when None
    """
    package = path.partition(".")[0]
    if is_installed(package):
        return None
    known = PACKAGES.get(package, package) if requirement is None else requirement
    if not known:
        return (
            f"the package {package} comes with another trainer and cannot be installed by itself."
        )
    return f"the package {package} is not installed. Run: pip install {known}"


def import_class(path: str, flag: str, requirement: str | None = None) -> type:
    """The class at a dotted path; a ConfigError says which part of the path is wrong.

    requirement: as in missing_package
    """
    module_name, _, name = path.rpartition(".")
    if message := missing_package(path, requirement):
        raise ConfigError(f"--{flag} {path}: {message}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"--{flag} {path}: {module_name} cannot be imported ({error})."
        ) from error
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        near = nearest_name(name, [each for each in dir(module) if not each.startswith("_")])
        hint = f" Did you mean {module_name}.{near}?" if near else ""
        raise ConfigError(f"--{flag} {path}: {module_name} has no class {name}.{hint}")
    return found


def check_keywords(
    function: Any, given: Mapping[str, Any], flag: str, own: Mapping[str, str]
) -> list[Problem]:
    """A problem for each given keyword that `function` does not take.

    own: keywords that may not be given, and where their value comes from instead
    """
    parameters = inspect.signature(function).parameters
    takes = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in own
    ]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    problems = []
    for name in given:
        if name in own:
            message = f"is set by {own[name]}. Remove it here."
        elif name in takes or takes_any:
            continue
        else:
            near = nearest_name(name, takes)
            hint = f"Did you mean {near}?" if near else f"It takes {', '.join(takes) or 'nothing'}."
            message = f"{function.__name__} takes no such argument. {hint}"
        problems.append(Problem(message, name, f"--{flag}"))
    return problems
