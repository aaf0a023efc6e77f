"""The standard streams of a program, such that nothing it says can fail or end it.

Standard library only: the tools that install everything else start with it.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

READER_GONE = (errno.EPIPE, errno.EINVAL)  # the second is what Windows says


class Outlet:
    """A text stream that takes everything. What it was is behind it, for all but writing.

    A closed terminal, or a `tee` that Ctrl-C ended first, shall not end a run before it is saved.
    """

    def __init__(self, stream: Any, what: str) -> None:
        self.stream, self.what = stream, what

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self.outliving(self.stream.write, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self.outliving(self.stream.flush)

    def outliving(self, function: Callable[..., object], *arguments: str) -> None:
        """What cannot be written is not an error; from then on nothing is written."""
        if self.stream.closed:
            return
        try:
            function(*arguments)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            if error.errno not in READER_GONE and self is not sys.stderr:
                print(f"{self.what} cannot be written from here on: {error}", file=sys.stderr)


def secure() -> None:
    """Make standard output and error take everything; called once, where a program starts.

    Letters that the console's encoding lacks are shown as escapes. A stream that is not there, as
    under pythonw, swallows what it is given.
    """
    for name, what in (("stdout", "standard output"), ("stderr", "standard error")):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  as long as the program
        if isinstance(stream, Outlet):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Outlet(stream, what))
