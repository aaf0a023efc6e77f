"""Edit an adapter file: strength by block and part, parts left out, metadata, thumbnail, precision.

python tools/edit_lora.py my_lora.safetensors --output edited.safetensors
       [--strength blocks.0-7=0.5 mlp=0.8] [--drop norms llm_adapter] [--title NAME]
       [--thumbnail picture.png] [--set KEY=VALUE] [--remove KEY] [--save_precision bf16]

Modules are named by a part of the model (all, self_attn, cross_attn, mlp, mod, llm_adapter, norms,
text_encoder), by blocks (blocks.0-7, blocks.0,2,5-7.mlp, llm_adapter.blocks.0-2), or by a pattern as
target_modules has it (q_proj, *.mlp.*, re:...). Strengths of several names multiply; 0 leaves out.
按部分、块或模式改变强度（相乘），去掉归一化层、LLM adapter 或文本编码器，改元数据、缩略图和精度。
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from library.anima_workshop.choosing import UNKNOWN, Choice, read_choices
from library.anima_workshop.editing import Edit, edit, is_removed, report
from library.anima_workshop.layout import open_anima_adapter
from library.device_utils import precision_dtype
from library.errors import ConfigError, Problem
from library.reporting.thumbnails import thumbnail
from library.system.program import run_main
from networks.workshop.adapter_file import AdapterFile
from tools._adapter_files import tool_parser
from tools._adapter_outputs import add_output, add_precision, output_problems, tell

ENTRIES = ("title", "author", "description", "tags", "trigger_phrase", "usage_hint", "license")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line by itself; what it says of the file is read with it."""
    made = tool_parser("edit_lora.py", __doc__)
    add = made.add_argument
    add("file", type=Path, help="an adapter file, in any key style")
    add("--strength", nargs="+", default=[], metavar="NAME=NUMBER", help="times what it is now")
    add("--drop", nargs="+", default=[], metavar="NAME",
        help="modules to leave out; unknown: keys that belong to none")  # fmt: skip
    for name in ENTRIES:
        add(f"--{name}", help=f"modelspec.{name}")
    add("--thumbnail", type=Path, help="a picture; a small copy of it goes into the file")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="entries of the metadata")
    add(
        "--remove",
        nargs="+",
        default=[],
        metavar="KEY",
        help="entries to take out; * stands for any",
    )
    add_precision(made)
    add_output(made)
    return made.parse_args(argv)


def read_strengths(options: argparse.Namespace, file: AdapterFile) -> tuple[dict[Choice, float], list[Problem]]:  # fmt: skip
    strengths: dict[Choice, float] = {}
    problems = []
    for word in options.strength:
        name, _, number = word.rpartition("=")
        found, wrong = read_choices([name], file, file.modules, "--strength") if name else ([], [])
        problems += wrong
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name or not math.isfinite(value):
            problems.append(Problem("expected NAME=NUMBER, e.g. mlp=0.8.", f"--strength {word}"))
        strengths |= {choice: value for choice in found}
    return strengths, problems


def read_entries(options: argparse.Namespace) -> tuple[dict[str, str], list[Problem]]:
    """What is set in the metadata."""
    given = {f"modelspec.{name}": getattr(options, name) for name in ENTRIES}
    entries = {name: text for name, text in given.items() if text is not None}
    problems = []
    for word in options.set:
        name, equals, text = word.partition("=")
        if not name or not equals:
            problems.append(Problem("expected KEY=VALUE.", f"--set {word}"))
        elif name.startswith("sshs_"):
            problems.append(Problem("is a hash of the tensors, computed anew.", f"--set {name}"))
        else:
            entries[name] = text
    if options.thumbnail is not None:
        entries["modelspec.thumbnail"] = thumbnail(options.thumbnail)
        if not entries["modelspec.thumbnail"]:
            problems.append(
                Problem("is no picture that can be read.", f"--thumbnail {options.thumbnail}")
            )
    return entries, problems


def read(options: argparse.Namespace, file: AdapterFile) -> Edit:
    """What is asked for. Raises ConfigError with all that is wrong."""
    problems = list(output_problems(options.output, [options.file], overwrite=options.overwrite))
    strengths, wrong = read_strengths(options, file)
    problems += wrong
    names = [name for name in options.drop if name != UNKNOWN]
    drops, wrong = read_choices(names, file, file.modules, "--drop")
    problems += wrong
    entries, wrong = read_entries(options)
    problems += wrong
    for pattern in options.remove:
        if not any(is_removed(name, [pattern]) for name in file.metadata):
            problems.append(Problem("is no entry of the metadata.", f"--remove {pattern}"))
    if not (
        strengths or options.drop or entries or options.remove or options.save_precision or problems
    ):
        problems.append(
            Problem("say what to change: --strength, --drop, --set ...", "command line")
        )
    if problems:
        raise ConfigError(problems)
    return Edit(
        options.output, strengths, drops, UNKNOWN in options.drop, entries, options.remove,
        precision_dtype(options.save_precision) if options.save_precision else None,
        options.dry_run,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if argv is None else argv)
    file = open_anima_adapter(options.file)
    tell(report(edit(file, read(options, file))), options)


if __name__ == "__main__":
    run_main(main)
