"""RunRecord: what the page of a run shows, as data, and what changed since a reader last looked.

Filled at log points by the thread that trains, read by the threads that serve the page. Filling it costs
some dictionary entries; whatever takes longer (JSON, HTML) is the reader's work.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from library.reporting.series import Series, rounded
from library.reporting.stage_times import StageTimes
from library.reporting.thumbnails import Picture, within
from library.watching.step_logs import StepSamples
from library.watching.validation import QUARTERS

FORMAT = "training_record/v1"
ALERT = "alert/"
MOST_NOTES, MOST_ALERTS, MOST_ROWS = 400, 400, 5000
CHANGES_KEPT = 2000
MEASUREMENTS = 60
"""Of the adapters' strength: when there are twice as many, every other one goes."""
RECENT = 24
"""Log points whose speed tells the time that is left."""
TRAINING = "run_epochs"
"""The stage whose own time is that of the steps."""
QUARTER_NAMES = [f"loss/sigma_{name}" for name in QUARTERS]


@dataclass(frozen=True)
class Note:
    """Something that was told. time: seconds since 1970; level: a logging level's name."""

    time: float
    step: int
    level: str
    text: str


@dataclass(frozen=True)
class Table:
    """Rows under columns. values: numbers, texts and None."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[float | str | None]]


@dataclass(frozen=True)
class Strengths:
    """The Frobenius norms of the adapters' weight differences at a step, in one fixed order."""

    step: int
    norms: Sequence[float | None]


@dataclass
class Outline:
    """What is known of a run from its beginning.

    began:   seconds since 1970
    options: rows of name, value and default as text, and whether the two differ
    earlier: where the steps before `first_step` are told of, when they are not in this record
    """

    name: str = ""
    began: float = 0.0
    first_step: int = 0
    total_steps: int = 0
    steps_per_epoch: int = 1
    epochs: int = 0
    facts: Sequence[tuple[str, str]] = ()
    options: Sequence[Sequence[str | bool]] = ()
    earlier: str = ""


class RunRecord:
    """Everything the page shows.

    status:  preparing, running, done, stopped or failed
    ended:   the run's last words
    places:  the adapters in the order of every `Strengths`: (block, kind of layer)
    version: counts the changes; `changes_since` gives those after one
    """

    def __init__(self, times: StageTimes | None = None) -> None:
        self.outline = Outline()
        self.times = times or StageTimes()
        self.lock = threading.Condition()
        self.step = 0
        self.status, self.ended = "preparing", ""
        self.series: dict[str, Series] = {}
        self.notes: list[Note] = []
        self.alerts: list[tuple[int, str]] = []
        self.tables: dict[str, Table] = {}
        self.pictures: list[Picture] = []
        self.places: list[tuple[str, str]] = []
        self.strengths: list[Strengths] = []
        self.saved: list[tuple[int, str]] = []
        self.version = 0
        self.changes: deque[dict[str, Any]] = deque(maxlen=CHANGES_KEPT)
        self.is_watched = False
        self.recent: deque[tuple[float, int]] = deque(maxlen=RECENT)  # (clock, step) of log points
        self.trained = (0.0, 0)  # seconds of steps alone, until which step

    def change(self, kind: str, value: object) -> None:
        """Count a change, and keep it for readers; called with the lock held."""
        self.version += 1
        if self.is_watched:
            self.changes.append({kind: value})
            self.lock.notify_all()

    def begin(self, outline: Outline) -> None:
        with self.lock:
            self.outline = replace(outline, began=outline.began or time.time())
            self.step = max(self.step, outline.first_step)
            self.change("outline", asdict(self.outline))

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        """One step's numbers by log key; what is not finite leaves a gap."""
        with self.lock:
            for name, value in values.items():
                if not name.startswith(ALERT):
                    self._series(name).add(step, value)
                elif value and name != f"{ALERT}any" and len(self.alerts) < MOST_ALERTS:
                    self.alerts.append((step, name.removeprefix(ALERT)))
                    self.change("alert", self.alerts[-1])
            self.change("values", (step, dict(values)))

    def add_samples(self, step: int, samples: StepSamples) -> None:
        """The mean loss of one step's samples in each quarter of [0, 1] that they fall into."""
        found: dict[str, list[float]] = {}
        for sigma, loss in zip(samples.sigmas, samples.losses):
            if math.isfinite(loss) and math.isfinite(sigma):
                number = min(max(int(sigma * len(QUARTERS)), 0), len(QUARTERS) - 1)
                found.setdefault(QUARTER_NAMES[number], []).append(loss)
        if found:
            self.add_values(step, {name: sum(x) / len(x) for name, x in found.items()})

    def add_progress(self, step: int, now: float) -> None:
        """A log point was reached; the speed since the last one. now: seconds of the stages' clock."""
        training, (seconds, before) = self.times.read().get(TRAINING, 0.0), self.trained
        self.trained = training, step
        if self.recent and step > before:
            self.add_values(step, {"time/step": (training - seconds) / (step - before)})
        self.step, self.status = step, "running"
        self.recent.append((now, step))

    def add_note(self, level: str, text: str) -> None:
        """A warning or an alert, as it was told."""
        note = Note(time.time(), self.step, level, text)
        with self.lock:
            if len(self.notes) < MOST_NOTES:
                self.notes.append(note)
                self.change("note", asdict(note))

    def add_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table, in place of an earlier one of this name.

        The door for whoever has rows to show: the order of `add_table` is that of the page. Values are
        numbers, texts or None; what is not finite shows as nothing. A page holds the first 5000 rows.
        """
        clean = [tuple(map(cell, row)) for row in rows[:MOST_ROWS]]
        table = Table(name, tuple(columns), clean)
        with self.lock:
            self.tables[name] = table
            self.change("table", asdict(table))

    def add_picture(self, picture: Picture) -> None:
        with self.lock:
            self.pictures.append(picture)
            self.change("picture", asdict(picture))

    def add_strengths(self, strengths: Strengths) -> None:
        """In the order of `places`."""
        shown = replace(strengths, norms=[rounded(norm) for norm in strengths.norms])
        with self.lock:
            if self.strengths and self.strengths[-1].step == shown.step:
                return
            self.strengths.append(shown)
            if len(self.strengths) >= 2 * MEASUREMENTS:
                self.strengths = self.strengths[1::2]
            self.change("strength", asdict(shown))

    def add_saved(self, step: int, file: str) -> None:
        with self.lock:
            self.saved.append((step, file))
            self.change("saved", (step, file))

    def end(self, status: str, words: str) -> None:
        """status: done, stopped or failed; words: what the run says last."""
        with self.lock:
            self.status, self.ended = status, words
            self.change("end", {"status": status, "ended": words, **self.stages()})

    def moment(self, step: int) -> dict[str, Any]:
        """What moves between log points. step: updates done."""
        return {
            "step": max(step, self.step),
            "status": self.status,
            "stage": self.times.current,
            "seconds_left": self.seconds_left(step),
        }

    def seconds_left(self, step: int) -> float | None:
        """By the speed of the last log points, whatever took the time; None while none is known."""
        if len(self.recent) < 2 or self.status != "running":
            return None
        (first, begun), (last, done) = self.recent[0], self.recent[-1]
        left = self.outline.total_steps - max(step, done)
        return rounded(left * (last - first) / (done - begun)) if done > begun else None

    def stages(self) -> dict[str, Any]:
        """Pairs of stage and seconds."""
        return {"stages": [(n, round(s, 2)) for n, s in self.times.read().items()]}

    def document(self) -> dict[str, Any]:
        """All of it for the page, as JSON has it."""
        with self.lock:
            return {
                "format": FORMAT,
                "version": self.version,
                "written": time.time(),
                "outline": asdict(self.outline),
                **self.moment(self.step),
                **self.stages(),
                "ended": self.ended,
                "series": {name: series.shown() for name, series in self.series.items()},
                "notes": [asdict(note) for note in self.notes],
                "alerts": list(self.alerts),
                "tables": [asdict(table) for table in self.tables.values()],
                "pictures": [asdict(picture) for picture in within(self.pictures)],
                "places": list(self.places),
                "strengths": [asdict(each) for each in self.strengths],
                "saved": list(self.saved),
            }

    def changes_since(self, version: int, seconds: float) -> tuple[int, list[dict[str, Any]] | None]:
        """(version now, the changes after one); waits so long for one. None: too many to have been kept."""
        with self.lock:
            if self.version == version:
                self.lock.wait(seconds)
            count, now = self.version - version, self.version
            if count < 0 or count > len(self.changes):
                return now, None
            changes = list(self.changes)[len(self.changes) - count :]
        return now, [shown_change(change) for change in changes]

    def kept(self) -> dict[str, Any]:
        """What a state keeps, so that the run that goes on from it goes on in the same record."""
        with self.lock:
            return {
                "format": FORMAT,
                "began": self.outline.began,
                "series": {name: series.kept() for name, series in self.series.items()},
                "notes": [asdict(note) for note in self.notes],
                "alerts": list(self.alerts),
                "pictures": [asdict(replace(picture, image="")) for picture in self.pictures],
                "places": list(self.places),
                "strengths": [asdict(each) for each in self.strengths],
                "saved": list(self.saved),
                "seconds": self.times.read(),
            }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """The opposite of `kept`; what was told since this run started comes after it.

        Raises KeyError, TypeError, ValueError or AttributeError for anything else, and changes nothing.
        """
        began = float(kept["began"])
        series = {str(name): Series.restored(each) for name, each in kept["series"].items()}
        notes = [Note(**note) for note in kept["notes"]]
        alerts = [(int(step), str(kind)) for step, kind in kept["alerts"]]
        pictures = [Picture(**picture) for picture in kept["pictures"]]
        saved = [(int(step), str(file)) for step, file in kept["saved"]]
        places = [(block, kind) for block, kind in kept["places"]]
        strengths = [Strengths(**each) for each in kept["strengths"]]
        seconds = {str(stage): float(each) for stage, each in kept["seconds"].items()}
        with self.lock:
            self.outline.began = began
            self.series, self.notes = series, [*notes, *self.notes]
            self.alerts, self.pictures, self.saved = alerts, pictures, saved
            if places == self.places:
                self.strengths = strengths
            for stage, each in seconds.items():
                self.times.seconds[stage] = self.times.seconds.get(stage, 0.0) + each
            self.changes.clear()
            self.version += 1

    def _series(self, name: str) -> Series:
        if name not in self.series:
            self.series[name] = Series()
        return self.series[name]


def shown_change(change: dict[str, Any]) -> dict[str, Any]:
    """A change as a page takes it: numbers rounded, without what alerts have of their own."""
    if "values" not in change:
        return change
    step, values = change["values"]
    shown = {n: rounded(value) for n, value in values.items() if not n.startswith(ALERT)}
    return {"values": (step, shown)}


def cell(value: object) -> float | str | None:
    """A table's value as JSON has it."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return rounded(value) if isinstance(value, float) else str(value)
