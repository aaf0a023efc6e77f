"""Form: one way in which what was trained is written to a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path


class Form(ABC):
    @abstractmethod
    def write(self, file: Path, metadata: Mapping[str, str]) -> None:
        """What was trained as it was when `prepare` was called, whole or not at all."""

    @abstractmethod
    def wrong_with(self, file: Path) -> list[str]:
        """Where a file is not what `write` should have written; phrases."""

    def prepare(self) -> None:
        """Make what a file holds of what is trained as it is now."""

    def metadata(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """Of the run, as they are true of this form."""
        return dict(metadata)

    def remarks(self) -> list[str]:
        """What is said of the file at each save."""
        return []

    def left_out(self) -> str:
        """What was trained and is not in it; "" for nothing."""
        return ""
