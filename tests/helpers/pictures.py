"""Pictures for a run: all of the demo's, or as many as say what twelve would."""

from collections.abc import Iterable
from pathlib import Path

SIX = (1, 3, 4, 7, 8, 11)  # each size, format and kind of caption that the twelve have


def give_pictures(demo: Path, folder: Path, numbers: Iterable[int]) -> None:
    """folder/pictures with these of the demo and their captions; a copy: caches are written beside them."""
    (folder / "pictures").mkdir()
    for number in numbers:
        for file in (demo / "pictures").glob(f"{number:02}_*"):
            (folder / "pictures" / file.name).write_bytes(file.read_bytes())
