"""Merge adapter files: into a base model, or several of them into one file.

python tools/merge_lora.py A.safetensors [B.safetensors ...] --output OUT.safetensors [--strength 1 0.5]
       --base DIT [--save_precision float|fp16|bf16|fp8] [--check some|all|none]
python tools/merge_lora.py A.safetensors B.safetensors ... --output OUT.safetensors [--strength 1 0.5]
       [--rank 64 | --energy 0.99 | --error 0.05] [--save_precision float|fp16|bf16]

Into a base: its weights are changed one at a time and stored as they were, or in --save_precision (fp8 as
ComfyUI reads it); all else is copied byte for byte. What rounding costs is told, and weights are read back.
Into one: LoRAs exactly, their ranks add up; norms add up; a sum of other kinds becomes a LoRA of --rank,
whose error is told. A file that is there stays without --overwrite.
把 LoRA / LoKr 合并进底模，或把多个 LoRA 合并成一个。LoRA 之间精确合并（秩相加）；其他种类之和用 SVD 变成 LoRA，误差会打印出来。
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from library.anima_workshop.base import BaseFile, open_base
from library.anima_workshop.base_merging import SAMPLE, BaseMerging
from library.anima_workshop.layout import open_anima_adapter
from library.anima_workshop.made_table import (
    IDLE_RULE,
    counts,
    dropped_lines,
    error_lines,
    reader_lines,
)
from library.anima_workshop.merged_table import merged_lines
from library.anima_workshop.metadata import alike, metadata_of, of_merged_base, with_strengths
from library.anima_workshop.storing import FP8, PRECISIONS, storing
from library.errors import ConfigError, Problem, visible
from library.system.program import run_main
from library.utils import is_quiet
from networks.workshop.joining import Joining
from networks.workshop.sources import DROPS, Source, Sources
from networks.workshop.spelling import SPELLINGS
from networks.workshop.spool import Spool
from tools._adapter_files import tool_parser
from tools._adapter_outputs import (
    add_output,
    add_rule,
    outcome,
    output_problems,
    rule_of,
    rule_problems,
)

TOOL = "merge_lora"
CHECKS = {"some": SAMPLE, "all": None, "none": 0}
"""How many weights are read back."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; all that is wrong with it in one ConfigError."""
    parser = tool_parser("merge_lora.py", __doc__)
    add = parser.add_argument
    add("files", nargs="+", type=Path, help="adapter files in any format")
    add("--strength", nargs="+", type=float, help="one for each file; 1 if not given")
    add("--base", type=Path, help="the DiT that they are merged into, of any prefix")
    add("--save_precision", choices=PRECISIONS, help="of the file; as it was if not given")
    add("--check", choices=CHECKS, help="with --base: how much is read back (some)")
    add("--drop", nargs="+", choices=DROPS, default=[], help="what may be left out")
    add_rule(parser)
    add_output(parser)
    options = parser.parse_args(argv)
    options.strength = options.strength or [1.0] * len(options.files)
    if found := [*problems(options)]:
        raise ConfigError(found)
    return options


def problems(options: argparse.Namespace) -> Iterable[Problem]:
    """What is wrong between the arguments, and with the place of the output."""
    files, base = options.files, options.base
    if base is None and len(files) < 2:
        yield Problem("is one file. Give a second one, or --base to merge it into a base.", "files")
    if len(options.strength) != len(files):
        message = f"{len(options.strength)} numbers for {len(files)} files. Give one for each."
        yield Problem(message, "--strength")
    if not all(math.isfinite(strength) for strength in options.strength):
        yield Problem("expected finite numbers.", "--strength")
    if base is not None and rule_of(options):
        yield Problem("have no effect with --base, which takes all ranks.", "--rank, --energy, --error")
    if base is None and options.check:
        yield Problem("has no effect without --base.", "--check")
    if base is None and options.save_precision == FP8:
        yield Problem("is for base models; adapters are stored in float, fp16 or bf16.", "fp8")
    yield from rule_problems(options)
    inputs = [*files, *([base] if base else [])]
    yield from output_problems(options.output, inputs, overwrite=options.overwrite)


def bar(keys: Iterable[str]) -> Iterable[str]:
    return tqdm(keys, "merging", unit="tensor", delay=1, leave=False, disable=is_quiet())


def into_base(options: argparse.Namespace, base: BaseFile, sources: Sources) -> None:
    sources.check(text_encoder=False)
    merging = BaseMerging(base, sources, storing(base, options.save_precision))
    if options.dry_run:
        merging.measure(bar)
    else:
        metadata = of_merged_base(merging.storing.metadata, TOOL, sources)
        merging.write(options.output, metadata, bar, CHECKS[options.check or "some"])
    for line in [*dropped_lines(sources.dropped()), *merged_lines(merging.rows)]:
        print(visible(line))


def into_one(options: argparse.Namespace, sources: Sources) -> None:
    sources.check(text_encoder=True)
    joining = Joining(sources, rule_of(options), PRECISIONS.get(options.save_precision))
    with Spool(options.output.parent) as spool:
        rows = joining.put_into(spool, SPELLINGS["comfy"])
        names = [source.file.path for source in sources.files]
        metadata = with_strengths(metadata_of(alike(sources), TOOL, names, rows), TOOL, sources)
        is_idle = joining.rule is not None and not any(row.rank for row in rows)
        for line in [
            *counts(rows), *dropped_lines(sources.dropped()), *error_lines(rows),
            *([IDLE_RULE] if is_idle else []),
            *reader_lines(list(spool.plan), metadata),
        ]:  # fmt: skip
            print(visible(line))
        if not options.dry_run:
            spool.write(options.output, metadata)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if argv is None else argv)
    base = open_base(options.base) if options.base else None
    files = [open_anima_adapter(file, options.base) for file in options.files]
    sources = Sources([*map(Source, files, options.strength)], frozenset(options.drop))
    if base is not None:
        into_base(options, base, sources)
    else:
        into_one(options, sources)
    print(outcome(options))


if __name__ == "__main__":
    run_main(main)
