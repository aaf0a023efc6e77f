"""Pictures for a run: all of the demo's, or as many as say what twelve would; and what is cached of them."""

import filecmp
import shutil
from collections.abc import Iterable
from pathlib import Path

SIX = (1, 3, 4, 7, 8, 11)  # each size, format and kind of caption that the twelve have


def give_pictures(demo: Path, folder: Path, numbers: Iterable[int]) -> None:
    """folder/pictures with these of the demo and their captions; a copy: caches are written beside them."""
    (folder / "pictures").mkdir()
    for number in numbers:
        for file in (demo / "pictures").glob(f"{number:02}_*"):
            (folder / "pictures" / file.name).write_bytes(file.read_bytes())


def cached(demo: Path) -> Path:
    """The folder with a run's files where the demo's pictures are and all that is cached of them."""
    return demo.with_name(f"{demo.name} cached")


def give_caches(demo: Path, folder: Path) -> bool:
    """Put what is cached of the demo's pictures beside its copies in folder/pictures, if it has none.

    Returns whether there are such copies, and caches.
    """
    theirs, ours = cached(demo) / "pictures", folder / "pictures"
    if ours.is_symlink() or not theirs.is_dir():
        return False
    names = {path.name for path in theirs.iterdir() if path.is_file()}
    if not ours.is_dir() or not names & {path.name for path in ours.iterdir()}:
        return False
    if not (ours / "_cache").exists():
        shutil.copytree(theirs / "_cache", ours / "_cache")
    return True


def has_caches_as_given(demo: Path, folder: Path) -> bool:
    """Whether no run has written beside the pictures: there is nothing, or what give_caches put there."""
    if not (folder / "pictures" / "_cache").exists():
        return True
    found = filecmp.dircmp(cached(demo) / "pictures" / "_cache", folder / "pictures" / "_cache")
    return not found.right_only and not found.diff_files
