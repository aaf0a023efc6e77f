"""The captions of a run as they are written, apart into tags and prose, for those who look at them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from library.data.captions import names_word, sentence_variants, split_tags, variants
from library.data.catalogue import Catalogue
from library.data.data_types import ImageInfo
from library.data.picture_files import sentence_file
from library.linting.findings import Place
from library.saving.metadata_datasets import is_prose


@dataclass(frozen=True)
class Written:
    """What is written for one picture.

    lines: the tags of each line of tags that is trained; a file's marks between them are gone
    prose: lines that are sentences, and those of its file of sentences
    name:  of the picture: its path in its folder, with the folder's name where the run has several
    """

    image: ImageInfo
    lines: tuple[tuple[str, ...], ...]
    prose: tuple[str, ...]
    name: str

    @classmethod
    def of(cls, image: ImageInfo, *, names_folder: bool) -> Written:
        subset = image.subset
        named = "" if image.has_text else subset.class_tokens
        lines, prose = [], list(sentence_variants(image.sentences or "", subset))
        for line in variants(named if image.caption is None else image.caption, subset):
            for mark in filter(None, (subset.keep_tokens_separator, subset.secondary_separator)):
                line = line.replace(mark, subset.caption_separator)
            tags = split_tags(line, subset.caption_separator)
            if is_prose(line, tags):
                prose.append(line)
            elif tags:
                lines.append(tuple(tags))
        name = image.key.partition("/")[2]
        if names_folder:
            name = f"{os.path.basename(os.path.abspath(subset.pictures_dir))}/{name}"
        return cls(image, tuple(lines), tuple(prose), name)

    @property
    def path(self) -> Path:
        return self.image.path

    @cached_property
    def tags(self) -> frozenset[str]:
        return frozenset(tag for line in self.lines for tag in line)

    @cached_property
    def added(self) -> tuple[str, ...]:
        """Tags that the settings add to every caption."""
        subset = self.image.subset
        texts = (subset.trigger_word, subset.caption_prefix, subset.caption_suffix)
        return tuple(tag for text in texts for tag in split_tags(text, subset.caption_separator))

    def names(self, words: str) -> bool:
        """Whether the caption, as it is trained, has these words: as a tag, or in its prose."""
        if words in self.tags or words in self.added:
            return True
        return any(names_word(text, words) for text in self.prose)

    @property
    def file(self) -> str:
        """The name of the file that it is written in, or would be."""
        subset, name = self.image.subset, Path(self.name)
        if subset.metadata_file:
            return f"{Path(subset.metadata_file).name}: {name.as_posix()}"
        if self.prose and not (self.image.caption or "").strip():
            return sentence_file(name, subset).as_posix()
        return name.with_suffix(subset.caption_extension).as_posix()

    def place(self, words: str = "") -> Place:
        return Place((self.path,), (self.file,), words)


def written_for(catalogue: Catalogue) -> list[Written]:
    """Of each picture once, those kept for validation too."""
    once = {image.path: image for image in (*catalogue.images, *catalogue.held_out)}
    several = len({image.subset.place for image in once.values()}) > 1
    return [Written.of(image, names_folder=several) for image in once.values()]


def by_subset(written: Iterable[Written]) -> Iterator[tuple[str, list[Written]]]:
    """Those to learn from, by their folders: (folder, its captions)."""
    found: dict[str, list[Written]] = {}
    for one in written:
        if not one.image.subset.is_reg:
            found.setdefault(one.image.subset.place, []).append(one)
    yield from found.items()
