"""Applies a table of rules to a document: each key into its place, and a word on each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.errors import ConfigError, Problem
from library.utils import nearest_name
from tools.importers.draft import LOST, SECRET, UNKNOWN, UNSET, Draft, Leaf, Waiting
from tools.importers.rules import NoCounterpart, Rule, asks, empty, is_one_of

DEEPEST, MOST_KEYS, MOST_SUGGESTIONS = 12, 20_000, 500
SECRET_NAMES = re.compile(
    r"(^|_)(api_?keys?|passw(or)?d|secrets?|credentials?|access_key)(_|$)"
    r"|(^|_)(hf|hub|huggingface|access|auth|wandb|api|civitai|github)_?token$|^token$",
    re.IGNORECASE,
)

Document = dict[str, Any]
Prepare = Callable[[Document, "Nearby"], Document]


@dataclass(frozen=True)
class Source:
    """A program whose files are read.

    rules:   key -> what becomes of it; a key that holds a table is that table as a whole
    settle:  writes what depends on several keys, and what the program does unasked
    prepare: resolves layers: other files that the file names, defaults that it counts on
    other:   the rule for a key that the table does not have; None where it is unknown
    flat:    sections mean nothing: rules are looked up by the key alone
    paths:   how a path is made to hold from anywhere: (path, folders) -> path
    """

    name: str
    rules: Mapping[str, Rule]
    settle: Callable[[Draft], None]
    prepare: Prepare | None = None
    other: Callable[[Leaf], Rule | None] | None = None
    flat: bool = False
    paths: Callable[[str, Sequence[Path]], str] | None = None

    def whole(self, name: str) -> bool:
        """Whether a table of that name is one value, by a rule of its own."""
        return name in self.rules or (self.flat and name.rpartition(".")[2] in self.rules)


@dataclass(frozen=True)
class Nearby:
    """What stands beside the document.

    folders: where the files that it names are looked for
    read:    reads one of them; raises UserError
    dataset: the file of its pictures, where the user named it
    """

    folders: Sequence[Path]
    read: Callable[[Path], Any]
    dataset: Path | None = None

    def find(self, name: Any) -> Path | None:
        """The file of that name, in the first folder that has it."""
        if not isinstance(name, str) or not name.strip():
            return None
        name = name.replace("\\", "/")
        candidates = [folder / Path(name).expanduser() for folder in self.folders]
        return next((path for path in candidates if path.is_file()), None)

    def pictures(self, key: str, name: Any) -> Any:
        """The content of the file with the pictures. Raises ConfigError where it is not found."""
        path = self.dataset or self.find(name)
        if path is None:
            looked = ", ".join(dict.fromkeys(str(folder) for folder in self.folders))
            message = (
                f"the file with the pictures is not found in {looked}. Name it: --dataset_file FILE"
            )
            raise ConfigError(Problem(message, f"{key} = {name!r:.80}"))
        return self.read(path)


def convert(
    source: Source, document: Document, nearby: Nearby, *, keep_secrets: bool = False
) -> Draft:
    """The document by the source's rules. Problems are in the draft; ConfigError where it cannot begin."""
    draft = Draft(nearby.folders)
    if not isinstance(document, dict):
        raise ConfigError("holds no options: expected names with values.")
    document = source.prepare(document, nearby) if source.prepare else document
    for leaf in leaves(document, source.whole):
        if len(draft.findings) > MOST_KEYS:
            raise ConfigError(f"holds over {MOST_KEYS} keys: no configuration does.")
        take(draft, source, leaf, keep_secrets)
    source.settle(draft)
    assert not draft.waiting, f"{source.name}: not settled: {list(draft.waiting)}"
    return draft


def leaves(
    document: Mapping[Any, Any],
    whole: Callable[[str], bool],
    prefix: tuple[str, str] = ("", ""),
    places: tuple[int, ...] = (),
) -> Iterator[Leaf]:
    """Every key that is no table, nor a list of tables, or that has a rule as a whole."""
    if prefix[0].count(".") > DEEPEST:
        raise ConfigError(f"is nested deeper than {DEEPEST} tables: no configuration is.")
    for key, value in document.items():
        name, shown = (f"{each}{key}" for each in prefix)
        if isinstance(value, dict) and value and not whole(name):
            yield from leaves(value, whole, (f"{name}.", f"{shown}."), places)
        elif isinstance(value, list) and value and _are_tables(value) and not whole(name):
            for number, each in enumerate(value):
                inner = f"{name}[].", f"{shown}[{number}]."
                yield from leaves(each, whole, inner, (*places, number))
        else:
            yield Leaf(name, shown, value, places)


def _are_tables(value: list[Any]) -> bool:
    return all(isinstance(each, dict) for each in value)


def rule_of(source: Source, leaf: Leaf) -> Rule | None:
    name = leaf.name.rpartition(".")[2] if source.flat else leaf.name
    rule = source.rules.get(leaf.name) or source.rules.get(name)
    if rule is None and source.other:
        rule = source.other(leaf)
    return rule


def take(draft: Draft, source: Source, leaf: Leaf, keep_secrets: bool) -> None:
    """One key into its place."""
    rule = rule_of(source, leaf)
    is_secret = SECRET_NAMES.search(leaf.name.rpartition(".")[2]) or (rule and rule.secret)
    if empty(leaf.value) and not (rule and rule.blank):
        draft.find(UNSET, leaf)
    elif is_secret and not (keep_secrets and rule and rule.target):
        draft.find(SECRET, leaf)
    elif rule is None:
        many = len(draft.findings) > MOST_SUGGESTIONS  # looking for the nearest takes its time
        draft.find(UNKNOWN, leaf, why="" if many else suggestion(source, leaf))
    elif rule.idle:
        draft.find(UNSET, leaf, why=rule.why)
    elif not rule.target:
        draft.find(LOST if asks(leaf.value, rule.asks_not) else UNSET, leaf, why=rule.why)
    elif is_one_of(leaf.value, rule.asks_not):
        draft.find(UNSET, leaf)
    else:
        place(draft, source, leaf, rule)


def place(draft: Draft, source: Source, leaf: Leaf, rule: Rule) -> None:
    """The value as the rule reads it, into the rule's place."""
    try:
        value = rule.read(leaf.value)
    except NoCounterpart as error:
        draft.lose(leaf, str(error))
        return
    except (ValueError, TypeError, OverflowError) as error:
        message = str(error) if isinstance(error, ValueError) else "expected another kind of value"
        draft.problems.append(
            Problem(f"{message.rstrip('.')}, got {leaf.value!r:.60}.", leaf.shown)
        )
        return
    if value is None:  # an option's way to be off
        draft.find(UNSET, leaf)
        return
    if rule.is_path and isinstance(value, str):
        value = (source.paths or found_path)(value, draft.folders)
    name, _, key = rule.target.partition(".")
    if name == "special":
        draft.waiting.setdefault(key, []).append(Waiting(leaf, value))
    else:
        draft.put(leaf, rule.target, value, rule.why)


def suggestion(source: Source, leaf: Leaf) -> str:
    """The nearest key of the same table, as a question."""
    section, _, key = leaf.name.rpartition(".")
    known = [name.rpartition(".") for name in source.rules]
    near = nearest_name(key, [name for place, _, name in known if place == section or source.flat])
    if not near:
        return ""
    return f"did you mean {section}.{near}?" if section else f"did you mean {near}?"


def found_path(path: str, folders: Sequence[Path]) -> str:
    """The path with /, absolute where something is there; else it counts from where the run starts."""
    path = path.strip()
    if re.match(r"[A-Za-z]:[\\/]|\\\\", path) or ("\\" in path and "/" not in path):
        path = path.replace("\\", "/")
    if path.startswith(("~", "$", "%")) or re.match(r"[A-Za-z]:/|//", path):
        return path
    for folder in folders:
        if "\0" not in path and (folder / path).exists():
            return (folder / path).resolve().as_posix()
    return path
