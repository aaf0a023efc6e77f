"""Look at a run without running it: what it is, what it will need, what would make it fail.

python tools/doctor.py --config_file train_args.toml --dataset_config dataset.toml [any trainer flag]

Takes the command line of anima_train_network.py; with --full, that of anima_train.py. The report is made to be pasted into a bug report:
keys and tokens are left out, the home folder is ~. Exit code 0 when the run would start, else 2.
--bundle FILE.zip also writes the report, the settings and the end of the log for a bug report: without
pictures, captions, names of users and the names that you gave to pictures, folders and the run.
参数与 anima_train_network.py 相同，加上 --full 则与 anima_train.py 相同；报告可直接贴到问题反馈里，不含密钥。--bundle FILE.zip 另外打包报告、设置和日志
末尾，供反馈问题用，不含图片、标注、用户名，也不含图片、文件夹和输出文件的名字。
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

import os
from collections.abc import Sequence

from anima_train import AnimaTrainer
from anima_train_network import AnimaNetworkTrainer, load_run
from library.anima_doctor import bundle
from library.anima_doctor import report as doctor
from library.errors import ConfigError, Problem
from library.system.program import run_main

FULL = "--full"


def report(argv: Sequence[str]) -> tuple[str, int]:
    """The report on the run of a command line, and the exit code."""
    return doctor.report(without_full(argv), load_run, trainer_of(argv))


def trainer_of(argv: Sequence[str]) -> type[AnimaNetworkTrainer]:
    """Whose run it is."""
    return AnimaTrainer if FULL in argv else AnimaNetworkTrainer


def without_full(argv: Sequence[str]) -> list[str]:
    """The command line as the trainer takes it."""
    return [word for word in argv if word != FULL]


def main() -> int:
    argv = sys.argv[1:]
    if {"--help", "-h"} & set(argv):
        print(__doc__, end="")
        return 0
    argv, file = without_bundle(argv)
    if file:
        bundle.check_target(file)
    check, text, code = doctor.examine(without_full(argv), load_run, trainer_of(argv))
    doctor.show(text)
    if file and os.environ.get("RANK", "0") == "0":
        bundle.write(check, text, file)
        print(
            f"\n{file}: look through it, then attach it to the bug report / 请先检查内容，再附到问题反馈里"
        )
    return code


def without_bundle(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """The command line without --bundle, and the file it names. Raises ConfigError without one."""
    kept, rest, file = [], list(argv), None
    while rest:
        word = rest.pop(0)
        name, _, value = word.partition("=")
        if name != "--bundle":
            kept.append(word)
            continue
        file = value or (rest.pop(0) if rest and not rest[0].startswith("--") else "")
        if not file:
            raise ConfigError(Problem("needs the name of a zip file to write.", "--bundle"))
    return kept, file


if __name__ == "__main__":
    run_main(main)
