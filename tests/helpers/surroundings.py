"""What tests must not inherit from the shell, job or launcher that started them."""

import os
import signal

PREFIXES = ("ACCELERATE_", "TORCHEL", "HF_", "MODELSCOPE_", "TRANSFORMERS_", "WANDB_")
VARIABLES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"),
    *("MASTER_PORT", "COLUMNS", "PYTHONIOENCODING", "PYTHONWARNINGS"),
    "PYTHONDONTWRITEBYTECODE",  # else each program that a test starts compiles all anew
)


def as_usual() -> None:
    """Environment, permissions of new files and signals as those of a plain terminal; one thread.

    A tiny model is no faster with more, and several workers are much slower.
    """
    for name in list(os.environ):
        if name.startswith(PREFIXES) or name in VARIABLES:
            del os.environ[name]
    os.environ["OMP_NUM_THREADS"] = "1"
    os.umask(0o022)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's children ignore it
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a script's background jobs do
        signal.signal(signal.SIGINT, signal.default_int_handler)
