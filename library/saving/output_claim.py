"""One run at a time writes the files of a name; what an earlier one left unfinished is cleared away."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from library.saving.checkpoints import output_names
from library.saving.output_checks import tried
from library.saving.state_folder import clear_leftovers
from library.system.leftovers import clear_temporary
from library.system.program import is_first_process
from library.system.run_lock import claimed, lock_file
from library.system.system_errors import output_errors
from library.utils import log_lines

if TYPE_CHECKING:
    from library.settings.flags.save import SaveOptions

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def outputs_claimed(options: SaveOptions) -> Iterator[None]:
    """While inside, no other run writes this run's files; what earlier ones left is cleared away."""
    assert options.output_dir, "a run has an output_dir: its options were checked"
    folder, names = Path(options.output_dir), output_names(options)
    with contextlib.ExitStack() as stack:
        # one process claims for all; a folder that cannot be used is told by check(), with all else
        trial = lock_file(folder, f"{max(names, key=len)}.{os.getpid()}")
        if is_first_process(os.environ) and not tried(trial, ""):
            with output_errors(folder):
                notes = stack.enter_context(claimed(folder, names))
            log_lines(logger, notes, logging.WARNING)
            clear_leftovers(folder, names)
            clear_temporary(folder, names)
        yield
