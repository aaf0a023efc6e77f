"""An adapter file's blocks put into a model of another depth: a guess, which is said.

Each block of the new model gets what the file has for the block at the same share of the depth, whole;
nothing is averaged, since half of one block's delta and half of another's do the work of neither.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from library.anima_backend.modelling.params import PUBLISHED
from library.anima_workshop.metadata import PARTS
from library.errors import AdapterFileError, Problem
from library.saving.metadata_table import adapted_parts
from networks.kinds.stored import Factors
from networks.workshop.adapter_file import AdapterFile
from networks.workshop.copying import put_left
from networks.workshop.delta_of import weight_shape
from networks.workshop.modules import Modules
from networks.workshop.spool import Spool
from networks.workshop.writing import derived

TOOL = "remap_lora"
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
BLOCK_IN_KEY = re.compile(r"(?<=blocks[._])\d+(?=[._])")
IN_A_LINE = 8
LIMITS = (
    "A guess, not a conversion: blocks at one depth of two models need not do the same work.",
    "Look at what it draws, at several strengths; the sure way is training on the model itself.",
    "这只是按深度的猜测，不是转换：两个模型同一深度的块不一定做同样的事。请用几种强度试画；可靠的办法是在目标模型上训练。",
)


@dataclass(frozen=True)
class Remap:
    """What is asked for.

    blocks:  block of the new model -> block of the file; those that are not in it get nothing
    was, is: how many blocks the two models have
    target:  the new model's modules, where its file is given
    """

    output: Path
    blocks: Mapping[int, int]
    was: int
    now: int
    target: Modules | None = None
    dry_run: bool = False


def by_depth(was: int, now: int) -> dict[int, int]:
    """For each of `now` blocks the one of `was` at the same share of the depth; ends stay ends."""
    step = (was - 1) / (now - 1) if now > 1 else 0.0
    return {block: int(block * step + 0.5) for block in range(now)}


def blocks_of(file: AdapterFile) -> int:
    """How many blocks the file's model has: as its metadata say, else the published number, or more."""
    told = file.metadata.get("ss_num_blocks", "")
    is_number = told.isascii() and told.isdecimal() and len(told) < 5
    return max(int(told) if is_number else PUBLISHED.num_blocks, highest_block(file) + 1)


def highest_block(file: AdapterFile) -> int:
    """Of those that the file has something for; -1 for none."""
    found = map(block_of, file)
    return max((block for block in found if block is not None), default=-1)


def block_of(path: str) -> int | None:
    """The number of a module's block in the DiT."""
    found = BLOCK.fullmatch(path)
    return int(found[1]) if found else None


def remap(file: AdapterFile, asked: Remap) -> Iterator[str]:
    """Write the file; lines to be told. Raises AdapterFileError for modules that the new model has not."""
    if all(block_of(path) is None for path in file):
        raise AdapterFileError("has nothing for any block.", source=str(file.path))
    problems, moved = list[Problem](), list[str]()
    with Spool(asked.output.parent) as out:
        for path in file:
            factors = file.factors(path)
            for new in places(path, asked.blocks):
                if problem := misplaced(new, factors, asked.target):
                    problems.append(problem)
                    continue
                moved.append(new)
                for name, tensor in factors.items():
                    out.put(renamed(file.entries[path].keys[name], block_of(new)), tensor)
        if problems:
            raise AdapterFileError(problems, source=str(file.path))
        put_left(out, file)
        if not asked.dry_run:
            out.write(asked.output, metadata_of(file, asked, moved))
    return report(file, asked)


def places(path: str, blocks: Mapping[int, int]) -> Iterator[str]:
    """Where a module goes: of a block to all that it is for, else where it is."""
    found = BLOCK.fullmatch(path)
    if found is None:
        yield path
        return
    for new, old in blocks.items():
        if old == int(found[1]):
            yield f"blocks.{new}.{found[2]}"


def renamed(key: str, block: int | None) -> str:
    """A key for a block of another number, in any spelling."""
    return key if block is None else BLOCK_IN_KEY.sub(str(block), key, count=1)


def misplaced(path: str, factors: Factors, target: Modules | None) -> Problem | None:
    """Why the new model cannot take a module; nothing is known of a model without its file."""
    if target is None:
        return None
    if path not in target.shapes:
        return Problem("the new model has no such module.", path)
    try:
        shape = weight_shape(factors) if factors.keys() - {"diff_b", "b_norm"} else None
    except (ValueError, KeyError):
        return None  # of a form that only a whole weight tells
    if shape is not None and shape != target.shapes[path]:
        return Problem(
            f"is for a weight of shape {shape}; the new model's is {target.shapes[path]}.", path
        )
    return None


def metadata_of(file: AdapterFile, asked: Remap, moved: Sequence[str]) -> dict[str, str]:
    changes: dict[str, object] = {
        "num_blocks": asked.now,
        "remapped_blocks": json.dumps({str(new): old for new, old in asked.blocks.items()}),
    }
    if PARTS in file.metadata:
        changes["adapted_parts"] = json.dumps(adapted_parts(moved))
    return derived(file.metadata, TOOL, [file.path], **changes)


def report(file: AdapterFile, asked: Remap) -> Iterator[str]:
    """Which block became which, what was used twice or not at all, and what it is worth."""
    yield f"{asked.was} blocks -> {asked.now}; new block <- block of the file:"
    pairs = [f"{new:>3} <- {old:<3}" for new, old in sorted(asked.blocks.items())]
    for start in range(0, len(pairs), IN_A_LINE):
        yield "  ".join(pairs[start : start + IN_A_LINE]).rstrip()
    uses = Counter(asked.blocks.values())
    twice = [block for block, count in sorted(uses.items()) if count > 1]
    if twice:
        yield f"used more than once: {numbers(twice)}"
    if unused := [block for block in range(asked.was) if block not in uses]:
        yield f"left out: {numbers(unused)}"
    if empty := [block for block in range(asked.now) if block not in asked.blocks]:
        yield f"new blocks that get nothing: {numbers(empty)}"
    others = sum(block_of(path) is None for path in file)
    yield f"as they are: {others} modules that are in no block of the DiT (the LLM adapter's and others)"
    yield from LIMITS


def numbers(blocks: Iterable[int]) -> str:
    return ", ".join(map(str, blocks))
