"""What processes that were killed left in a folder: told by its names from what a process still writes."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection
from pathlib import Path

from library.system.files import remove_file, remove_folder
from library.system.run_lock import started

logger = logging.getLogger(__name__)

OLD_AFTER = 3600.0  # seconds: no write takes that long
ATOMIC_WRITE_NAME = re.compile(r"\.(.+)\.(\d+)\.[0-9a-f]{8}\.tmp")
NAME_LENGTH = 40  # letters of a file's name that its temporary one begins with
SAFETENSORS_TEMPORARY_NAME = re.compile(r"\.tmp\w{6}")


def is_old(path: Path) -> bool:
    """Whether nothing was written to a file, or into a folder, for so long that nothing will be."""
    try:
        inside = list(path.iterdir()) if path.is_dir() else []
        newest = max(each.stat().st_mtime for each in (path, *inside))
    except OSError:
        return False  # finished, or removed by another process
    return time.time() - newest > OLD_AFTER


def is_left(path: Path, process: int) -> bool:
    """Whether what a process of this computer was writing will never be finished."""
    return started(process) is None or is_old(path)


def remove(path: Path) -> bool:
    return remove_folder(path) if path.is_dir() else remove_file(path)


def clear_temporary(folder: Path, names: Collection[str]) -> None:
    """Delete the unfinished adapter files of earlier runs of these names, which this run has claimed."""
    own = re.compile(rf"({'|'.join(map(re.escape, names))})(-step\d+|-\d+)?(-ema)?(-universal)?\.safetensors")
    for path in folder.iterdir() if folder.is_dir() else ():
        if found := ATOMIC_WRITE_NAME.fullmatch(path.name):
            name, process = found[1], int(found[2])
            is_ours = own.fullmatch(name) and is_left(path, process)
            is_cut = len(name) == NAME_LENGTH and name.startswith(
                tuple(n[:NAME_LENGTH] for n in names)
            )
            is_over = is_ours or (is_cut and is_old(path))
        else:
            is_over = SAFETENSORS_TEMPORARY_NAME.fullmatch(path.name) and is_old(path) and is_tensors(path)
        if is_over and remove(path):
            logger.info("removed %s, left by a run that was killed", path)


def is_tensors(path: Path) -> bool:
    """Whether a file begins as safetensors files do; other programs have names like theirs."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError:
        return False
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 2**27
