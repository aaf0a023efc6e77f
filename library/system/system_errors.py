"""What the system's error numbers mean, and what the user can do about each cause.

Windows counts its errors in its own way (32 is EPIPE elsewhere, a file in use there): what Python
raises holds both numbers, what safetensors raises only the system's own, in its text.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from library.errors import OutputError

ON_WINDOWS = os.name == "nt"


class Cause(Enum):
    """Why a file cannot be written, and what to do then."""

    FULL = "Make room, then start again."
    FORBIDDEN = "Make it writable, or choose another folder."
    FORBIDDEN_ON_WINDOWS = (
        "Make it writable, close what has it open, let python through Windows' controlled folder "
        "access, or choose another folder."
    )
    HELD = (
        "Another program has it open: close that program, or choose another name. Virus scanners and "
        "synchronised folders do that as well."
    )
    GONE = "The folder or its drive is gone or does not answer: bring it back, or choose another."
    TOO_LONG = "The path is too long for this system: choose a shorter name, or a folder less deep."
    BAD_NAME = 'This disk takes no such name: on Windows none with < > : " / \\ | ? * in it.'
    OTHER = "Look at what is in the way, or choose another folder."


POSIX = {
    Cause.FULL: (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    Cause.FORBIDDEN: (errno.EACCES, errno.EPERM, errno.EROFS),
    Cause.HELD: (errno.EBUSY, getattr(errno, "ETXTBSY", errno.EBUSY)),
    Cause.GONE: (errno.ENOENT, errno.ESTALE, errno.ENODEV, errno.EIO),
    Cause.TOO_LONG: (errno.ENAMETOOLONG,),
    Cause.BAD_NAME: (errno.EILSEQ, errno.EINVAL),
}
# As in WinError.h. Access denied (5) is also what replacing an open file gives.
WINDOWS = {
    Cause.FULL: (39, 112, 223, 1295),  # disk full (two of them), file too large, quota
    Cause.FORBIDDEN_ON_WINDOWS: (5, 19),  # access denied, write protection
    Cause.HELD: (32, 33, 1224),  # sharing violation, lock violation, mapped by a program
    Cause.GONE: (2, 3, 15, 21, 53, 55, 59, 64, 67, 1167),  # file, path, drive, network, device
    Cause.TOO_LONG: (111, 206),
    Cause.BAD_NAME: (123, 161, 267),
}


@dataclass(frozen=True)
class SystemFault:
    """An error of the system: its number, in the numbers of Windows or not, and its words."""

    number: int
    words: str
    is_of_windows: bool

    @property
    def cause(self) -> Cause:
        table = WINDOWS if self.is_of_windows else POSIX
        return next(
            (cause for cause, numbers in table.items() if self.number in numbers), Cause.OTHER
        )

    def advice(self, path: str | Path) -> str:
        """What to do about `path`, as sentences."""
        if self.cause is Cause.FULL:
            return f"{_free_space(Path(path))}{self.cause.value}"
        return self.cause.value


def system_fault(error: BaseException, *, on_windows: bool = ON_WINDOWS) -> SystemFault | None:
    """The system's error in an OSError or in an error of safetensors; None in any other.

    on_windows: the system that the error is of, where it does not say so itself
    """
    if type(error).__name__ == "SafetensorError":
        found = re.search(r"I/O error: (.*) \(os error (\d+)\)", str(error), re.DOTALL)
        return SystemFault(int(found[2]), found[1].rstrip("."), on_windows) if found else None
    if not isinstance(error, OSError):
        return None
    words = (error.strerror or str(error)).rstrip(".")
    windows = getattr(error, "winerror", None)
    if on_windows and windows is None and error.errno == errno.EACCES:
        windows = 5  # open() gives the number of C alone
    if windows is not None:
        return SystemFault(windows, words, True)
    return SystemFault(error.errno, words, False) if error.errno is not None else None


@contextmanager
def output_errors(path: str | Path) -> Iterator[None]:
    """Turn a failure to write `path` into an OutputError that says why and what to do."""
    try:
        yield
    except Exception as error:
        fault = system_fault(error)
        if fault is None:
            raise
        message = f"cannot be written ({fault.words}). {fault.advice(path)}"
        message += " Nothing that was there has been changed."
        raise OutputError(message, source=str(path)) from error


def _free_space(path: Path) -> str:
    folder = next((each for each in path.parents if each.exists()), None)
    return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB are free there. " if folder else ""
