"""What became of every key, for people to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    Finding,
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
    UNSET: "asking for nothing: empty, off, or of no use here / 未设置、关闭或在这里用不到",
}
COUNTED = [(each, each) for each in (KEPT, RENAMED, CONVERTED, LOST, UNKNOWN, SECRET)]
COUNTED += [(UNSET, "asking for nothing")]


def report(draft: Draft, program: str) -> Iterator[str]:
    """The lines: how many keys of each fate, then every key."""
    counts = [f"{len(found)} {word}" for status, word in COUNTED if (found := draft.of(status))]
    total = len(draft.findings) - len(draft.of(ADDED))
    yield f"{program}: {total} keys: {', '.join(counts)}"
    for status, title in TITLES.items():
        if not (found := draft.of(status)):
            continue
        yield f"\n{title}:"
        if status in (KEPT, UNSET):  # their names tell all
            yield from named_together(found)
        else:
            yield from (f"  {finding_line(each)}" for each in found)
    if draft.notes:
        yield "\nto know / 注意:"
        yield from (f"  {note}" for note in draft.notes)


def named_together(found: Sequence[Finding]) -> Iterator[str]:
    """The names of keys, those of one reason on one line."""
    for why in dict.fromkeys(each.why for each in found):
        names = ", ".join(each.key for each in found if each.why == why)
        yield f"  {names}: {why}" if why else f"  {names}"
