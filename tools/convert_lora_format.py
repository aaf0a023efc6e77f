"""Write an adapter file in another program's format, and say what that program will make of it.

python tools/convert_lora_format.py FILE --format universal --output OUT.safetensors
       [--rank 64 | --energy 0.99 | --error 0.05] [--drop norms ...] [--base DIT] [--save_precision bf16]

Formats: comfy (also Forge, SwarmUI, this trainer), kohya (lora_unet_), universal (all programs, LoRA
only), peft (base_model.model.), diffusers (its own names). The last three hold LoRAs of scale 1: a LoKr
or LoHa becomes a LoRA of --rank by SVD, whose error is told; norms and the like have to be left out
with --drop. Nothing is left out silently, and a file that is there stays without --overwrite.
把 LoRA / LoKr 文件改写成其他程序的格式。放不下的内容会先列出，用 --drop 才会丢弃；LoKr 转 LoRA 的误差会打印出来。
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

from library.anima_workshop.base import open_base
from library.anima_workshop.layout import open_anima_adapter
from library.anima_workshop.made_table import (
    IDLE_RULE,
    counts,
    dropped_lines,
    error_lines,
    reader_lines,
)
from library.anima_workshop.metadata import metadata_of
from library.device_utils import precision_dtype
from library.errors import ConfigError, visible
from library.system.program import run_main
from networks.workshop.converting import DROPS, Conversion, Target
from networks.workshop.spelling import SPELLINGS
from networks.workshop.spool import Spool
from tools._adapter_files import tool_parser
from tools._adapter_outputs import (
    add_output,
    add_precision,
    add_rule,
    outcome,
    output_problems,
    rule_of,
    rule_problems,
)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; all that is wrong with it in one ConfigError."""
    parser = tool_parser("convert_lora_format.py", __doc__)
    add = parser.add_argument
    add("file", type=Path, help="an adapter file in any format")
    add("--format", choices=SPELLINGS, required=True, help="of the file that is written")
    add("--drop", nargs="+", choices=DROPS, default=[], help="what may be left out")
    add("--base", type=Path, help="the DiT, for what depends on its weights")
    add_rule(parser)
    add_precision(parser)
    add_output(parser)
    options = parser.parse_args(argv)
    inputs = [options.file, *([options.base] if options.base else [])]
    found = [
        *rule_problems(options),
        *output_problems(options.output, inputs, overwrite=options.overwrite),
    ]
    if found:
        raise ConfigError(found)
    return options


def target_of(options: argparse.Namespace) -> Target:
    return Target(
        SPELLINGS[options.format],
        rule_of(options),
        precision_dtype(options.save_precision) if options.save_precision else None,
        frozenset(options.drop),
    )


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if argv is None else argv)
    base = open_base(options.base) if options.base else None
    file = open_anima_adapter(options.file, options.base)
    conversion = Conversion(file, target_of(options), base.of_module if base else None)
    with Spool(options.output.parent) as spool:
        rows = conversion.put_into(spool)
        metadata = metadata_of(file.metadata, "convert_lora_format", [options.file], rows)
        for line in [
            *counts(rows), *dropped_lines(conversion.dropped()), *error_lines(rows),
            *([IDLE_RULE] if conversion.has_idle_rule else []),
            *reader_lines(list(spool.plan), metadata),
        ]:  # fmt: skip
            print(visible(line))
        if not options.dry_run:
            spool.write(options.output, metadata)
    print(outcome(options))


if __name__ == "__main__":
    run_main(main)
