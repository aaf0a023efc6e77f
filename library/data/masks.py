"""Loss masks that lie in a folder of their own: which picture has which, and whether they fit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from library.data.dataset_config import SubsetConfig
from library.data.picture_files import (
    Findings,
    PictureFile,
    count,
    name_within,
    names,
    tell_passed_over,
)
from library.data.picture_folders import PassedOver, Search


class MaskFolder:
    """The masks of one subset, found by the picture's path within the subset, extension aside.

    mask_path:             a picture without a mask counts wholly
    conditioning_data_dir: every picture needs one, as in sd-scripts
    """

    def __init__(self, subset: SubsetConfig, findings: Findings) -> None:
        self.subset = subset
        self.findings = findings
        self.found: dict[str, Path] = {}
        self.used: set[Path] = set()
        if subset.mask_dir:
            for path in self.files(Path(subset.mask_dir), Search(deep=subset.is_deep)):
                name = name_within(path, Path(subset.mask_dir))
                self.found[name] = path
                self.found.setdefault(_stem(name), path)

    def files(self, folder: Path, search: Search) -> list[Path]:
        """The masks there are; what cannot be used is told."""
        try:
            found = list(search.files(folder))
        except OSError as error:
            message = f"the folder cannot be read: {error.strerror}."
            self.findings.problem(message, source=str(error.filename or folder))
            return []
        passed = PassedOver(broken=search.passed.broken, unread=search.passed.unread)
        tell_passed_over(passed, str(folder), "", self.findings)
        return found

    def mask_of(self, picture: PictureFile) -> Path | None:
        """Its mask; under the picture's full name, else under its stem."""
        path = self.found.get(picture.name) or self.found.get(_stem(picture.name))
        if path:
            self.used.add(path)
        return path

    def tell(self, without: Iterable[Path]) -> None:
        """Tell of pictures without a mask, and of masks without a picture."""
        missing = list(without)
        if missing and self.subset.conditioning_data_dir:
            message = (
                f"{count(missing)} without a mask in {self.subset.mask_dir}: {names(missing)}. "
            )
            message += "Add them, or use mask_path, which needs no mask for every picture."
            self.findings.problem(message)
        elif missing and self.subset.mask_path:
            self.findings.note(
                f"without a mask in {self.subset.mask_path}, trained wholly", missing
            )
        lonely = [path for path in dict.fromkeys(self.found.values()) if path not in self.used]
        if lonely:
            where = self.subset.mask_dir
            self.findings.notes.append(
                f"{len(lonely)} masks in {where} have no picture: {names(lonely)}"
            )


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
