"""One command to the test suite, in the environment that quickstart makes.

Left out are the tests marked slow (runs of further settings that are killed and resumed), unless --all
is given, and those marked gpu, which -m gpu runs alone on a machine with a CUDA device: all others run as
on one without. More words go to pytest, such as tests/networks.
"""

import argparse
import os
import sys

from tools import _environment as environment


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tools/run_tests.py", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--no-install", action="store_true", help="use the current environment as it is"
    )
    parser.add_argument("--all", action="store_true", help="also the tests marked slow")
    args, for_pytest = parser.parse_known_args()
    files = ["requirements.txt", "tests/requirements.txt"]
    python = environment.prepare(files, install=not args.no_install)
    environment.say_device(python)
    chosen = [] if args.all else ["-m", "not slow"]
    if "-n" not in for_pytest:
        workers = min(8, (os.cpu_count() or 1) + 1)  # while one waits for a program of its own
        chosen += ["-n", str(workers), "--dist", "worksteal"]
    environment.run([python, "-m", "pytest", *chosen, *for_pytest])
    return 0


if __name__ == "__main__":
    sys.exit(environment.main_guarded(main))
