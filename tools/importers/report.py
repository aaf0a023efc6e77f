"""What became of every key, for people to read."""

from __future__ import annotations

from collections.abc import Iterator

from tools.importers.draft import (
    ADDED,
    CONVERTED,
    KEPT,
    LOST,
    RENAMED,
    SECRET,
    UNKNOWN,
    UNSET,
    Draft,
)
from tools.importers.writing import finding_line

TITLES = {
    KEPT: "kept as they are / 原样保留",
    RENAMED: "renamed / 改名",
    CONVERTED: "converted / 换算",
    LOST: "lost / 没有对应项",
    UNKNOWN: "unknown, left out / 未知，未写入",
    SECRET: "secret, left out (--keep_secrets keeps what has a place here) / 保密，未写入",
    ADDED: "added, as that program does unasked / 按原程序的默认行为补写",
    UNSET: "not set there / 原文件未设置",
}
COUNTED = (KEPT, RENAMED, CONVERTED, LOST, UNKNOWN, SECRET, UNSET)
BRIEF = (KEPT, UNSET)  # their names tell all


def report(draft: Draft, program: str) -> Iterator[str]:
    """The lines: how many keys of each fate, then every key."""
    counts = [f"{len(found)} {status}" for status in COUNTED if (found := draft.of(status))]
    total = len(draft.findings) - len(draft.of(ADDED))
    yield f"{program}: {total} keys: {', '.join(counts)}"
    for status, title in TITLES.items():
        if not (found := draft.of(status)):
            continue
        yield f"\n{title}:"
        if status in BRIEF:
            yield f"  {', '.join(each.key for each in found)}"
        else:
            yield from (f"  {finding_line(each)}" for each in found)
    if draft.notes:
        yield "\nto know / 注意:"
        yield from (f"  {note}" for note in draft.notes)
