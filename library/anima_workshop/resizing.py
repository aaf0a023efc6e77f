"""An adapter file at a smaller rank, and what a person is told about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from library.anima_runtime.family import MODULES
from library.anima_workshop.metadata import arguments
from library.anima_workshop.tables import bytes_text, lines, name_of, percent, spread, together
from library.errors import AdapterFileError, Problem
from networks.kinds.stored import ALPHA
from networks.workshop.adapter_file import AdapterFile
from networks.workshop.converting import Made
from networks.workshop.copying import put_left, put_module
from networks.workshop.low_rank import RankRule
from networks.workshop.resizing import Resized, resized
from networks.workshop.spool import Spool
from networks.workshop.writing import derived

TOOL = "resize_lora"
LORA_MODULE = next(module for module, kind in MODULES.items() if kind == "LoRA")


@dataclass(frozen=True)
class Resizing:
    """What is asked for. dtype: of the factors that are written; None is that of the file's"""

    rule: RankRule
    output: Path
    to_lora: bool = False
    dtype: torch.dtype | None = None
    dry_run: bool = False


@dataclass
class Outcome:
    """What came of it. modules: by path; sizes: of the tensors, in bytes"""

    modules: dict[str, Resized] = field(default_factory=dict)
    alphas: Counter[float] = field(default_factory=Counter)
    left: int = 0
    size_before: int = 0
    size_after: int = 0

    @property
    def of_some_rank(self) -> dict[str, Resized]:
        return {path: found for path, found in self.modules.items() if not found.kept}


def resize(file: AdapterFile, asked: Resizing) -> Outcome:
    """Write the file. Raises AdapterFileError with all modules that cannot be read."""
    made, problems = Outcome(left=len(file.left)), []
    made.size_before = sum(entry.end - entry.begin for entry in file.header.entries.values())
    with Spool(asked.output.parent) as out:
        for path in tqdm(list(file), "resizing", unit="module", delay=1, leave=False):
            try:
                found = resized(file, path, asked.rule, to_lora=asked.to_lora)
            except ValueError as error:
                problems.append(Problem(f"{error}.", path))
                continue
            factors = found.factors or file.factors(path)
            put_module(out, file, path, factors, asked.dtype)
            made.modules[path] = found
            if found.after is not None:
                made.alphas[float(factors[ALPHA]) if ALPHA in factors else found.after] += 1
        if problems:
            raise AdapterFileError(problems, source=str(file.path))
        put_left(out, file)
        made.size_after = sum(planned.size for planned in out.plan.values())
        if not asked.dry_run:
            out.write(asked.output, metadata_of(file, made))
    return made


def metadata_of(file: AdapterFile, made: Outcome) -> dict[str, str]:
    """The file's own, with the kind, the most common rank and the most common alpha that it has now."""
    changes: dict[str, object] = {}
    ranks = Counter(found.after for found in made.of_some_rank.values() if found.after)
    if ranks and any(found.factors for found in made.modules.values()):
        changes["network_dim"] = ranks.most_common(1)[0][0]
        changes["network_alpha"] = float(made.alphas.most_common(1)[0][0])
    if any(found.was != found.now for found in made.modules.values()):
        changes["network_module"] = LORA_MODULE
        if "ss_network_args" in file.metadata:
            rows = [
                Made(path, "", kind_now(file, path, found), {})
                for path, found in made.modules.items()
            ]
            kinds = {row.after for row in rows}
            changes["network_args"] = arguments(file.metadata["ss_network_args"], kinds, rows)
    return derived(file.metadata, TOOL, [file.path], **changes)


def kind_now(file: AdapterFile, path: str, found: Resized) -> str:
    return found.now or file.kind_of(path)


def report(made: Outcome) -> Iterator[str]:
    """A table of ranks and errors by name of module, and what stayed as it was."""
    rows: list[tuple[str, ...]] = [("modules", "count", "was", "is", "error", "largest")]
    named: dict[str, list[Resized]] = {}
    for path, found in made.of_some_rank.items():
        named.setdefault(name_of(path), []).append(found)
    rows += [row_of(name, found) for name, found in named.items()]
    if len(named) > 1:
        rows.append(row_of("all", list(made.of_some_rank.values())))
    if named:
        yield from lines(rows)
    for reason, count in Counter(f.kept for f in made.modules.values() if f.kept).items():
        yield f"as they are: {count} modules ({reason})"
    if made.left:
        yield f"as they are: {made.left} tensors that belong to no known module"
    yield f"{bytes_text(made.size_before)} -> {bytes_text(made.size_after)}"


def row_of(name: str, modules: Sequence[Resized]) -> tuple[str, ...]:
    error = together((m.error for m in modules), (m.norm for m in modules))
    largest = max(m.error for m in modules)
    was, now = ranks((m.was, m.before) for m in modules), ranks((m.now, m.after) for m in modules)
    return name, str(len(modules)), was, now, percent(error), percent(largest)


def ranks(modules: Iterable[tuple[str, int | None]]) -> str:
    """Kinds and ranks, e.g. LoRA 32, or LoKr full, LoKr 4..16."""
    found: dict[tuple[str, bool], list[int]] = {}
    for kind, rank in modules:
        found.setdefault((kind, rank is None), []).append(rank or 0)
    return ", ".join(
        f"{kind} {'full' if is_full else spread(numbers)}"
        for (kind, is_full), numbers in found.items()
    )
