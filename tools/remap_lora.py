"""Put an adapter file's blocks into a model of another depth, e.g. 28 blocks into 40: a guess.

python tools/remap_lora.py my_lora.safetensors --output remapped.safetensors --blocks 40
       [--base DIT.safetensors] [--map 0-9=0-9 10-39=9] [--from_blocks 28] [--dry_run] [--overwrite]

Each new block gets, whole, what the file has for the block at the same share of the depth; --map says
it otherwise, NEW=OLD, and new blocks that it does not name get nothing. The LLM adapter and what is in
no block stay as they are. Two models' blocks need not do the same work: no conversion can be exact.
把 LoRA 按深度搬到块数不同的模型上（例如 28 到 40）。这只是猜测，不是精确的转换。
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

import argparse
from collections.abc import Sequence
from pathlib import Path

from library.anima_backend.modelling.params import MAX_BLOCKS
from library.anima_runtime.model_loading import inspect_transformer
from library.anima_workshop.choosing import numbers
from library.anima_workshop.layout import modules_of, open_anima_adapter
from library.anima_workshop.remapping import Remap, blocks_of, by_depth, highest_block, remap
from library.errors import ConfigError, Problem
from library.system.program import run_main
from networks.workshop.adapter_file import AdapterFile
from tools._adapter_files import tool_parser
from tools._adapter_outputs import add_output, output_problems, tell


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = tool_parser("remap_lora.py", __doc__)
    add = parser.add_argument
    add("file", type=Path, help="an adapter file, in any key style")
    add("--blocks", type=int, help="how many the new model has")
    add(
        "--base",
        type=Path,
        help="the new model's file instead: its blocks and widths are looked at",
    )
    add(
        "--from_blocks",
        type=int,
        help="how many the file's model has; else by the file, 28 or more",
    )
    add(
        "--map",
        nargs="+",
        default=[],
        metavar="NEW=OLD",
        help="blocks or ranges, e.g. 0-9=0-9 10-39=9",
    )
    add_output(parser)
    return parser.parse_args(argv)


def read_map(words: Sequence[str]) -> tuple[dict[int, int], list[Problem]]:
    """New block -> block of the file, and what is wrong with the words."""
    found: dict[int, int] = {}
    problems = []
    for word in words:
        where = f"--map {word}"
        left, _, right = word.partition("=")
        try:
            new, old = sorted(numbers(left)), sorted(numbers(right))
        except ValueError:
            problems.append(Problem("expected NEW=OLD, e.g. 3=2, 0-9=0-9 or 10-39=9.", where))
            continue
        if len(old) not in (1, len(new)):
            message = (
                f"{len(new)} new blocks for {len(old)}. Name one old block, or as many as new ones."
            )
            problems.append(Problem(message, where))
        elif twice := found.keys() & set(new):
            problems.append(Problem(f"names new block {min(twice)} again.", where))
        else:
            found |= dict(zip(new, old * len(new) if len(old) == 1 else old))
    return found, problems


def read(options: argparse.Namespace, file: AdapterFile) -> Remap:
    """What is asked for. Raises ConfigError with all that is wrong."""
    inputs = [options.file, *([options.base] if options.base else [])]
    problems = list(output_problems(options.output, inputs, overwrite=options.overwrite))
    if (options.blocks is None) == (options.base is None):
        problems.append(Problem("expected one of the two: --blocks or --base.", "command line"))
    for name in ("blocks", "from_blocks"):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= MAX_BLOCKS:
            problems.append(Problem(f"expected 1 to {MAX_BLOCKS}.", f"--{name} {value}"))
    mapped, wrong = read_map(options.map)
    problems += wrong
    if problems:
        raise ConfigError(problems)
    params = inspect_transformer(options.base)[0] if options.base else None
    was = options.from_blocks or blocks_of(file)
    now = params.num_blocks if params else options.blocks
    refuse_missing(mapped, file, was, now)
    return Remap(
        options.output, mapped or by_depth(was, now), was, now,
        modules_of(params, is_exact=True) if params else None, options.dry_run,
    )  # fmt: skip


def refuse_missing(mapped: dict[int, int], file: AdapterFile, was: int, now: int) -> None:
    """Raise ConfigError for blocks that are not there, and where there is nothing to do."""
    problems = []
    if was <= highest_block(file):
        message = f"the file has something for block {highest_block(file)}."
        problems.append(Problem(message, f"--from_blocks {was}"))
    if not mapped and was == now:
        problems.append(
            Problem(f"the file's model has {was} blocks as well; give a --map.", "--blocks")
        )
    for what, found, count in (
        ("new model", mapped.keys(), now),
        ("file's model", mapped.values(), was),
    ):
        if beyond := sorted(block for block in set(found) if block >= count):
            message = f"the {what} has no block {beyond[0]}: they are 0 to {count - 1}."
            problems.append(Problem(message, "--map"))
    if problems:
        raise ConfigError(problems)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if argv is None else argv)
    file = open_anima_adapter(options.file)
    tell(remap(file, read(options, file)), options)


if __name__ == "__main__":
    run_main(main)
