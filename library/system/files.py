"""Files and folders replaced, renamed and deleted, also where another program holds one open.

On Windows a virus scanner, an indexer, a synchronised folder or a program that has just loaded a file
keeps its name from being replaced or deleted, mostly for a moment: everything here asks again for
about two seconds.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
Sleep = Callable[[float], None]

PAUSES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.4, 0.5)  # seconds between the tries, two in all
HELD = (errno.EBUSY, getattr(errno, "ETXTBSY", errno.EBUSY))
# Access denied (what replacing an open file gives), sharing and lock violation, a folder not empty
# yet because a file in it is deleted only when the last program closes it, a file that is mapped.
HELD_ON_WINDOWS = (5, 32, 33, 145, 1224)


def is_held(error: BaseException | None) -> bool:
    """Whether another program may be what is in the way, so that asking again can help."""
    if not isinstance(error, OSError):
        return False
    number = getattr(error, "winerror", None)  # only there on Windows
    return error.errno in HELD if number is None else number in HELD_ON_WINDOWS


def patiently(act: Callable[[], T], sleep: Sleep = time.sleep) -> T:
    """The result of act(), tried again for about two seconds while another program is in the way."""
    for pause in PAUSES:
        try:
            return act()
        except OSError as error:
            if not is_held(error):
                raise
        sleep(pause)
    return act()


def replace_file(source: str | Path, target: str | Path) -> None:
    """Give `source` the name `target`, in place of what bears it. Raises OSError."""
    patiently(lambda: os.replace(source, target))


def rename_folder(source: str | Path, target: str | Path) -> None:
    """Give a folder another name, which nothing may bear yet. Raises OSError."""
    patiently(lambda: os.rename(source, target))


def free_name(path: Path, suffix: str = "") -> Path:
    """`path`, or the first of path-2, path-3 ... (before the suffix) that nothing bears."""
    stem, number, free = path.name.removesuffix(suffix), 2, path
    while os.path.lexists(free):
        free, number = path.with_name(f"{stem}-{number}{suffix}"), number + 1
    return free


def remove_file(path: str | Path) -> bool:
    """Delete a file; False when there is none, or when it cannot be deleted, which is a warning."""
    return _remove(lambda: os.unlink(path), path)


def remove_folder(path: str | Path) -> bool:
    """Delete a folder with all that is in it; False as with `remove_file`."""
    return _remove(lambda: shutil.rmtree(path), path)


def _remove(act: Callable[[], None], path: str | Path) -> bool:
    try:
        patiently(act)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        logger.warning(
            "%s cannot be removed (%s): delete it yourself.", path, error.strerror or error
        )
        return False
    return True
