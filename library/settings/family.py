"""Family: what messages about settings need to know of the model family whose trainer runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

ForeignMessage = Callable[[Any, str, Path], str | None]
"""(value of the TOML or JSON, or None; the text; its file) -> what a file of another program is and
what to do; None when it is not known to be one."""


@dataclass(frozen=True)
class Family:
    """What differs from family to family.

    modules:        kind of adapter -> the --network_module that trains it
    import_command: the command that makes a configuration of ours of another program's file
    """

    modules: Mapping[str, str]
    foreign_message: ForeignMessage
    import_command: Callable[[Path], str]


class FamilyOptions:
    """Base of the group of flags that a family adds to the shared ones."""

    FAMILY: ClassVar[Family]


def family_of(groups: Iterable[type]) -> Family:
    """The family one of whose groups is among these."""
    return next(group.FAMILY for group in groups if issubclass(group, FamilyOptions))
