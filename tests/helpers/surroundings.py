"""What tests must not inherit from the shell, job or launcher that started them."""

import os
import re
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise

PREFIXES = ("ACCELERATE_", "TORCHEL", "HF_", "MODELSCOPE_", "TRANSFORMERS_", "WANDB_")
VARIABLES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"),
    *("MASTER_PORT", "COLUMNS", "PYTHONIOENCODING", "PYTHONWARNINGS"),
    "PYTHONDONTWRITEBYTECODE",  # else each program that a test starts compiles all anew
)


def as_usual() -> None:
    """Environment, permissions of new files and signals as those of a plain terminal; one thread.

    A tiny model is no faster with more, and several workers are much slower. Of cards only those know
    whom -m gpu chose: the others compare with bits of a CPU, and fork, which no driver survives.
    """
    for name in list(os.environ):
        if name.startswith(PREFIXES) or name in VARIABLES:
            del os.environ[name]
    os.environ["OMP_NUM_THREADS"] = "1"
    if "PYTEST_XDIST_WORKER" not in os.environ and not asks_for_cards(sys.argv):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.umask(0o022)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's children ignore it
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a script's background jobs do
        signal.signal(signal.SIGINT, signal.default_int_handler)


def asks_for_cards(argv: Sequence[str]) -> bool:
    """Whether pytest's words choose tests marked gpu."""
    chosen = [value for name, value in pairwise(argv) if name == "-m"]
    return any(re.search(r"(?<!not )\bgpu\b", each) for each in chosen)
