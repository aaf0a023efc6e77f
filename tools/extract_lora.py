"""Make an adapter file of the difference between two models: the original and one tuned from it.

python tools/extract_lora.py original.safetensors tuned.safetensors --output extracted.safetensors --rank 32
       [--energy 0.95] [--error 0.1] [--target_modules self_attn mlp norms] [--save_precision bf16]

Both are Anima's DiT with any prefix, in 32, 16 or 8 bits. Linears become LoRAs by their largest singular
values; norms and biases are kept whole; what is the same in both is not written. Extracted are the
modules that training adapts (attention, feed-forward, norms) unless --target_modules names others, by
the words of edit_lora.py. The error of each kind of module is told, and what differs and is left out.
从两个底模（原版与微调版）的差提取 LoRA：线性层按奇异值截断，归一化层和偏置原样保留，并给出误差。
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
from library.anima_workshop.choosing import read_choices
from library.anima_workshop.extracting import Extraction, extract, modules_of_both, usual_choice
from library.device_utils import precision_dtype
from library.errors import ConfigError, Problem
from library.system.program import run_main
from networks.codec import TEXT_ENCODER_PREFIXES
from networks.workshop.low_rank import RankRule
from networks.workshop.modules import Modules
from tools._adapter_files import tool_parser
from tools._adapter_outputs import (  # fmt: skip
    PRECISIONS,
    add_output,
    add_rule,
    output_problems,
    rule_of,
    rule_problems,
    tell,
)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; all that is wrong with it in one ConfigError."""
    parser = tool_parser("extract_lora.py", __doc__)
    add = parser.add_argument
    add("original", type=Path, help="the model that the other was made of")
    add("tuned", type=Path, help="the model that the file shall turn it into")
    add_rule(parser)
    add("--target_modules", nargs="+", default=[], metavar="NAME", help="what is extracted")
    add("--save_precision", choices=PRECISIONS, default="float", help="of the file; default: float")
    add_output(parser)
    options = parser.parse_args(argv)
    inputs = [options.original, options.tuned]
    found = [
        *rule_problems(options),
        *output_problems(options.output, inputs, overwrite=options.overwrite),
    ]
    if rule_of(options) is None:
        found.append(Problem("say how many ranks: --rank, --energy or --error.", "command line"))
    if found:
        raise ConfigError(found)
    return options


def read(options: argparse.Namespace, modules: Modules) -> Extraction:
    """What is asked for. Raises ConfigError for names that are of no module."""
    chosen = usual_choice(modules)
    if options.target_modules:
        paths = [path for path in modules.shapes if not path.startswith(TEXT_ENCODER_PREFIXES)]
        choices, problems = read_choices(options.target_modules, paths, modules, "--target_modules")
        if problems:
            raise ConfigError(problems)

        def chosen(path: str) -> bool:
            return any(choice(path) for choice in choices)

    dtype = precision_dtype(options.save_precision)
    return Extraction(
        rule_of(options) or RankRule(), options.output, chosen, dtype, options.dry_run
    )


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if argv is None else argv)
    original, tuned = open_base(options.original), open_base(options.tuned)
    modules = modules_of_both(original, tuned)
    tell(extract(original, tuned, modules, read(options, modules)), options)


if __name__ == "__main__":
    run_main(main)
