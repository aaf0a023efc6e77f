"""Sizes of pictures from their headers, many at a time; remembered in the folder where asked for.

The memory (`cache_info`) is `_cache/pictures.json`: name to what the system says of the file, width,
height, and whether it has several frames. A picture whose file may have changed is read again.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from tqdm import tqdm

from library.data.images import PictureHeader, UnreadableImage, read_picture_header
from library.data.picture_folders import CACHE_FOLDER
from library.errors import Problem
from library.system.text_files import json_text
from library.utils import atomic_write, file_facts, is_quiet, threads

logger = logging.getLogger(__name__)
READERS = 8  # threads: on a cold disk the headers' seeks overlap
MEMORY = "pictures.json"


def read_headers(
    paths: Iterable[Path], remembered: Collection[Path] = ()
) -> tuple[dict[Path, PictureHeader], list[Problem]]:
    """Headers of the readable pictures, and the problems of the others.

    remembered: folders that keep a memory of sizes
    """
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        by_folder[path.parent].append(path)
    known: dict[Path, PictureHeader] = {}
    for folder, inside in by_folder.items():
        if folder in remembered:
            known |= _recall(folder, inside)
    unknown = [path for inside in by_folder.values() for path in inside if path not in known]
    problems: list[Problem] = []
    with threads(READERS) as pool:
        headers = pool.map(_read, unknown)
        bar = tqdm(
            headers,
            "reading pictures",
            len(unknown),
            unit="picture",
            disable=is_quiet() or not unknown,
        )
        for path, header in zip(unknown, bar):
            if isinstance(header, UnreadableImage):
                problems += header.problems
            else:
                known[path] = header
    fresh = set(unknown)
    for folder, inside in by_folder.items():
        if folder in remembered and not fresh.isdisjoint(inside):
            _remember(folder, {path: known[path] for path in inside if path in known})
    return known, problems


def _read(path: Path) -> PictureHeader | UnreadableImage:
    try:
        return read_picture_header(path)
    except UnreadableImage as error:
        return error


def _recall(folder: Path, paths: list[Path]) -> dict[Path, PictureHeader]:
    """What the folder's memory holds and is still true."""
    try:
        memory = json.loads((folder / CACHE_FOLDER / MEMORY).read_bytes())
        found = {}
        for path in paths:
            *facts, width, height, several = memory.get(path.name, (0, 0, 0))
            if facts == file_facts(path) and min(width, height) > 0:
                found[path] = PictureHeader((int(width), int(height)), bool(several))
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        file = folder / CACHE_FOLDER / MEMORY
        logger.warning("cache_info: %s cannot be used; the pictures are read again", file)
        return {}


def _remember(folder: Path, headers: dict[Path, PictureHeader]) -> None:
    memory = {
        path.name: (*file_facts(path), *header.size, header.several)
        for path, header in headers.items()
    }
    file = folder / CACHE_FOLDER / MEMORY
    try:
        file.parent.mkdir(exist_ok=True)
        with atomic_write(file) as temporary:
            temporary.write_text(json_text(memory), encoding="utf-8")
    except OSError as error:
        logger.warning("cache_info: %s cannot be written (%s)", file, error.strerror)
