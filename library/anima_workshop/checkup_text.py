"""A checkup on the console: short and aligned; findings in Chinese too where the console can show it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from library.anima_doctor.page import Page
from library.anima_workshop.checked import Checked
from library.anima_workshop.checkup_tables import (
    claims_table,
    figures_of,
    numbers_table,
    parts_table,
    readers_table,
)
from library.anima_workshop.findings import SEVERITIES, Finding, worst
from library.anima_workshop.page import Cell, Table
from library.errors import visible
from library.reporting.texts import Text

PLACES = 4
"""Of a finding; the page and the JSON have more."""


def text_of(checked: Checked, findings: Sequence[Finding], encoding: str) -> str:
    """encoding: of the console"""
    page, severity = Page(), worst(findings)
    verdict = SEVERITIES[severity] if severity else Text("healthy", "健康")
    page.line(f"{checked.file.path}: {verdict.english} / {verdict.chinese}")
    page.table((name.english, shown(value)) for name, value in figures_of(checked))
    if findings:
        page.heading("Findings", "结论")
    for finding in findings:
        for line in lines_of(finding, in_chinese=can_show_chinese(encoding)):
            page.line(f"  {line}")
    put(page, parts_table(checked, checked.linears or checked.norms))
    for table in (readers_table, claims_table, numbers_table):
        put(page, table(checked))
    return visible("\n".join(page.lines), keep="\n")


def can_show_chinese(encoding: str) -> bool:
    try:
        "结论".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def lines_of(finding: Finding, *, in_chinese: bool) -> Iterator[str]:
    yield f"[{SEVERITIES[finding.severity].english}] {finding.text.english}"
    if in_chinese:
        yield f"    {finding.text.chinese}"
    if finding.advice:
        yield f"    -> {finding.advice.english}"
        if in_chinese:
            yield f"    -> {finding.advice.chinese}"
    for place in finding.where[:PLACES]:
        yield f"      {place}"
    if (more := len(finding.where) - PLACES) > 0:
        yield f"      and {more} more"


def put(page: Page, table: Table) -> None:
    if table.rows:
        page.heading(table.title.english, table.title.chinese)
        rows = [table.columns, *table.rows]
        page.table([shown(cell) for cell in row] for row in rows)


def shown(cell: Cell) -> str:
    if isinstance(cell, Text):
        return cell.english
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return "-" if cell is None else str(cell)
