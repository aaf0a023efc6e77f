"""The flags of the live page and the report."""

from __future__ import annotations

from dataclasses import dataclass

from library.settings.options import flag, port


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """Live page and report"""

    live: str = flag(
        "no",
        "show the run on a page of this machine while it trains; with a number: at this port, else at "
        "8765 or the next free one; its address is told at the start",
        read=port,
        alone="yes",
    )
    report: str = flag(
        "full",
        "full: <output_name>_report.html beside the weights, at each save and however the run ends",
        choices=("full", "none"),
    )

    @property
    def is_live(self) -> bool:
        return self.live != "no"

    @property
    def port(self) -> int | None:
        """The one that was asked for by number."""
        return int(self.live) if self.live.isdecimal() else None

    @property
    def writes_report(self) -> bool:
        return self.report == "full"
