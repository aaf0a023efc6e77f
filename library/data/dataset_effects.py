"""What becomes of each key of the dataset file, and of the flags that stand in for them.

A key may reach several tables: it has no effect when each of them has another value, or none makes use
of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

from library.data.dataset_config import DatasetGroupConfig, Table, Written
from library.settings.dataset_keys import KEYS
from library.settings.effects import idle_reason


def written_keys(tables: Sequence[Table]) -> tuple[Written, ...]:
    """Each key that reaches any of the tables, with those that use it."""
    found = {
        (key, entry.where): Written(key, entry.value, entry.where)
        for table in tables
        for entries in table.entries
        for key, entry in entries.items()
    }
    for table in tables:
        for reaching in table.reaching().values():
            (_, decides), *others = reaching
            found[reaching[0][0], decides.where].used.append(table)
            for key, entry in others:
                found[key, entry.where].lost.append(decides.value)
    return tuple(found.values())


def idle_keys(group: DatasetGroupConfig, options: SimpleNamespace) -> list[str]:
    """One line for each key or flag that was written and has no effect, with the reason."""
    notes = []
    for written in group.written:
        if reason := why_idle(written, group.source, options):
            name = written.where
            if not written.is_flag:
                name = f"{group.source}, {written.where.partition('  ')[0]}: {written.key}"
            notes.append(f"{name} has no effect: {reason}.")
    return notes


def why_idle(written: Written, source: str, options: SimpleNamespace) -> str | None:
    """Why a key that was written does nothing; None when it acts somewhere."""
    key = KEYS[written.key]
    asks = written.value not in (None, False, "", key.default)
    if key.ignored:
        return key.ignored if asks else None
    if written.used:
        reasons = [idle_reason(key.idle, view(t, options), asks=asks) for t in written.used]
        return reasons[0] if all(reasons) else None
    if written.value in written.lost or not written.lost or (written.is_flag and key.flag_acts):
        return None
    if written.is_flag:
        return f"{source} sets {written.key} everywhere"
    return f"what is further inside sets {written.key} everywhere"


def view(table: Table, options: SimpleNamespace) -> SimpleNamespace:
    """The options as conditions see them: a table's own values before the flags."""
    own = {**vars(table.dataset), **(vars(table.subset) if table.subset else {})}
    return SimpleNamespace(**{**vars(options), **own})
