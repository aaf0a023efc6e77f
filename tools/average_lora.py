"""Average adapter files of one run: several of its checkpoints as one file, without training again.

python tools/average_lora.py A.safetensors B.safetensors ... --output OUT.safetensors
       [--weights 1 1 2] [--force] [--overwrite] [--dry_run]

The mean of factors is meaningful only within one run, whose files grew out of the same factors. Files
that do not say so (ss_session_id) are refused without --force. A file that is there stays without
--overwrite.
把同一次训练的多个 LoRA / LoKr 文件平均成一个文件。只有同一次训练的文件才能平均：不同训练的因子没有共同的基。
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

from library.errors import ConfigError, Problem
from library.system.program import run_main
from networks.averaging import average, open_files, write_average
from tools._adapter_files import tool_parser
from tools._adapter_outputs import add_output, output_problems, tell


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; all that is wrong with it in one ConfigError."""
    parser = tool_parser("average_lora.py", __doc__)
    parser.add_argument("files", nargs="+", type=Path, help="two or more adapter files of one run")
    add_output(parser)
    parser.add_argument(
        "--weights", type=float, nargs="+", help="one for each file, above 0; equal if not given"
    )
    parser.add_argument(
        "--force", action="store_true", help="also files that do not say that they are of one run"
    )
    options = parser.parse_args(argv)
    options.weights = options.weights or [1.0] * len(options.files)
    if found := problems(options):
        raise ConfigError(found)
    return options


def problems(options: argparse.Namespace) -> list[Problem]:
    """What is wrong between the arguments, and with the place of the output."""
    found = []
    real = [os.path.realpath(file) for file in options.files]
    if len(real) < 2:
        found.append(Problem("expected two files or more.", "files"))
    for file in sorted({str(f) for f, name in zip(options.files, real) if real.count(name) > 1}):
        found.append(Problem("is given more than once. Give it a larger weight.", file))
    if len(options.weights) != len(options.files):
        message = (
            f"{len(options.weights)} numbers for {len(options.files)} files. Give one for each."
        )
        found.append(Problem(message, "--weights"))
    if not all(0 < weight < math.inf for weight in options.weights):
        found.append(Problem("expected numbers above 0.", "--weights"))
    found += output_problems(options.output, (), overwrite=options.overwrite)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if argv is None else argv)
    files = open_files(options.files, any_run=options.force)
    made = average(files, options.weights)
    if not options.dry_run:
        write_average(options.output, made)
    rows = zip(files, options.weights, made.distances)
    told = [f"{f.path}: weight {w:g}, {apart:.1%} away from the average" for f, w, apart in rows]
    tell(told, options)


if __name__ == "__main__":
    run_main(main)
