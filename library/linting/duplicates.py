"""Pictures that are there more than once: the same bytes, or the same to look at."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from library.caching.cache_files import DELAY, THREADS
from library.caching.contents import quick_hash
from library.data.images import UnreadableImage
from library.linting.findings import Finding, Kind, Place, found
from library.linting.likeness import Look, groups, look_of
from library.reporting.texts import Text
from library.utils import is_quiet, threads

SAME = Kind(
    "same_picture",
    Text("the same picture in several files", "同一张图片的多个文件"),
    Text(
        "Keep one; num_repeats shows a picture more often.",
        "留一个即可；想多看几次用 num_repeats。",
    ),
)
ALIKE = Kind(
    "alike",
    Text("pictures that look nearly the same", "看起来几乎一样的图片"),
    Text(
        "Keep the best of each group, or lower its num_repeats: what they share is learned first.",
        "每组留最好的一张，或减小 num_repeats：它们的共同之处会被最先学到。",
    ),
)
SPLIT = Kind(
    "alike_held_out",
    Text(
        "pictures that look nearly the same, some trained and some kept for validation",
        "看起来几乎一样的图片，有的用于训练，有的用于验证",
    ),
    Text(
        "Keep one of each group: else validation is of what was trained.",
        "每组留一张，否则验证的就是训练过的内容。",
    ),
)


def find_duplicates(
    names: Mapping[Path, str], held_out: Collection[Path], *, most: int | None = None
) -> Iterator[Finding]:
    """What is there twice. names: pictures and what to call them; held_out: those not trained

    most: more pictures than that are compared by their bytes alone, which is told by no finding
    """
    same = same_bytes(list(names))
    yield from found(SAME, (place_of(group, names) for group in same))
    copies = {path for group in same for path in group[1:]}
    distinct = [path for path in names if path not in copies]
    if most is None or len(distinct) <= most:
        split: dict[bool, list[Place]] = {False: [], True: []}
        for group in looking_alike(distinct):
            is_split = 0 < sum(path in held_out for path in group) < len(group)
            split[is_split].append(place_of(group, names))
        yield from found(ALIKE, split[False])
        yield from found(SPLIT, split[True])


def place_of(group: Sequence[Path], names: Mapping[Path, str]) -> Place:
    return Place(tuple(group), tuple(names[path] for path in group))


def same_bytes(paths: Sequence[Path]) -> list[list[Path]]:
    """Files of the same content, two or more together; those of a size that no other has are not read."""
    by_size: dict[int, list[Path]] = {}
    for path in paths:
        by_size.setdefault(os.path.getsize(path), []).append(path)
    by_content: dict[tuple[int, str], list[Path]] = {}
    for size, together in by_size.items():
        for path in together if len(together) > 1 else ():
            by_content.setdefault((size, quick_hash(path)), []).append(path)
    return [together for together in by_content.values() if len(together) > 1]


def looking_alike(paths: Sequence[Path]) -> list[list[Path]]:
    """Pictures that look alike; one that cannot be read is like none."""
    with threads(THREADS) as pool:
        looks = list(
            tqdm(
                pool.map(look_or_none, paths), "looking at pictures", len(paths), unit="file",
                delay=DELAY, disable=is_quiet(),
            )
        )  # fmt: skip
    seen = [(path, look) for path, look in zip(paths, looks) if look is not None]
    return [[seen[i][0] for i in group] for group in groups([look for _, look in seen])]


def look_or_none(path: Path) -> Look | None:
    try:
        return look_of(path)
    except UnreadableImage:
        return None
