"""What a run warned of, heard where it is told: in its log."""

from __future__ import annotations

import logging
from collections.abc import Callable

from library.errors import visible


class Listener(logging.Handler):
    """Hands every warning on, as (level, text), with what a terminal would act on as escapes."""

    def __init__(self, hear: Callable[[str, str], None]) -> None:
        super().__init__(logging.WARNING)
        self.hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self.hear(record.levelname, visible(record.getMessage(), keep="\n\t"))


def listen(hear: Callable[[str, str], None]) -> Listener:
    """Listen to all loggers until `stop`."""
    listener = Listener(hear)
    logging.getLogger().addHandler(listener)
    return listener


def stop(listener: Listener) -> None:
    logging.getLogger().removeHandler(listener)
