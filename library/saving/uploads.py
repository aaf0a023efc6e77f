"""Copies of what a run saves, sent to a repository: at once, or beside the training.

Nothing depends on them: what fails is told, stays where it was written, and is tried again at the end.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from library.saving.hub import Repository, reason_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Upload:
    """What was saved together, and goes into one commit. places: files, and folders of states"""

    step: int
    places: tuple[Path, ...]

    @property
    def name(self) -> str:
        return self.places[0].name

    def files(self) -> Iterator[tuple[str, Path]]:
        """(name in the repository's folder, file) of all that is there."""
        for place in self.places:
            if place.is_dir():
                inside = sorted(path for path in place.rglob("*") if path.is_file())
                yield from ((path.relative_to(place.parent).as_posix(), path) for path in inside)
            elif place.is_file():
                yield place.name, place


class Uploads:
    """Sends what it is given, in order.

    repository: None: nothing is sent
    beside:     on a thread of its own, so that the training goes on meanwhile
    waiting:    what has not been tried yet
    failed:     what has, in vain
    """

    def __init__(self, repository: Repository | None, *, beside: bool) -> None:
        self.repository = repository
        self.lock = threading.Lock()
        self.waiting: list[Upload] = []
        self.failed: list[Upload] = []
        self.queue: queue.Queue[Upload | None] = queue.Queue()
        self.worker: threading.Thread | None = None
        if repository and beside:
            self.worker = threading.Thread(target=self._work, name="uploads", daemon=True)
            self.worker.start()

    def __contains__(self, place: Path) -> bool:
        """Whether a file or a folder is not there yet."""
        with self.lock:
            return any(place in upload.places for upload in self.waiting + self.failed)

    def add(self, step: int, places: Sequence[Path]) -> None:
        """Send these files and folders of a step."""
        if self.repository is None or not places:
            return
        upload = Upload(step, tuple(places))
        with self.lock:
            self.waiting.append(upload)
        if self.worker:
            self.queue.put(upload)
        else:
            self._try([upload], "It is tried again at the end of the run.")

    def close(self) -> None:
        """Wait for what is on its way, and try once more what failed."""
        if self.worker:
            with self.lock:
                left = list(self.waiting)
            if left:
                logger.info("waiting for %s, on the way to %s", _names(left), self.repository)
            self.queue.put(None)
            self.worker.join()
            self.worker = None
        if failed := list(self.failed):
            logger.info("trying again what could not be uploaded before: %s", _names(failed))
            self._try(failed, self._by_hand(failed))

    def _work(self) -> None:
        while upload := self.queue.get():
            self._try([upload], "It is tried again at the end of the run.")

    def _try(self, uploads: list[Upload], otherwise: str) -> None:
        """As one commit. otherwise: what is said of it when it fails"""
        assert self.repository is not None, "else nothing is sent"
        gone = [each for each in uploads if next(each.files(), None) is None]
        if gone:
            logger.error("%s: gone before it could be uploaded to %s.", _names(gone), self.repository)
            self._settle(gone)
            uploads = [each for each in uploads if each not in gone]
        if not uploads:
            return
        files = {self.repository.place_of(n): path for each in uploads for n, path in each.files()}
        names, folder = _names(uploads), uploads[0].places[0].parent
        try:
            self.repository.commit(files, f"step {uploads[-1].step}: {names}")
        except Exception as error:  # noqa: BLE001  an upload is never worth the run
            reason = reason_of(error, self.repository.token).rstrip(".")
            what = f"{names} could not be uploaded to {self.repository} ({reason})"
            logger.error("%s. The files stay in %s. %s", what, folder, otherwise)
            self._settle(uploads, failed=uploads)
            return
        self._settle(uploads)
        logger.info("uploaded %s to %s", names, self.repository)

    def _settle(self, tried: list[Upload], failed: Sequence[Upload] = ()) -> None:
        with self.lock:
            self.waiting = [each for each in self.waiting if each not in tried]
            self.failed = [each for each in self.failed if each not in tried] + list(failed)

    def _by_hand(self, uploads: list[Upload]) -> str:
        assert self.repository is not None, "else nothing is sent"
        lines = [
            f"  hf upload {self.repository.id} {_as_word(str(place))} "
            f"{_as_word(self.repository.place_of(place.name))} --repo-type {self.repository.kind}"
            for each in uploads
            for place in each.places
        ]
        return "\n".join(["By hand:", *lines])


def _names(uploads: list[Upload]) -> str:
    return ", ".join(each.name for each in uploads)


def _as_word(text: str) -> str:
    """For a command line, in shells of Linux and of Windows."""
    return f'"{text}"' if " " in text else text
