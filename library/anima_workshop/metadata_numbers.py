"""Numbers in metadata, whose values are texts of anybody."""

from __future__ import annotations

import math
from collections.abc import Mapping

LONGEST = 40


def number_in(metadata: Mapping[str, str], entry: str) -> float | None:
    """None where there is none, where it is no number, and for NaN and infinity."""
    text = metadata.get(entry, "")
    try:
        number = float(text) if len(text) <= LONGEST else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None
