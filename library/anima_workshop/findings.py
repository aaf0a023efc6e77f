"""What is told of adapter files, in English and Chinese, and how serious it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from library.reporting.texts import Text


class Severity(IntEnum):
    """note: a fact that may be as it was meant; warning: probably not; error: does harm, or nothing."""

    NOTE = 0
    WARNING = 1
    ERROR = 2

    @property
    def exit_code(self) -> int:
        """Of a program that found it as its worst: 0, 1 or 3; 2 is for what the user wrote wrong."""
        return (0, 1, 3)[self]


SEVERITIES = {
    Severity.NOTE: Text("note", "说明"),
    Severity.WARNING: Text("warning", "警告"),
    Severity.ERROR: Text("error", "错误"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that is told. id: stable, for programs; where: keys, modules or entries it is about

    advice: what to do; None where there is nothing
    """

    id: str
    severity: Severity
    text: Text
    advice: Text | None = None
    where: tuple[str, ...] = ()


def worst(findings: Iterable[Finding]) -> Severity:
    """Of no findings it is a note."""
    return max((finding.severity for finding in findings), default=Severity.NOTE)
