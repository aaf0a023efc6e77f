"""Compare adapter files: how strong is each, where, in which direction, and why is one weaker?

python tools/compare_lora.py A.safetensors B.safetensors ... [--base DIT.safetensors]
       [--json FILE] [--html FILE] [--overwrite]

Files of any kind and in any program's names, in one unit: the norm of what each adds to a weight at
strength 1. The first file is what the others are compared with. With --base also in percent of the base
model's weights; DoRA and whole weights need it. Nothing is changed.
比较两个或更多 LoRA / LoKr 文件：统一单位下的强度（每层增量的范数）、方向、覆盖范围和训练设置，
并说明一个为什么比另一个弱、强度设为多少才相当。第一个文件是比较的基准。
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from library.anima_workshop.checkup_text import can_show_chinese
from library.anima_workshop.comparison import LABELS, look_at
from library.anima_workshop.comparison_findings import findings_of
from library.anima_workshop.comparison_report import data_of, page_of, text_of
from library.errors import ConfigError, Problem
from library.system.program import run_main
from tools._adapter_files import tool_parser
from tools._adapter_reports import (
    STANDARD_OUTPUT,
    add_reports,
    report_problems,
    write_json,
    write_text,
)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; all that is wrong with it in one ConfigError."""
    parser = tool_parser("compare_lora.py", __doc__)
    parser.add_argument("files", nargs="+", type=Path, help="two or more adapter files")
    parser.add_argument("--base", type=Path, help="the DiT that they are for")
    add_reports(parser)
    options = parser.parse_args(argv)
    if found := list(problems(options)):
        raise ConfigError(found)
    return options


def problems(options: argparse.Namespace) -> Iterator[Problem]:
    if not 2 <= len(options.files) <= len(LABELS):
        message = f"expected 2 to {len(LABELS)} files, got {len(options.files)}."
        yield Problem(message, "files")
    inputs = [*options.files, *([options.base] if options.base else [])]
    yield from report_problems(options, inputs)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if argv is None else argv)
    compared = look_at(options.files, options.base)
    findings = findings_of(compared)
    if options.json != STANDARD_OUTPUT:
        in_chinese = can_show_chinese(sys.stdout.encoding or "ascii")
        print(text_of(compared, findings, in_chinese=in_chinese))
    if options.html:
        write_text(options.html, page_of(compared, findings).html())
    if options.json:
        write_json(options.json, data_of(compared, findings))
    for file in (options.html, options.json):
        if file and STANDARD_OUTPUT not in (file, options.json):
            print(f"written: {file}")


if __name__ == "__main__":
    run_main(main)
