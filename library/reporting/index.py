"""index.html: all runs of a folder side by side, made of what their reports say of themselves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from library.reporting.page import GENERATOR, blocks_of, page
from library.utils import atomic_write

logger = logging.getLogger(__name__)

INDEX = "index.html"
REPORT = "_report.html"
SUMMARY = "summary"
LARGEST = 2**19
"""Letters of a report in which its summary stands."""
CURVE = 200
"""Points of a loss curve at the most."""


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the index needs of a run. document: of its record"""
    outline, series = document["outline"], document["series"]
    curves = {
        name: thinned(series[name])
        for name in ("loss/average", "loss/validation/average")
        if name in series
    }
    return {
        "name": outline["name"],
        "began": outline["began"],
        "written": document["written"],
        "status": document["status"],
        "step": document["step"],
        "total_steps": outline["total_steps"],
        "seconds": sum(seconds for _, seconds in document["stages"]),
        "curves": curves,
        "settings": {name: value for name, value, _, differs in outline["options"] if differs},
        "warnings": len(document["notes"]),
    }


def thinned(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Evenly spread points of a series, the last one among them."""
    count = len(columns["steps"])
    stride = max(1, -(-count // CURVE))
    places = range((count - 1) % stride, count, stride)
    return {name: [columns[name][place] for place in places] for name in ("steps", "mean")}


def write_index(folder: Path) -> None:
    """Write the index where there are several reports; one that is not ours stays. Raises OSError."""
    runs = [run for file in sorted(folder.glob(f"*{REPORT}")) if (run := read_summary(file))]
    index = folder / INDEX
    if len(runs) < 2:
        return
    if index.exists() and not is_ours(index):
        logger.warning("%s is not of a trainer: it stays, and the runs are not listed there.", index)
        return
    with atomic_write(index, sync=False) as temporary:
        text = page(folder.resolve().name, "runs.js", {"runs": runs})
        temporary.write_text(text, encoding="utf-8")


def is_ours(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as opened:
        return f'content="{GENERATOR}"' in opened.read(4096)


def read_summary(file: Path) -> dict[str, Any] | None:
    """What a report says of its run, with the report's name; None for what is no report of ours."""
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            start = opened.read(LARGEST)
        if f'content="{GENERATOR}"' not in start[:4096]:
            return None
        found = next((data for name, data in blocks_of(start) if name == SUMMARY), None)
    except (OSError, ValueError, RecursionError):
        return None
    return {**found, "file": file.name} if found and is_summary(found) else None


def is_summary(value: object) -> bool:
    """Whether the page of the index can show it."""
    if not isinstance(value, dict):
        return False
    curves, settings = value.get("curves"), value.get("settings")
    if not (isinstance(curves, dict) and isinstance(settings, dict)):
        return False
    if not all(isinstance(value.get(name), (int, float)) for name in NUMBERS):
        return False
    texts = [value.get("name"), value.get("status"), *settings, *settings.values()]
    return all(isinstance(text, str) for text in texts) and all(map(is_curve, curves.values()))


NUMBERS = ("began", "written", "step", "total_steps", "seconds", "warnings")


def is_curve(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    steps, means = value.get("steps"), value.get("mean")
    return (
        isinstance(steps, list)
        and isinstance(means, list)
        and len(steps) == len(means)
        and all(isinstance(x, (int, float)) for x in steps)
        and all(x is None or isinstance(x, (int, float)) for x in means)
    )
