"""Which files are pictures, and which folders are searched for them.

Links are followed, to pictures and to folders; a folder that several paths lead to is searched once,
so that links in a circle end. What is passed over is kept, to be told.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from library.utils import first_few

CACHE_FOLDER = "_cache"
NAMES_SHOWN = 8
KINDS = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".avif"),
    *(".gif", ".tif", ".tiff", ".tga", ".ppm", ".pgm", ".pnm", ".jp2", ".j2k"),
)
PLUGINS = {
    ".jxl": ("pillow_jxl", "pillow-jxl-plugin"),
    **dict.fromkeys((".heic", ".heif", ".hif"), ("pillow_heif", "pillow-heif")),
}
"""Kinds that a plugin of Pillow reads where it is installed: its module, its package."""
UNREAD_KINDS = (
    *(".psd", ".psb", ".xcf", ".kra", ".clip", ".svg", ".ico", ".qoi", ".exr", ".hdr", ".dds"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
"""Kinds of pictures that are named when they are left out."""


@dataclass
class PassedOver:
    """What a search found and did not use, in the order in which it was met.

    broken:  links to files or folders that are not there
    twice:   folders that were searched by another path already
    masks:   folders that the run's file names as masks
    others:  folders of subsets of the other sort: of regularisation, or to train on
    deeper:  folders within with pictures, where the search does not go there
    hidden:  hidden pictures, and hidden folders with pictures
    unread:  pictures of kinds that are not read
    """

    broken: list[Path] = field(default_factory=list)
    twice: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    deeper: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Search:
    """Finds the pictures of a folder, and of the folders within where `deep`.

    masks, others: real paths of folders within that are not searched
    used: those that belong to any subset
    """

    deep: bool = False
    masks: Collection[str] = ()
    others: Collection[str] = ()
    used: Collection[str] = ()
    passed: PassedOver = field(default_factory=PassedOver)
    seen: set[str] = field(default_factory=set)

    def files(self, folder: Path) -> Iterator[Path]:
        """Pictures in natural order: those of the folder, then those of each folder within."""
        self.seen.add(os.path.realpath(folder))
        entries = sorted(os.scandir(folder), key=lambda entry: natural_key(entry.name))
        for entry in entries:
            if self.takes(entry):
                yield Path(entry.path)
        for entry in entries:
            if self.enters(entry):
                yield from self.files(Path(entry.path))

    def takes(self, entry: os.DirEntry) -> bool:
        """Whether an entry is a picture to use."""
        path, kind = Path(entry.path), os.path.splitext(entry.name)[1].lower()
        if entry.is_symlink() and not path.exists():
            self.passed.broken.append(path)  # of a caption too
        elif not entry.is_file() or not (kind in KINDS or kind in PLUGINS or kind in UNREAD_KINDS):
            return False
        elif entry.name.startswith("."):
            self.passed.hidden += [path] * (not entry.name.startswith("._"))  # macOS's own
        elif not is_picture(entry.name):
            self.passed.unread.append(path)
        else:
            return True
        return False

    def enters(self, entry: os.DirEntry) -> bool:
        """Whether a folder within is searched."""
        if not os.path.isdir(entry.path) or entry.name == CACHE_FOLDER:
            return False  # a link to itself makes entry.is_dir() fail
        path, real = Path(entry.path), os.path.realpath(entry.path)
        if not self.deep:
            is_free = not (real in self.masks or real in self.used or entry.name.startswith("."))
            self.passed.deeper += [path] * (is_free and holds_pictures(path))
        elif entry.name.startswith("."):
            self.passed.hidden += [path] * holds_pictures(path)
        elif real in self.masks:
            self.passed.masks.append(path)
        elif real in self.others:
            self.passed.others.append(path)
        elif real in self.seen:
            self.passed.twice.append(path)
        else:
            return True
        return False


def natural_key(name: str) -> tuple:
    """Sorts a2 before a10, upper and lower case together, the same on every system."""
    parts = re.split(r"(\d+)", name)
    return tuple((int(p), "") if p.isdecimal() else (-1, p.casefold()) for p in parts), name


def is_picture(name: str) -> bool:
    """Whether a file of this name is read as a picture; hidden ones (._a.png of macOS) are not."""
    kind = os.path.splitext(name)[1].lower()
    readable = kind in KINDS or (kind in PLUGINS and has_plugin(PLUGINS[kind][0]))
    return readable and not name.startswith(".")


@cache
def has_plugin(module: str) -> bool:
    return find_spec(module) is not None


def cure_of(paths: Collection[Path]) -> str:
    """What to do about pictures of kinds that are not read."""
    kinds = sorted({path.suffix.lower() for path in paths})
    packages = sorted({PLUGINS[kind][1] for kind in kinds if kind in PLUGINS})
    install = f", or pip install {' '.join(packages)}" if packages else ""
    return f"convert {' '.join(kinds)} to png{install}"


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    return first_few(names, NAMES_SHOWN)


def holds_pictures(folder: Path) -> bool:
    """Whether a folder itself has any picture to use; one that cannot be read has none."""
    try:
        return any(is_picture(entry.name) and entry.is_file() for entry in os.scandir(folder))
    except OSError:
        return False


def inner_folders(folder: Path) -> Iterator[Path]:
    """The folders right below that may hold pictures: no hidden ones, no caches. Raises OSError."""
    for child in sorted(folder.iterdir()):
        if child.name != CACHE_FOLDER and not child.name.startswith(".") and child.is_dir():
            yield child
