"""What a tuned model adds to the one that it was made of, as an adapter file: LoRAs, norms and biases.

One weight of each model is in memory. What is the same in both, number by number, is nothing to extract.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from library.anima_workshop.base import BaseFile
from library.anima_workshop.layout import modules_of
from library.anima_workshop.made_table import counts, error_lines, reader_lines
from library.anima_workshop.metadata import PARTS, metadata_of
from library.anima_workshop.tables import name_of, percent
from library.errors import AdapterFileError, ModelFileError, Problem, as_utf8
from networks.codec import encode
from networks.kinds.lora import LORA_DOWN, LORA_UP
from networks.kinds.norm import B_NORM, W_NORM
from networks.kinds.stored import ALPHA, DIFF_B, is_finite
from networks.workshop.converting import Made
from networks.workshop.deltas import Dense, LowRank, distance
from networks.workshop.low_rank import RankRule, approximate
from networks.workshop.modules import Modules
from networks.workshop.spool import Spool

TOOL = "extract_lora"


@dataclass(frozen=True)
class Extraction:
    """What is asked for. chosen: whether a module is extracted, by its path"""

    rule: RankRule
    output: Path
    chosen: Callable[[str], bool]
    dtype: torch.dtype = torch.float32
    dry_run: bool = False


@dataclass
class Extracted:
    """What came of it.

    rows:  of the modules that are in the file
    same:  how many are the same in both models
    left:  path -> norm of the difference of those that are not chosen
    """

    rows: list[Made] = field(default_factory=list)
    same: int = 0
    left: dict[str, float] = field(default_factory=dict)


def usual_choice(modules: Modules) -> Callable[[str], bool]:
    """What is trained unless the user says otherwise: the target Linears and all norms."""
    return (modules.targets | modules.norms).__contains__


def modules_of_both(original: BaseFile, tuned: BaseFile) -> Modules:
    """Raises ModelFileError when the two are of different sizes."""
    pairs = [(f.name, getattr(original.params, f.name), getattr(tuned.params, f.name))
             for f in fields(original.params)]  # fmt: skip
    if differing := [
        f"{name} {there} instead of {here}" for name, here, there in pairs if here != there
    ]:
        message = f"is of other sizes than {original.path.name}: {', '.join(differing)}."
        raise ModelFileError(message, source=str(tuned.path))
    return modules_of(original.params, is_exact=True)


@torch.no_grad()
def extract(
    original: BaseFile, tuned: BaseFile, modules: Modules, asked: Extraction
) -> Iterator[str]:
    """Write the file; lines to be told. Raises AdapterFileError when there is nothing to extract."""
    found, problems = Extracted(), []
    paths = [path for path in modules.shapes if f"{path}.weight" in original.names]
    with Spool(asked.output.parent) as out:
        for path in tqdm(paths, "extracting", unit="module", delay=1, leave=False):
            changes = changes_of(original, tuned, path)
            norm = math.hypot(*(Dense(change).norm() for change in changes.values()))
            if not changes:
                found.same += 1
            elif not math.isfinite(norm):
                problems.append(Problem("differs by NaN or infinity.", path))
            elif not asked.chosen(path):
                found.left[path] = norm
            else:
                made = made_of(path, changes, asked, is_norm=path in modules.norms)
                for name, tensor in made.factors.items():
                    out.put(encode(path, name), tensor)
                found.rows.append(replace(made, size=norm, factors={}))
        if problems or not found.rows:
            problems = problems or [Problem(nothing(found), str(tuned.path))]
            raise AdapterFileError(problems, source="the difference of the two models")
        told = {
            PARTS: "",  # counted by metadata_of
            "ss_num_blocks": str(original.params.num_blocks),
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.title": as_utf8(asked.output.stem),
        }
        metadata = metadata_of(told, TOOL, [original.path, tuned.path], found.rows)
        if not asked.dry_run:
            out.write(asked.output, metadata)
        return report(original, tuned, found, list(out.plan), metadata)


def changes_of(original: BaseFile, tuned: BaseFile, path: str) -> dict[str, Tensor]:
    """tuned - original of the module's weight and bias, float32; what is the same is not there."""
    found = {}
    for name in ("weight", "bias"):
        full = f"{path}.{name}"
        if full in original.names and not is_same(original, tuned, full):
            change = tuned.parameter(full) - original.parameter(full)
            if not is_finite(change) or bool(change.any()):
                found[name] = change
    return found


def is_same(original: BaseFile, tuned: BaseFile, name: str) -> bool:
    """Whether both files have the same numbers, seen without making them float32."""
    if tuned.names[name] in tuned.layout.weights or original.names[name] in original.layout.weights:
        return False
    here, there = original.read(original.names[name]), tuned.read(tuned.names[name])
    return here.dtype == there.dtype and torch.equal(here, there)


def made_of(path: str, changes: Mapping[str, Tensor], asked: Extraction, *, is_norm: bool) -> Made:
    """The factors of one module."""
    factors: dict[str, Tensor] = {}
    if "bias" in changes:
        factors[B_NORM if is_norm else DIFF_B] = changes["bias"].to(asked.dtype)
    if is_norm or "weight" not in changes:
        if "weight" in changes:
            factors[W_NORM] = changes["weight"].to(asked.dtype)
        return Made(path, "difference", "norm" if is_norm else "difference", factors)
    low = approximate(Dense(changes["weight"]), asked.rule)
    up, down = (part.to(asked.dtype).contiguous() for part in (low.up, low.down))
    rounding = 0.0
    if asked.dtype != torch.float32:
        rounding = distance(LowRank(up.float(), down.float()), low.delta) / low.delta.norm()
    factors |= {LORA_UP: up, LORA_DOWN: down, ALPHA: torch.tensor(float(low.rank))}
    error = math.hypot(low.error, rounding)
    return Made(path, "difference", "LoRA", factors, error=error, rank=low.rank)


def nothing(found: Extracted) -> str:
    """Why there is nothing to write."""
    if not found.left:
        return "holds the same weights as the original."
    names = ", ".join(dict.fromkeys(map(name_of, found.left)))
    return f"differs only in modules that are not chosen: {names}. Name them with --target_modules."


def report(
    original: BaseFile, tuned: BaseFile, found: Extracted, keys: Sequence[str],
    metadata: Mapping[str, str],
) -> Iterator[str]:  # fmt: skip
    yield from counts(found.rows)
    yield from error_lines(found.rows)
    yield f"the same in both models: {found.same} modules"
    yield from left_lines(found)
    dtypes = {file.path.name: stored_as(file) for file in (original, tuned)}
    if len(set(dtypes.values())) > 1 or any(file.layout.weights for file in (original, tuned)):
        shown = ", ".join(f"{name}: {dtype}" for name, dtype in dtypes.items())
        yield f"The rounding of what is stored narrowly is in the difference ({shown})."
    yield from reader_lines(keys, metadata)


def left_lines(found: Extracted) -> Iterator[str]:
    """What differs and is not in the file, with its share of the whole difference (squares of norms)."""
    norms = [*found.left.values(), *(row.size for row in found.rows)]
    whole = math.fsum(norm**2 for norm in norms)
    named: dict[str, list[float]] = {}
    for path, norm in found.left.items():
        named.setdefault(name_of(path), []).append(norm)
    for name, members in named.items():
        share = math.fsum(norm**2 for norm in members) / whole
        yield f"left out, though different: {name}, {len(members)} modules, {percent(share)} of the whole"


def stored_as(file: BaseFile) -> str:
    """The dtype of most of its numbers."""
    sizes: dict[str, int] = {}
    for key in file.names.values():
        entry = file.header.entries[key]
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.end - entry.begin
    return max(sizes, key=lambda dtype: sizes[dtype])
