"""Check an adapter file: is it healthy, is it whole, is what it says of itself true, and who can read it?

python tools/check_lora.py FILE.safetensors [--base DIT.safetensors] [--json FILE] [--html FILE] [--overwrite]

LoRA, LoKr, LoHa, DoRA, norms and full differences, in any program's names. With the base model, sizes and
strengths are compared with its weights. Exit code: 0 healthy, 1 warnings, 3 errors; 2 what could not be
read. Nothing is changed.
检查一个 LoRA / LoKr 文件是否健康、完整，元数据是否属实，以及哪些程序能读取它；--html 生成一个带热力图的网页。
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

from library.anima_workshop.checked import look_at
from library.anima_workshop.checkup import findings_of
from library.anima_workshop.checkup_page import page_of
from library.anima_workshop.checkup_tables import document_of
from library.anima_workshop.checkup_text import text_of
from library.anima_workshop.findings import worst
from library.errors import ConfigError
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
    parser = tool_parser("check_lora.py", __doc__)
    parser.add_argument("file", type=Path, help="the adapter file")
    parser.add_argument("--base", type=Path, help="the DiT that it is for")
    add_reports(parser)
    options = parser.parse_args(argv)
    inputs = [file for file in (options.file, options.base) if file]
    if problems := list(report_problems(options, inputs)):
        raise ConfigError(problems)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if argv is None else argv)
    checked = look_at(options.file, options.base)
    findings = findings_of(checked)
    if options.json != STANDARD_OUTPUT:
        print(text_of(checked, findings, sys.stdout.encoding or "ascii"))
    if options.html:
        write_text(options.html, page_of(checked, findings).html())
    if options.json:
        write_json(options.json, document_of(checked, findings))
    for file in (options.html, options.json):
        if file and file != STANDARD_OUTPUT and options.json != STANDARD_OUTPUT:
            print(f"written: {file}")
    return worst(findings).exit_code


if __name__ == "__main__":
    run_main(main)
