"""Stored encoder outputs: latents of pictures, outputs of captions; in memory or on disk.

One safetensors file per item under `_cache/` beside the pictures, with a fingerprint in its header
of everything the content depends on. A file is used when its fingerprint matches and is rebuilt
otherwise; checking reads headers only.

A cached value does not depend on what was missing: pictures are encoded in batches fixed by the
catalogue. When a part of a batch is missing, the whole batch is encoded again and only the missing
items are written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from library import tensor_files
from library.data_types import ImageInfo, Layout, StoredTensor, TextOutputs
from library.errors import DatasetError, Problem
from library.images import UnreadableImage, load_pixels
from library.tensor_files import FLOATS, WHOLE, Header, TensorFileError
from library.utils import atomic_write

if TYPE_CHECKING:
    from library.dataset_scan import Catalogue
    from library.strategy_base import LatentsCachingStrategy, TextEncoderOutputsCachingStrategy

logger = logging.getLogger(__name__)
FOLDER = "_cache"
FORMAT = "1"  # raise it when the same inputs come to give another content
DECODERS = 4  # threads that decode pictures ahead of the encoder
Place = tuple[str, bool]
Item = TypeVar("Item")


class LatentsCache:
    """Latents by picture key and flip. Tensors when in memory, files read one by one when not."""

    def __init__(
        self, stored: Mapping[Place, Tensor | Path], layouts: Mapping[Place, Layout]
    ) -> None:
        self.stored = stored
        self.layouts = layouts

    def get(self, key: str, flipped: bool = False) -> Tensor:
        """(C, H, W). Raises DatasetError when its file is damaged."""
        found = self.stored[key, flipped]
        if isinstance(found, Path):
            return read_tensors(found, self.layouts[key, flipped])["latents"]
        return found


class TextCache:
    """Text encoder outputs by caption text. Tensors or files, as for latents."""

    def __init__(self, stored: Mapping[str, TextOutputs | Path], layout: Layout) -> None:
        self.stored = stored
        self.layout = layout

    def get(self, caption: str) -> TextOutputs:
        """The encoder's outputs for a caption of this run. Raises as LatentsCache.get does."""
        found = self.stored[caption]
        return read_tensors(found, self.layout) if isinstance(found, Path) else found


@dataclass(frozen=True)
class CacheFile:
    """Where an item is stored and what makes the stored file valid."""

    path: Path
    fingerprint: str


@dataclass
class Tally:
    """What became of the items."""

    reused: int = 0
    encoded: int = 0
    outdated: int = 0

    def check(self, file: CacheFile, layout: Layout, trust: bool) -> bool:
        """Whether the file can be used; counted. trust: by its name and layout alone."""
        verdict = read_header(file, layout, trust)
        self.reused += verdict == "valid"
        self.outdated += verdict == "outdated"
        return verdict == "valid"

    def report(self, what: str) -> None:
        rebuilt = f", {self.outdated} of them outdated or damaged before" if self.outdated else ""
        logger.info("%s: %d reused, %d encoded%s", what, self.reused, self.encoded, rebuilt)


@dataclass(frozen=True)
class LatentsJob:
    """One picture to encode, and its file per flip (None when kept in memory)."""

    image: ImageInfo
    files: Mapping[bool, CacheFile]

    def pixels(self) -> Tensor:
        kernel = self.image.subset.resize_interpolation
        return load_pixels(self.image.path, self.image.plan, interpolation=kernel)


def cache_latents(
    catalogue: Catalogue,
    strategy: LatentsCachingStrategy,
    *,
    to_disk: bool,
    batch_size: int,
    skip_check: bool = False,
) -> LatentsCache:
    """Encode every picture that is not stored validly, mirrored too where flips are asked for.

    Raises DatasetError naming the pictures that cannot be decoded or that give no finite latents;
    what was encoded before stays stored. A folder that cannot be written is reported first.
    """
    tally, stored, layouts = Tally(), {}, {}
    jobs = list(make_jobs(catalogue, strategy.identity))
    missing: set[Place] = set()
    for job in jobs:
        width, height = job.image.plan.bucket
        scale = strategy.downscale
        shape = (strategy.channels, height // scale, width // scale)
        for flip, file in job.files.items():
            place = (job.image.key, flip)
            stored[place], layouts[place] = file.path, {"latents": StoredTensor(shape)}
            if not to_disk or not tally.check(file, layouts[place], skip_check):
                missing.add(place)
    if to_disk and missing:
        check_writable(
            j.image.path.parent for j in jobs for f in j.files if (j.image.key, f) in missing
        )
    encoder = _LatentsEncoder(strategy, missing, stored if not to_disk else None)
    encoder.run(fixed_batches(jobs, batch_size))
    tally.encoded = len(missing)
    tally.report("latents")
    return LatentsCache(stored, layouts)


def make_jobs(catalogue: Catalogue, identity: str) -> Iterator[LatentsJob]:
    """Each picture's files. Two datasets that crop to one size differently get different files."""
    taken: dict[Path, str] = {}
    for image in catalogue.images:
        files = {}
        for flip in (False, True) if image.subset.flip_aug else (False,):
            fingerprint = latents_fingerprint(image, flip, identity)
            width, height = image.plan.bucket
            stem = f"{short_name(image.path)}_{width:04d}x{height:04d}{'_flip' if flip else ''}"
            path = image.path.parent / FOLDER / f"{stem}.safetensors"
            if taken.setdefault(path, fingerprint) != fingerprint:
                path = path.with_name(f"{stem}_{fingerprint[:8]}.safetensors")
            files[flip] = CacheFile(path, fingerprint)
        yield LatentsJob(image, files)


def short_name(picture: Path) -> str:
    """The picture's full name, so that a.png and a.jpg differ; hashed when near the system's limit."""
    name = picture.name
    return name if len(name.encode()) <= 200 else f"{_hash('name', name)}{picture.suffix}"


def latents_fingerprint(image: ImageInfo, flip: bool, identity: str) -> str:
    """Of the picture file (size and time), crop, kernel, flip and encoder."""
    stat = os.stat(image.path)
    plan = (image.plan.bucket, image.plan.resized, image.plan.crop)
    kernel = image.subset.resize_interpolation
    return _hash("latents", stat.st_size, stat.st_mtime_ns, plan, kernel, flip, identity)


def fixed_batches(jobs: Iterable[LatentsJob], batch_size: int) -> list[list[LatentsJob]]:
    """Pictures of one bucket in catalogue order; no matter which of them are missing."""
    groups: dict[tuple, list[LatentsJob]] = {}
    for job in jobs:
        groups.setdefault((job.image.plan.bucket, len(job.files)), []).append(job)
    return [
        group[start : start + batch_size]
        for group in groups.values()
        for start in range(0, len(group), batch_size)
    ]


class _LatentsEncoder:
    """Runs the batches in which something is missing."""

    def __init__(
        self,
        strategy: LatentsCachingStrategy,
        missing: set[Place],
        memory: dict[Place, Tensor] | None,
    ) -> None:
        self.strategy = strategy
        self.missing = missing
        self.memory = memory
        self.problems: list[Problem] = []

    def run(self, batches: list[list[LatentsJob]]) -> None:
        due = [batch for batch in batches if any(self.is_missing(job) for job in batch)]
        jobs = [job for batch in due for job in batch]
        with (
            ThreadPoolExecutor(DECODERS) as pool,
            tqdm(total=len(jobs), desc="caching latents", unit="picture", disable=not jobs) as bar,
        ):
            decoded = decode_ahead(pool, jobs)
            for batch in due:
                self.encode(batch, [next(decoded) for _ in batch])
                bar.update(len(batch))
        if self.problems:
            raise DatasetError(self.problems)

    def is_missing(self, job: LatentsJob) -> bool:
        return any((job.image.key, flip) in self.missing for flip in job.files)

    def encode(self, batch: list[LatentsJob], futures: list[Future[Tensor]]) -> None:
        """Encode one batch, plain and mirrored as needed. An unreadable picture spoils its batch."""
        pixels = []
        for future in futures:
            try:
                pixels.append(future.result())
            except UnreadableImage as error:
                self.problems += error.problems
        if len(pixels) < len(batch):
            return
        for flip in batch[0].files:
            if any((job.image.key, flip) in self.missing for job in batch):
                stacked = torch.stack(pixels)
                latents = self.strategy.encode(stacked.flip(-1) if flip else stacked)
                for job, latent in zip(batch, latents):
                    self.store(job, flip, latent)

    def store(self, job: LatentsJob, flip: bool, latent: Tensor) -> None:
        if (job.image.key, flip) not in self.missing:
            return
        if not torch.isfinite(latent).all():
            text = f"{job.image.path}: the VAE gives NaN or infinite latents for this picture. "
            self.problems.append(Problem(text + "Use --no_half_vae, or replace the picture."))
        elif self.memory is not None:
            self.memory[job.image.key, flip] = latent.clone()  # not a view that keeps its batch
        else:
            write_tensors(job.files[flip], {"latents": latent})


def decode_ahead(pool: ThreadPoolExecutor, jobs: list[LatentsJob]) -> Iterator[Future[Tensor]]:
    """Decoded pictures in order; at most three per thread wait, so that memory stays bounded."""
    waiting: deque[Future[Tensor]] = deque()
    for job in jobs:
        waiting.append(pool.submit(job.pixels))
        if len(waiting) > 3 * DECODERS:
            yield waiting.popleft()
    yield from waiting


def cache_text(
    captions: Mapping[str, Path],
    strategy: TextEncoderOutputsCachingStrategy,
    *,
    to_disk: bool,
    skip_check: bool = False,
) -> TextCache:
    """Encode each distinct caption once. captions: text -> the folder its file goes to.

    Stored by content: the same text is the same entry, whichever picture it belongs to. Raises
    DatasetError naming a caption without finite outputs, or a folder that cannot be written.
    """
    tally = Tally()
    files = {text: text_file(text, folder, strategy.identity) for text, folder in captions.items()}
    missing = [
        text
        for text, file in files.items()
        if not to_disk or not tally.check(file, strategy.layout, skip_check)
    ]
    if to_disk:
        check_writable(captions[text] for text in missing)
    stored = {text: file.path for text, file in files.items()}
    for text in tqdm(missing, desc="caching captions", unit="caption", disable=not missing):
        outputs = {name: t.detach().cpu().contiguous() for name, t in strategy.encode(text).items()}
        if not all(torch.isfinite(t).all() for t in outputs.values() if t.is_floating_point()):
            raise DatasetError(f"the text encoder gives NaN or infinite outputs for {text!r}.")
        if to_disk:
            write_tensors(files[text], outputs)
        else:
            stored[text] = outputs
    tally.encoded = len(missing)
    tally.report("captions")
    return TextCache(stored, strategy.layout)


def text_file(caption: str, folder: Path, identity: str) -> CacheFile:
    """Named by the text alone, so that another encoder replaces the file instead of adding one."""
    name = f"text_{_hash('text', caption)}.safetensors"
    return CacheFile(Path(folder) / FOLDER / name, _hash("text", caption, identity))


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()[:32]


def read_header(file: CacheFile, layout: Layout, trust: bool) -> str:
    """ "valid", "absent" or "outdated"; the latter also for a damaged or foreign file."""
    if not os.path.lexists(file.path):
        return "absent"
    try:
        header = tensor_files.read_header(file.path)
    except TensorFileError:
        return "outdated"
    fits = trust or header.metadata.get("fingerprint") == file.fingerprint
    return "valid" if fits and has_layout(header, layout) else "outdated"


def has_layout(header: Header, layout: Layout) -> bool:
    """Whether a file holds the named tensors, in dtypes and shapes that can be used."""
    lengths: dict[str, int] = {}
    for name, wanted in layout.items():
        found = header.entries.get(name)
        dtypes = FLOATS if wanted.below is None else WHOLE
        if found is None or found.dtype not in dtypes or len(found.shape) != len(wanted.shape):
            return False
        for length, expected in zip(found.shape, wanted.shape):
            if isinstance(expected, str):
                expected = lengths.setdefault(expected, length)
            if length != expected or not length:
                return False
    return header.entries.keys() == layout.keys()


def read_tensors(path: Path, layout: Layout) -> dict[str, Tensor]:
    """A cache file's tensors, copied: a mapped file could not be replaced on Windows."""
    try:
        header = tensor_files.read_header(path)
        if not has_layout(header, layout):
            raise TensorFileError("its tensors are of other kinds or sizes than at the start")
        tensors = tensor_files.read_tensors(path, header, layout)
        if wrong := [name for name in layout if not has_values(tensors[name], layout[name])]:
            raise TensorFileError(f"{', '.join(wrong)} holds impossible numbers")
        return tensors
    except TensorFileError as error:
        message = (
            f"{path}: the cache file cannot be used ({error}). Delete it, if it is there, and "
        )
        raise DatasetError(message + "start again: it is made anew.") from error


def has_values(tensor: Tensor, wanted: StoredTensor) -> bool:
    """Whether whole numbers are in range, since they choose rows; floats the monitor watches."""
    return wanted.below is None or bool(((tensor >= 0) & (tensor < wanted.below)).all())


def write_tensors(file: CacheFile, tensors: Mapping[str, Tensor]) -> None:
    """Store tensors with their fingerprint; the file is whole or not there."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        with atomic_write(file.path) as temporary:
            save_file(contiguous, temporary, metadata={"fingerprint": file.fingerprint})
    except (OSError, SafetensorError) as error:  # a full disk, a folder of this name
        raise DatasetError(f"{file.path}: the cache file cannot be written ({error}).") from error


def check_writable(folders: Iterable[Path]) -> None:
    """Make each folder's `_cache`. Raises DatasetError naming all that cannot be written."""
    problems = []
    for folder in dict.fromkeys(folders):
        try:
            (folder / FOLDER).mkdir(exist_ok=True)
            with atomic_write(folder / FOLDER / ".writable") as temporary:
                temporary.touch()
            (folder / FOLDER / ".writable").unlink(missing_ok=True)  # another rank may have
        except OSError as error:
            text = (
                f"{folder / FOLDER}: the cache cannot be written here ({error.strerror}). Make it "
            )
            text += "writable, or cache in memory: leave out the flags that end in _to_disk."
            problems.append(Problem(text))
    if problems:
        raise DatasetError(problems)
