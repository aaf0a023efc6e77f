"""An adapter file with other strengths, without some of its modules, with other metadata."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from tqdm import tqdm

from library.anima_workshop.choosing import Choice, strength_of
from library.anima_workshop.metadata import PARTS
from library.anima_workshop.tables import lines, name_of
from library.errors import AdapterFileError, Problem, as_utf8
from library.saving.metadata_table import adapted_parts
from networks.kinds.stored import ALPHA, Factors
from networks.workshop.adapter_file import AdapterFile
from networks.workshop.copying import put_left, put_module
from networks.workshop.scaling import scaled
from networks.workshop.spool import Spool
from networks.workshop.writing import derived

TOOL = "edit_lora"
SHOWN = 60
SOMEBODYS_FOLDER = re.compile(r"[A-Za-z]:\\|/(?:home|Users|root|mnt|media|content|workspace)/")


@dataclass(frozen=True)
class Edit:
    """What is asked for.

    strengths:    of the modules that are named; those of several names multiply
    drops:        modules that are left out, as are those of strength 0
    drop_unknown: keys that belong to no known module too
    entries:      metadata that is set
    removed:      names of metadata, or globs of such, that are taken out
    dtype:        None is that of the file
    """

    output: Path
    strengths: Mapping[Choice, float] = field(default_factory=dict)
    drops: Sequence[Choice] = ()
    drop_unknown: bool = False
    entries: Mapping[str, str] = field(default_factory=dict)
    removed: Sequence[str] = ()
    dtype: torch.dtype | None = None
    dry_run: bool = False

    def strength(self, path: str) -> float:
        """0 for a module that is left out."""
        if any(drop(path) for drop in self.drops):
            return 0.0
        return strength_of(path, self.strengths)


@dataclass(frozen=True)
class Edited:
    """What came of it. strengths: by path, 0 for what is left out; before, after: metadata"""

    strengths: Mapping[str, float]
    left: int
    left_dropped: bool
    before: Mapping[str, str]
    after: Mapping[str, str]


def edit(file: AdapterFile, asked: Edit) -> Edited:
    """Write the file. Raises AdapterFileError with all modules that have no other strength."""
    strengths = {path: asked.strength(path) for path in file}
    if not any(strengths.values()):
        raise AdapterFileError("nothing would be left in the file.", source=str(file.path))
    problems, alphas = [], Counter[float]()
    with Spool(asked.output.parent) as out:
        for path, strength in tqdm(
            strengths.items(), "editing", unit="module", delay=1, leave=False
        ):
            if strength == 0:
                continue
            try:
                factors = at_strength(file, path, strength)
            except ValueError as error:
                problems.append(Problem(f"{error}.", path))
                continue
            put_module(out, file, path, factors, asked.dtype)
            if ALPHA in factors and factors[ALPHA].numel() == 1:
                alphas[float(factors[ALPHA])] += 1
        if problems:
            raise AdapterFileError(problems, source=str(file.path))
        if not asked.drop_unknown:
            put_left(out, file)
        after = metadata_of(file, strengths, alphas, asked)
        if not asked.dry_run:
            out.write(asked.output, after)
    return Edited(strengths, len(file.left), asked.drop_unknown, file.metadata, after)


def at_strength(file: AdapterFile, path: str, strength: float) -> Factors:
    factors = file.factors(path)
    return factors if strength == 1 else scaled(factors, strength, file.entries[path].whole)


def metadata_of(
    file: AdapterFile, strengths: Mapping[str, float], alphas: Counter[float], asked: Edit
) -> dict[str, str]:
    """The file's own, true again, with the entries that are set and without those that are taken out."""
    changes: dict[str, object] = {}
    if any(strength not in (0, 1) for strength in strengths.values()) and alphas:
        changes["network_alpha"] = alphas.most_common(1)[0][0]
    if PARTS in file.metadata and not all(strengths.values()):
        kept = (path for path, strength in strengths.items() if strength)
        changes["adapted_parts"] = json.dumps(adapted_parts(kept))
    made = derived(file.metadata, TOOL, [file.path], **changes)
    made = {name: text for name, text in made.items() if not is_removed(name, asked.removed)}
    return made | {as_utf8(name): as_utf8(text) for name, text in asked.entries.items()}


def is_removed(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def report(made: Edited) -> Iterator[str]:
    """A table of what changed, by name of module, and the entries of metadata that did."""
    named: dict[str, list[float]] = {}
    for path, strength in made.strengths.items():
        named.setdefault(name_of(path), []).append(strength)
    rows = [("modules", "kept", "strength", "left out")]
    for name, strengths in named.items():
        kept = [strength for strength in strengths if strength]
        if set(strengths) != {1.0}:
            rows.append((name, str(len(kept)), span(kept), str(len(strengths) - len(kept))))
    if len(rows) > 1:
        yield from lines(rows)
    same = sum(strength == 1 for strength in made.strengths.values())
    yield f"as they are: {same} of {len(made.strengths)} modules"
    if made.left:
        how = "left out" if made.left_dropped else "as they are"
        yield f"{how}: {made.left} tensors that belong to no known module"
    yield from metadata_lines(made.before, made.after)


def span(strengths: Sequence[float]) -> str:
    """E.g. 0.5, or 0.4..1."""
    found = sorted(
        {f"{strength:g}": strength for strength in strengths}.items(), key=lambda x: x[1]
    )
    if not found:
        return "-"
    return found[0][0] if len(found) == 1 else f"{found[0][0]}..{found[-1][0]}"


def metadata_lines(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """Entries that are new, changed or gone; and those that seem to hold a folder of somebody's disk."""
    for name in sorted(before.keys() | after.keys()):
        if name.startswith("sshs_") or before.get(name) == after.get(name):
            continue
        if name not in after:
            yield f"metadata: {name} taken out"
        else:
            was = f" (was {short(before[name])})" if name in before else ""
            yield f"metadata: {name} = {short(after[name])}{was}"
    for name, text in sorted(after.items()):
        if SOMEBODYS_FOLDER.search(text) and not text.startswith("data:"):
            yield f"metadata: {name} seems to hold a folder of somebody's disk; --remove takes it out"


def short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"
