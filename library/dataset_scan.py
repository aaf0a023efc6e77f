"""Folders to the catalogue of a run: pictures in a fixed order with captions and crop plans.

Only headers are read. Everything unusable in all folders is reported in one DatasetError; what is
usable but worth knowing becomes a note.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from library.buckets import BucketManager, Size, cropped_fraction
from library.config_util import DatasetConfig, DatasetGroupConfig, SubsetConfig
from library.data_types import ImageInfo
from library.dataset_keys import IMAGE_EXTENSIONS
from library.errors import DatasetError, Problem
from library.images import UnreadableImage, read_size

logger = logging.getLogger(__name__)
NAMES_SHOWN = 8
READERS = 8  # threads: on a cold disk the headers' seeks overlap


@dataclass(frozen=True)
class Catalogue:
    """All pictures of a run. notes: what the user should be told once."""

    images: tuple[ImageInfo, ...]
    group: DatasetGroupConfig
    notes: tuple[str, ...] = ()

    @property
    def num_samples(self) -> int:
        """Pictures x repeats: samples of one epoch."""
        return sum(image.subset.num_repeats for image in self.images)

    @property
    def num_batches(self) -> int:
        """Batches of one epoch, over all ranks."""
        return sum(self.count_batches(indices) for indices in self.buckets().values())

    def buckets(self) -> dict[tuple[int, Size], list[int]]:
        """(dataset, bucket) -> indices of its pictures, in a fixed order."""
        found = defaultdict(list)
        for index, image in enumerate(self.images):
            found[image.dataset_index, image.plan.bucket].append(index)
        return dict(sorted(found.items()))

    def count_batches(self, indices: list[int]) -> int:
        """Batches of one epoch from the pictures of one bucket; a short last one counts."""
        samples = sum(self.images[i].subset.num_repeats for i in indices)
        dataset = self.group.datasets[self.images[indices[0]].dataset_index]
        return math.ceil(samples / dataset.batch_size)

    def fingerprint(self) -> str:
        """A hash of what is trained on, 32 hex digits; the same wherever the folders lie."""
        digest = hashlib.sha256()
        for image in self.images:
            parts = (image.key, image.size, image.plan, image.caption, image.subset.num_repeats)
            digest.update(repr(parts).encode())
        digest.update(repr([dataset.batch_size for dataset in self.group.datasets]).encode())
        return digest.hexdigest()[:32]

    def describe(self) -> list[str]:
        """Lines for the log: datasets, subsets and the table of buckets."""
        lines = []
        buckets = self.buckets()
        for number, dataset in enumerate(self.group.datasets):
            images = [image for image in self.images if image.dataset_index == number]
            lines.append(_describe_dataset(number, dataset, images))
            for subset in dataset.subsets:
                count = sum(image.subset is subset for image in images)
                repeats = subset.num_repeats
                lines.append(
                    f"  {subset.image_dir}: {count} pictures x {repeats} = {count * repeats}"
                )
            for (owner, bucket), indices in buckets.items():
                if owner != number:
                    continue
                samples = sum(self.images[i].subset.num_repeats for i in indices)
                lines.append(
                    f"  bucket {bucket[0]:>4} x {bucket[1]:<4}  pictures {len(indices):>5}  with "
                    f"repeats {samples:>6}  batches {self.count_batches(indices):>5}"
                )
        return lines


def _describe_dataset(number: int, dataset: DatasetConfig, images: list[ImageInfo]) -> str:
    cropped = sum(cropped_fraction(image.plan) for image in images) / max(1, len(images))
    kind = "buckets" if dataset.enable_bucket else "one size"
    kind += " without enlarging" if dataset.enable_bucket and dataset.bucket_no_upscale else ""
    width, height = dataset.resolution
    return (
        f"dataset {number}: {width} x {height}, {kind}, batch size {dataset.batch_size}, "
        f"{len(images)} pictures, on average {cropped:.1%} cropped"
    )


@dataclass
class _Findings:
    """What comes up while scanning."""

    problems: list[Problem] = field(default_factory=list)
    uncaptioned: list[Path] = field(default_factory=list)
    class_tokens: set[str] = field(default_factory=set)
    empty: list[Path] = field(default_factory=list)
    enlarged: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Folder:
    """One subset's place in the run and its picture files."""

    dataset_index: int
    subset_index: int
    subset: SubsetConfig
    files: tuple[Path, ...]


def scan(group: DatasetGroupConfig) -> Catalogue:
    """Read every folder. Raises DatasetError with all pictures and captions that cannot be used."""
    findings = _Findings(notes=list(group.notes))
    folders = list(_list_folders(group, findings))
    sizes = _read_sizes(
        list(dict.fromkeys(f for folder in folders for f in folder.files)), findings
    )
    captions: dict[Path, str | None] = {}
    images = []
    for folder in folders:
        manager = make_bucket_manager(group.datasets[folder.dataset_index])
        for path in folder.files:
            caption_path = path.with_suffix(folder.subset.caption_extension)
            if caption_path not in captions:
                captions[caption_path] = _read_caption(caption_path, findings)
            if path in sizes:
                images.append(_image(folder, path, sizes[path], captions[caption_path], manager))
                _note_image(images[-1], findings)
    if findings.problems:
        raise DatasetError(findings.problems)
    uses = Counter(os.path.realpath(path) for folder in folders for path in folder.files)
    if shared := [Path(path) for path, count in uses.items() if count > 1]:
        findings.notes.append(f"{_count(shared)} in more than one subset: {_names(shared)}")
    return Catalogue(tuple(images), group, tuple(_notes(findings)))


def make_bucket_manager(dataset: DatasetConfig) -> BucketManager:
    return BucketManager(
        dataset.resolution,
        enable_bucket=dataset.enable_bucket,
        min_size=dataset.min_bucket_reso,
        max_size=dataset.max_bucket_reso,
        step=dataset.bucket_reso_steps,
        no_upscale=dataset.bucket_no_upscale,
    )


def natural_key(path: Path) -> tuple:
    """Sorts a2 before a10, upper and lower case together, the same on every system."""
    parts = re.split(r"(\d+)", path.name)
    return tuple((int(p), "") if p.isdecimal() else (-1, p.casefold()) for p in parts), path.name


def _list_folders(group: DatasetGroupConfig, findings: _Findings) -> Iterator[_Folder]:
    """Each subset's pictures. A folder given twice in a dataset counts once, as in sd-scripts."""
    for d, dataset in enumerate(group.datasets):
        seen: set[str] = set()
        for s, subset in enumerate(dataset.subsets):
            place = os.path.realpath(subset.image_dir)
            if place in seen:
                findings.notes.append(
                    f"{subset.image_dir}: given twice in dataset {d}; the second time is ignored"
                )
                continue
            seen.add(place)
            try:
                yield _Folder(d, s, subset, tuple(_list_images(Path(subset.image_dir))))
            except OSError as error:
                message = f"the folder cannot be read: {error.strerror}."
                findings.problems.append(Problem(message, source=subset.image_dir))


def _list_images(folder: Path) -> list[Path]:
    """The folder's pictures in natural order; hidden files (._a.png of macOS) are none."""
    found = [
        Path(entry.path)
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(IMAGE_EXTENSIONS)
        and not entry.name.startswith(".")
        and entry.is_file()
    ]
    return sorted(found, key=natural_key)


def _read_sizes(paths: list[Path], findings: _Findings) -> dict[Path, Size]:
    """Sizes of the readable pictures; the others become problems."""

    def read(path: Path) -> Size | UnreadableImage:
        try:
            return read_size(path)
        except UnreadableImage as error:
            return error

    sizes = {}
    with ThreadPoolExecutor(READERS) as pool:
        bar = tqdm(pool.map(read, paths), total=len(paths), desc="reading pictures", unit="picture")
        for path, size in zip(paths, bar):
            if isinstance(size, UnreadableImage):
                findings.problems += size.problems
            else:
                sizes[path] = size
    return sizes


def _read_caption(path: Path, findings: _Findings) -> str | None:
    """The caption file's text, None when there is none; a problem when it cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        kind = "this caption is a folder" if path.is_dir() else f"cannot be read: {error.strerror}"
        findings.problems.append(Problem(f"{path}: {kind}. Put a text file there or nothing."))
        return None
    if "\0" in text:
        message = f"{path}: the caption is not UTF-8 text. Save it as UTF-8 (Notepad: Save as, "
        message += "Encoding UTF-8; or iconv -f GB18030 -t UTF-8 when it is Chinese text in GBK)."
        findings.problems.append(Problem(message))
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _image(
    folder: _Folder, path: Path, size: Size, caption: str | None, manager: BucketManager
) -> ImageInfo:
    return ImageInfo(
        key=f"{folder.dataset_index}.{folder.subset_index}/{path.name}",
        path=path,
        size=size,
        caption=caption,
        dataset_index=folder.dataset_index,
        subset=folder.subset,
        plan=manager.plan(size),
    )


def _note_image(image: ImageInfo, findings: _Findings) -> None:
    if image.caption is None:
        findings.uncaptioned.append(image.path)
        findings.class_tokens.add(image.subset.class_tokens)
    elif not image.caption.strip():
        findings.empty.append(image.path)
    if 4 * math.prod(image.size) < math.prod(image.plan.resized):
        findings.enlarged.append(image.path)


def _notes(findings: _Findings) -> Iterator[str]:
    yield from findings.notes
    if missing := list(dict.fromkeys(findings.uncaptioned)):
        texts = sorted(repr(text) for text in findings.class_tokens if text)
        use = f"class_tokens {', '.join(texts)}" if texts else ""
        empty = "the empty caption" if "" in findings.class_tokens else ""
        used = " or ".join(part for part in (use, empty) if part)
        yield f"{_count(missing)} without a caption file, trained with {used}: {_names(missing)}"
        if other := _other_captions(missing):
            yield f"{other} files lie beside them: set caption_extension to read those"
    if empty_files := list(dict.fromkeys(findings.empty)):
        yield f"{_count(empty_files)} with an empty caption file: {_names(empty_files)}"
    if enlarged := list(dict.fromkeys(findings.enlarged)):
        yield f"{_count(enlarged)} enlarged to more than twice its size: {_names(enlarged)}"


def _count(paths: list[Path]) -> str:
    return f"{len(paths)} picture{'s' if len(paths) > 1 else ''}"


def _names(paths: list[Path]) -> str:
    shown = ", ".join(path.name for path in paths[:NAMES_SHOWN])
    return shown + (f" and {len(paths) - NAMES_SHOWN} more" if len(paths) > NAMES_SHOWN else "")


def _other_captions(paths: list[Path]) -> str | None:
    """The extension of caption files that are there after all, if most pictures have one."""
    counts = Counter(
        extension
        for path in paths
        for extension in (".txt", ".caption")
        if path.with_suffix(extension).is_file()
    )
    return next((extension for extension, n in counts.most_common(1) if n > len(paths) / 2), None)
