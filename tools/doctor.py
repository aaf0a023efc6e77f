"""Look at a run without running it: what it is, what it will need, what would make it fail.

python tools/doctor.py --config_file train_args.toml --dataset_config dataset.toml [any trainer flag]

Takes the command line of anima_train_network.py. The report is made to be pasted into a bug report:
keys and tokens are left out, the home folder is ~. Exit code 0 when the run would start, else 2.
参数与 anima_train_network.py 相同；报告可直接贴到问题反馈里，不含密钥。
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

from collections.abc import Sequence

from anima_train_network import AnimaNetworkTrainer, load_run
from library.anima_doctor import report as doctor
from library.system.program import run_main


def report(argv: Sequence[str]) -> tuple[str, int]:
    """The report on the run of a command line, and the exit code."""
    return doctor.report(argv, load_run, AnimaNetworkTrainer)


def main() -> int:
    argv = sys.argv[1:]
    if {"--help", "-h"} & set(argv):
        print(__doc__, end="")
        return 0
    text, code = report(argv)
    doctor.show(text)
    return code


if __name__ == "__main__":
    run_main(main)
