"""What is told to readers of two languages."""

from __future__ import annotations

from typing import NamedTuple


class Text(NamedTuple):
    """The same for readers of two languages."""

    english: str
    chinese: str

    @classmethod
    def same(cls, text: str) -> Text:
        """A name, which has no languages."""
        return cls(text, text)
