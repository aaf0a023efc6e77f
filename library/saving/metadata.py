"""What an exported file says of its making: sd-scripts' ss_* keys and Stability's modelspec.* keys.

Values are strings, since safetensors holds nothing else. Base models are hashed in a thread while the
inputs are prepared; the first save waits for it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from PIL import Image

from library.data.data_types import RunPosition
from library.errors import ConfigError, ModelFileError, Problem
from library.saving.metadata_table import MINIMUM, RunFacts, entries_of, text, timestamp
from library.settings.flags.metadata import NO_THUMBNAIL, MetadataOptions
from library.utils import sha256_of_file

LARGEST_THUMBNAIL = 4_000_000  # bytes; readers take no header beyond 100 MB
SESSION_KEYS = ("ss_session_id", "ss_training_started_at", "modelspec.date")


class FileHashes:
    """sha256 of large files, computed beside the run from `start` or the first question on.

    A run that ends does not wait for it.
    """

    def __init__(
        self, paths: Mapping[str, str | None], hash_file: Callable[[str], str] = sha256_of_file
    ) -> None:
        self.hash_file = hash_file
        self.files = {r: path for r, path in paths.items() if path and os.path.isfile(path)}
        self.pending: dict[str, Future[str]] = {role: Future() for role in self.files}
        self.is_started = False

    def start(self) -> None:
        if not self.is_started:
            self.is_started = True
            threading.Thread(target=self.compute, name="hash", daemon=True).start()

    def compute(self) -> None:
        for role, path in self.files.items():
            try:
                self.pending[role].set_result(self.hash_file(path))
            except Exception as error:  # noqa: BLE001  whoever asks gets it
                self.pending[role].set_exception(error)

    def get(self, role: str) -> str | None:
        """The hexadecimal digest, waiting for it if need be; None for a folder or no file."""
        if role not in self.pending:
            return None
        self.start()
        with reading(self.files[role]):
            return self.pending[role].result()


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """While inside: a base model that cannot be read any more is told with its name."""
    try:
        yield
    except OSError as error:
        message = f"cannot be read any more ({error.strerror}). Bring it back, then start again."
        raise ModelFileError(message, source=str(path)) from error


def legacy_hash(path: str | Path) -> str:
    """The 8 digits by which older tools know a checkpoint: sha256 of 64 KiB from 1 MiB on."""
    with reading(path), open(path, "rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def modelspec(
    options: MetadataOptions, *, title: str, resolution: tuple[int, int]
) -> dict[str, str]:
    """The modelspec.* entries the user and the data give (Stability's model metadata, 1.0.1).

    Architecture and implementation are the family's to add.
    """
    entries = {
        "sai_model_spec": "1.0.1",
        "title": options.metadata_title or title,
        "resolution": f"{resolution[0]}x{resolution[1]}",
        "date": datetime.now(timezone.utc).replace(microsecond=0).isoformat(),
        "author": options.metadata_author,
        "description": options.metadata_description,
        "license": options.metadata_license,
        "tags": options.metadata_tags,
        "usage_hint": options.metadata_usage_hint,
        "trigger_phrase": options.metadata_trigger_phrase,
        "merged_from": options.metadata_merged_from,
        "preprocessor": options.metadata_preprocessor,
        "is_negative_embedding": options.metadata_is_negative_embedding,
        "thumbnail": thumbnail(options.metadata_thumbnail),
    }
    return {
        f"modelspec.{name}": text(value) for name, value in entries.items() if value is not None
    }


def thumbnail(value: str | None) -> str | None:
    """A picture, or a data: URL of one, as a data: URL. Raises ConfigError for what is neither."""
    if value is None or value == NO_THUMBNAIL:
        return None
    header, _, encoded = value.partition(",")
    try:
        if header.startswith("data:"):
            content = base64.b64decode(encoded, validate=True)
        else:
            content = Path(value).read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            picture.verify()
            kind = Image.MIME[picture.format or ""]
    except (OSError, ValueError, SyntaxError, KeyError, Image.DecompressionBombError) as error:
        message = "expected a picture file or a data: URL of one, in base64."
        raise ConfigError(Problem(message, f"metadata_thumbnail = {value[:60]}")) from error
    if len(content) > LARGEST_THUMBNAIL:
        message = (
            f"has {len(content) / 1e6:.0f} MB, which every file would carry; a picture of at most "
        )
        message += f"{LARGEST_THUMBNAIL / 1e6:.0f} MB is taken, and 256 x 256 pixels are usual."
        raise ConfigError(Problem(message, f"metadata_thumbnail = {value[:60]}"))
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


class RunMetadata:
    """The metadata of a run's files: what is known at its start, and how far it has come."""

    def __init__(
        self,
        entries: Mapping[str, str],
        minimal: bool,
        late: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """entries: from start_entries and the family; minimal: --no_metadata.

        late: gives those that take long to find; asked once, for the first file that has them
        cover, an attribute: gives a picture for modelspec.thumbnail, as a data: URL, if there is one yet
        """
        self.entries = dict(entries)
        self.minimal = minimal
        self.cover: Callable[[], str | None] | None = None
        self.late = functools.cache(late)

    def at(self, position: RunPosition) -> dict[str, str]:
        """The metadata of a file written now."""
        if self.minimal:
            return minimum(self.entries)
        picture = self.cover() if self.cover else None
        return {
            **self.entries,
            **self.late(),
            **({"modelspec.thumbnail": picture} if picture else {}),
            "ss_steps": text(position.step),
            "ss_epoch": text(position.epoch + 1),
            "ss_training_finished_at": timestamp(),
        }


def of_session(entries: Mapping[str, str]) -> dict[str, str]:
    """What tells one run from another of the same settings; a resumed run keeps it."""
    return {key: entries[key] for key in SESSION_KEYS if key in entries}


def minimum(metadata: Mapping[str, str]) -> dict[str, str]:
    """What --no_metadata leaves: the entries without which other tools cannot use the file.

    Among them is modelspec.*, as in sd-scripts: programs tell the kind of file by it. Its date is not:
    the same settings shall give the same bytes, whenever they run.
    """
    kept = {f"ss_{name}" for name in MINIMUM}
    return {
        key: value
        for key, value in metadata.items()
        if key in kept or key.startswith("modelspec.") and key not in SESSION_KEYS
    }


def start_entries(run: RunFacts) -> dict[str, str]:
    """What is known of a run before its first step."""
    cfg, resolution = run.cfg, run.catalogue.group.datasets[0].resolution
    title = cfg.save.output_name or "last"
    return {
        **entries_of(run),
        **modelspec(cfg.metadata, title=title, resolution=resolution),
    }
