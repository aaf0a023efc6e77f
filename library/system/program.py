"""How a program of ours begins and ends, and which of a run's processes speaks."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress

from library.errors import EXIT_USER_ERROR, UserError
from library.system import console, launcher_report

EXIT_INTERRUPTED = 130
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
NOTHING_TRAINED = "Stopped before anything was trained."


def is_first_process(environment: Mapping[str, str]) -> bool:
    """Whether this is the one of a run's processes that tells, and writes, what all of them do."""
    return all(environment.get(name, "0") == "0" for name in RANKS)


def close_bars() -> None:
    """End progress bars that an error interrupted, so that it begins on a line of its own."""
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    for bar in list(getattr(bars, "_instances", ())):
        with suppress(OSError):  # nobody is there to see it
            bar.close()


def run_main(main: Callable[[], int | None]) -> None:
    """Run a program's main(): a UserError becomes its text on standard error and exit code 2.

    Of several processes with the same error one tells it.
    """
    console.secure()
    try:
        code = main() or 0
    except UserError as error:
        close_bars()
        if not error.is_cause or launcher_report.is_told_here(str(error)):
            line_end = "" if is_first_process(os.environ) else "\n"  # of the first one's bar
            print(f"{line_end}{error}", file=sys.stderr, flush=True)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt as stop:  # a run's loop takes care of itself: this is before it
        if is_first_process(os.environ):
            print(f"\n{NOTHING_TRAINED}", file=sys.stderr, flush=True)
        code = getattr(stop, "code", EXIT_INTERRUPTED)
    except Exception:
        close_bars()
        raise
    # what the program left behind; not a group of processes, whose end waits, with Python's lock, for a
    # thread of its own that may wait for that lock
    if os.environ.get("WORLD_SIZE", "1") == "1":
        gc.collect()
    gc.freeze()  # Python's end looks for garbage several times: not in all that was imported
    sys.exit(code)
