"""Make an adapter file smaller: fewer ranks, with the error that this costs.

python tools/resize_lora.py my_lora.safetensors --output smaller.safetensors --rank 8
       [--energy 0.95] [--error 0.1] [--to_lora] [--save_precision bf16] [--dry_run] [--overwrite]

Singular values decide what is kept. --rank is the rank of every module; --energy and --error choose as
few ranks as will do, module by module. A LoRA stays a LoRA, a LoKr a LoKr (its second matrix is cut)
unless --to_lora. Norms and what depends on the base model stay as they are. --dry_run shows the table.
缩小 LoRA / LoKr 文件：按秩、能量或误差截断奇异值，并给出每类模块的误差。--dry_run 只显示表格。
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

from library.anima_workshop.layout import open_anima_adapter
from library.anima_workshop.resizing import Resizing, report, resize
from library.device_utils import precision_dtype
from library.errors import ConfigError, Problem
from library.system.program import run_main
from networks.workshop.low_rank import RankRule
from tools._adapter_files import tool_parser
from tools._adapter_outputs import (
    add_output,
    add_precision,
    add_rule,
    output_problems,
    rule_of,
    rule_problems,
    tell,
)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; all that is wrong with it in one ConfigError."""
    parser = tool_parser("resize_lora.py", __doc__)
    parser.add_argument("file", type=Path, help="an adapter file, in any key style")
    add_rule(parser)
    parser.add_argument(
        "--to_lora", action="store_true", help="also LoKr, LoHa and full differences, as LoRA"
    )
    add_precision(parser)
    add_output(parser)
    options = parser.parse_args(argv)
    found = [
        *rule_problems(options),
        *output_problems(options.output, [options.file], overwrite=options.overwrite),
    ]
    if rule_of(options) is None:
        found.append(Problem("say how small: --rank, --energy or --error.", "command line"))
    if found:
        raise ConfigError(found)
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if argv is None else argv)
    asked = Resizing(
        rule_of(options) or RankRule(),
        options.output,
        options.to_lora,
        precision_dtype(options.save_precision) if options.save_precision else None,
        options.dry_run,
    )
    made = resize(open_anima_adapter(options.file), asked)
    tell(report(made), options)


if __name__ == "__main__":
    run_main(main)
