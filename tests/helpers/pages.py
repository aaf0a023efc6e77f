"""The contributors' pages as data: what they quote, and the rows of their tables."""

import re
from pathlib import Path

from tests.helpers.paths import ROOT

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
ARCHITECTURE, FORMATS = ROOT / "docs/architecture.md", ROOT / "docs/formats.md"


def quoted(text: str) -> list[str]:
    """What stands between backticks."""
    blocks = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", blocks.sub("", text))


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    _, _, after = page.read_text(encoding="utf-8").partition(f"# {heading}\n")
    table = re.search(r"(?:^\|.*\n)+", after, re.MULTILINE)
    assert table, f"{page.name} has no table under {heading}"
    lines = table[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def stages() -> dict[str, list[str]]:
    """The rows of the table of stages: what each reads, sets and does, in words."""
    return {quoted(name)[0]: cells for name, *cells in rows(ARCHITECTURE, "Stages")}
