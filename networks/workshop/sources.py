"""Adapter files with the strengths that they are merged with, and what of them is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from library.errors import AdapterFileError, Problem
from library.utils import first_few
from networks.codec import TEXT_ENCODER_PREFIXES
from networks.kinds.stored import check_shape
from networks.workshop.adapter_file import AdapterFile
from networks.workshop.converting import NAMES_SHOWN, TEXT_ENCODER, UNKNOWN

DROPS = {
    TEXT_ENCODER: "the text encoder's modules",
    UNKNOWN: "keys that belong nowhere",
}
"""What may be left out, by the word that asks for it."""


@dataclass(frozen=True)
class Source:
    file: AdapterFile
    strength: float = 1.0


@dataclass(frozen=True)
class Sources:
    """Files, and the words of DROPS for what is left out of all of them."""

    files: Sequence[Source]
    drop: frozenset[str] = frozenset()

    def paths(self) -> list[str]:
        """Every module that one of them changes, in the order of the model."""
        modules = self.files[0].file.modules.shapes
        found = {path for source in self.files for path in source.file}
        return [path for path in modules if path in found and self.keeps(path)]

    def of(self, path: str) -> list[Source]:
        return [source for source in self.files if path in source.file.entries]

    def keeps(self, path: str) -> bool:
        return TEXT_ENCODER not in self.drop or not path.startswith(TEXT_ENCODER_PREFIXES)

    def check(self, *, text_encoder: bool) -> None:
        """Raises AdapterFileError with what would be lost. text_encoder: there is a place for it"""
        found = [p for source in self.files for p in self.obstacles(source.file, text_encoder)]
        if found := found or self.misfits():
            raise AdapterFileError(found)
        if not self.paths():
            raise AdapterFileError("nothing of the files is left to merge.")

    def misfits(self) -> list[Problem]:
        """Modules whose factors do not fit each other or the model, as far as that needs no base."""
        return [
            Problem(f"{why}.", path, str(source.file.path))
            for source in self.files
            for path in source.file
            if self.keeps(path) and (why := misfit(source.file, path))
        ]

    def obstacles(self, file: AdapterFile, text_encoder: bool) -> Iterator[Problem]:
        if file.left and UNKNOWN not in self.drop:
            reasons = first_few([f"{key} ({why})" for key, why in file.left.items()], NAMES_SHOWN)
            message = f"belong nowhere: {reasons}. To leave them out, use --drop {UNKNOWN}."
            yield Problem(message, f"{len(file.left)} keys", str(file.path))
        outside = [p for p in file if p.startswith(TEXT_ENCODER_PREFIXES) and self.keeps(p)]
        if outside and not text_encoder:
            message = f"are of the text encoder, which is another file. Use --drop {TEXT_ENCODER}."
            yield Problem(message, f"{len(outside)} modules", str(file.path))

    def dropped(self) -> dict[str, list[str]]:
        """Keys that are left out, by the word that asked for it."""
        found = {word: list[str]() for word in DROPS if word in self.drop}
        for file in (source.file for source in self.files):
            if UNKNOWN in found:
                found[UNKNOWN] += file.left
            if TEXT_ENCODER in found:
                outside = [e for p, e in file.entries.items() if not self.keeps(p)]
                found[TEXT_ENCODER] += [key for entry in outside for key in entry.keys.values()]
        return found


def misfit(file: AdapterFile, path: str) -> str | None:
    try:
        file.kind_of(path)
        if file.entries[path].needs_base:
            return None
        delta = file.deltas(path).get("weight")
        if delta is not None and file.modules.is_exact:
            check_shape(delta.shape, file.modules.shapes[path])
    except ValueError as error:
        return str(error)
    return None
