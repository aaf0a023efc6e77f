"""Reporter: fills a run's record from where its values already pass, serves it, and writes the report.

What it does for a page never ends a run: files that cannot be written are a warning.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from library.errors import Problem, in_one_line
from library.reporting import settings, told
from library.reporting.index import REPORT, SUMMARY, summary, write_index
from library.reporting.page import page
from library.reporting.record import FORMAT, Outline, RunRecord
from library.reporting.server import HOST, LiveServer, Source, check_port, start
from library.reporting.stage_times import StageTimes
from library.reporting.strength import measure, places_of
from library.reporting.thumbnails import Picture, thumbnail
from library.saving.checkpoints import output_name
from library.system.program import is_first_process
from library.utils import atomic_write
from library.watching.picture_ledger import COLUMNS

if TYPE_CHECKING:
    from library.data.catalogue import Catalogue
    from library.data.data_types import RunPosition
    from library.saving.run_files import RunFiles
    from library.settings.run_config import TrainConfig
    from library.train_util import StepPlan
    from library.watching.progress import RunProgress
    from library.watching.step_logs import StepRow
    from networks.trained import Trained

logger = logging.getLogger(__name__)

BUCKETS = ("dataset", "width", "height", "pictures", "with repeats", "batches")
MEASUREMENTS = 24
"""How often in a run the adapters' strength is measured, beside at every saved file."""
ELSEWHERE = ("SSH_CONNECTION", "SSH_TTY", "JPY_PARENT_PID", "COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE")
"""Variables of places whose user sits at another computer."""


def check_page(cfg: TrainConfig) -> list[Problem]:
    """What keeps the live page from being served as asked."""
    return check_port(cfg.page.port) if cfg.page.is_live else []


class Reporter:
    """What the record of a run, its live page and its report need of the run.

    Enter it around the whole run. `begin`, `watch` and `follow` are called by the run's stages as what
    they take comes to be; without a page or a report, and in all processes but the first, nothing happens.

    times:  of the run's stages
    record: what the pages show; the door for tables is its `add_table`
    """

    def __init__(self, cfg: TrainConfig) -> None:
        assert cfg.save.output_dir, "a run has an output_dir: its options were checked"
        self.options, self.folder = cfg.page, Path(cfg.save.output_dir)
        self.name = output_name(cfg.save, "last")
        self.times = StageTimes()
        self.record = RunRecord(self.times)
        self.is_on = (cfg.page.is_live or cfg.page.writes_report) and is_first_process(os.environ)
        self.network: Trained | None = None
        self.files: RunFiles | None = None
        self.server: LiveServer | None = None
        self.listener: told.Listener | None = None
        self.measured = 0

    @property
    def report(self) -> Path:
        return self.folder / f"{self.name}{REPORT}"

    def __enter__(self) -> None:
        if self.is_on:
            self.listener = told.listen(self.record.add_note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """The report of a run that trained, however it ended; then the live page says so too."""
        if self.listener is None:
            return
        told.stop(self.listener)
        if error is not None:
            is_stop = isinstance(error, KeyboardInterrupt)
            words = str(error) or type(error).__name__
            self.record.end("stopped" if is_stop else "failed", words)
        if self.record.recent:
            self.write(is_last=True)
        if self.server:
            self.server.close()

    def begin(
        self, plan: StepPlan, catalogue: Catalogue, groups: Sequence[Any], position: RunPosition
    ) -> None:
        """The length of the run and its pictures are known; groups: all its options."""
        if not self.is_on:
            return
        outline = Outline(
            name=self.name,
            began=self.record.outline.began,
            first_step=position.step,
            total_steps=plan.total_steps,
            steps_per_epoch=plan.steps_per_epoch,
            epochs=plan.epochs,
            options=settings.rows_of(groups),
        )
        self.record.begin(outline)
        self.record.add_table("buckets", BUCKETS, bucket_rows(catalogue))
        if self.options.is_live and self.listener:
            source = Source(self.record, self.folder, lambda: position.step)
            self.server = start(self.options.port, source)
            for line in invitation(self.server.address, self.server.server_port, os.environ):
                logger.info("%s", line)

    def watch(
        self, progress: RunProgress, network: Trained, facts: Mapping[str, str]
    ) -> None:
        """From here on values pass. facts: of the run, in words."""
        if not self.is_on:
            return
        self.network = network
        self.record.places = places_of(network.paths())
        self.record.begin(replace(self.record.outline, facts=tuple(facts.items())))
        progress.readers.append(self.hear_rows)
        progress.trackers.listener = self.record.add_values

    def follow(self, files: RunFiles, kept: Mapping[str, Any] | None) -> None:
        """Hear of saved files; go on in the record of the state that the run goes on from.

        kept: what the state holds of it, empty where it holds none; None: there is no state
        """
        if not self.is_on:
            return
        self.files, files.on_export, files.on_saved = files, self.hear_export, self.hear_saved
        files.record = self.record.kept
        first = self.record.outline.first_step
        if kept and kept.get("format") == FORMAT:
            self.restore(kept)
        elif first:
            outline = self.record.outline
            earlier = f"1 - {first}"
            self.record.begin(replace(outline, earlier=earlier))

    def restore(self, kept: Mapping[str, Any]) -> None:
        try:
            self.record.restore(kept)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            logger.warning("the state's record cannot be read (%r): the report begins here.", error)
            return
        pictures = self.record.pictures
        self.record.pictures = [
            replace(picture, image=thumbnail(self.folder / picture.file)) for picture in pictures
        ]

    def hear_rows(self, rows: Sequence[StepRow]) -> None:
        """A log point: what was read of the steps since the last one."""
        for row in rows:
            self.record.add_samples(row.step, row.samples)
        step = rows[-1].step
        self.record.add_progress(step, self.times.clock())
        interval = max(1, self.record.outline.total_steps // MEASUREMENTS)
        if step - self.measured >= interval:
            self.measure(step)

    def hear_saved(self, seconds: float) -> None:
        """A file and its state were written, which took so long; the report beside them is of that step."""
        self.times.add("save", seconds)
        self.write()

    def hear_export(self, step: int, file: Path) -> None:
        """An adapter file was written; what is noted of it is part of the state that goes with it."""
        self.record.add_saved(step, file.name)
        if self.files and self.files.ledger_rows:
            rows = [row.cells() for row in self.files.ledger_rows]
            self.record.add_table("ledger", COLUMNS, rows)
        self.measure(step)

    def measure(self, step: int) -> None:
        """The adapters' strength, once for a step."""
        if self.network and (self.measured != step or not self.record.strengths):
            self.record.add_strengths(measure(self.network.changes(), step))
            self.measured = step

    def add_picture(self, step: int, number: int, prompt: str, seed: int, path: Path) -> None:
        """Show a preview. number: of its prompt, from 0."""
        file = os.path.relpath(path, self.folder)
        if self.is_on and all(file != each.file for each in self.record.pictures):
            self.record.add_picture(Picture(step, number, prompt, seed, file, thumbnail(path)))

    def end(self, words: str) -> None:
        """The run ended as it should; words: its last."""
        is_done = self.record.step >= self.record.outline.total_steps
        self.record.end("done" if is_done else "stopped", words)

    def write(self, *, is_last: bool = False) -> None:
        """The report as of now, whole or not at all; and with the last one, the index of the folder."""
        if not self.options.writes_report:
            return
        try:
            document = self.record.document()
            blocks = {SUMMARY: summary(document), "record": document}
            with atomic_write(self.report, sync=is_last) as temporary:
                temporary.write_text(page(self.name, "run.js", blocks), encoding="utf-8")
            if is_last:
                logger.info("report: %s", self.report)
                write_index(self.folder)
        except Exception as error:  # noqa: BLE001  whatever it is, the weights are what counts
            reason = in_one_line(error)
            logger.warning("%s: the report could not be written (%s).", self.report, reason)


def bucket_rows(catalogue: Catalogue) -> list[tuple[int, ...]]:
    """A row of `BUCKETS` for each bucket."""
    return [
        (
            dataset,
            *bucket,
            len(indices),
            sum(catalogue.images[index].repeats for index in indices),
            catalogue.count_batches(indices),
        )
        for (dataset, bucket), indices in catalogue.buckets().items()
    ]


def invitation(address: str, port: int, environment: Mapping[str, str]) -> list[str]:
    """Lines that tell where the live page is, and how to see it from another computer."""
    lines = [f"live page: {address}"]
    if any(environment.get(name) for name in ELSEWHERE):
        tunnel = f"ssh -N -L {port}:{HOST}:{port} USER@THIS_MACHINE"
        lines.append(f"From your own computer: {tunnel}   then open that address there.")
    return lines
