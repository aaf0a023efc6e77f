"""What is told of files of sentences (a_nl.txt beside a.txt): missing, left over, not asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from library.data.data_types import ImageInfo
from library.data.dataset_config import SubsetConfig
from library.data.picture_files import Findings, PictureFile, names, sentence_file
from library.settings.dataset_keys import KEYS

OF_TAGS = (
    *("shuffle_caption", "caption_tag_dropout_rate", "keep_tokens", "keep_tokens_separator"),
    *("secondary_separator", "token_warmup_step"),
)
"""Settings that change tags alone."""


def check_files(subset: SubsetConfig, pictures: Sequence[PictureFile], findings: Findings) -> None:
    """Of one folder: files whose picture is not there, or that are two things; those that lie unused."""
    if subset.metadata_file or subset.dataset_class:
        return
    expected = {sentence_file(picture.path, subset): picture.path for picture in pictures}
    captions = {
        picture.path.with_suffix(subset.caption_extension): picture.path for picture in pictures
    }
    there = list(files_of_sentences({p.path.parent for p in pictures}, subset))
    if not subset.asks_for_sentences:
        unused = [path for path in there if path in expected and path not in captions]
        if unused and subset.caption_shares is None:
            findings.notes.append(
                f"{subset.place}: {len(unused)} files of sentences are not used: {names(unused)}. "
                "caption_shares trains them; caption_shares = {tags = 1} is this without a note"
            )
        return
    for path in there:
        if path not in expected and path not in captions:
            message = (
                f"{path}: sentences without a picture. Name the file as its picture, followed "
            )
            message += f"by {subset.sentence_suffix}, or remove it."
            findings.problem(message)
        elif path in expected and path in captions:
            message = (
                f"{path}: sentences of {expected[path].name} or caption of {captions[path].name}? "
            )
            findings.problem(
                f"{message}Rename one of the pictures, or set another sentence_suffix."
            )


def files_of_sentences(folders: Iterable[Path], subset: SubsetConfig) -> Iterator[Path]:
    """Those that lie in folders with pictures, by their names; a folder that cannot be read has none."""
    ending = subset.sentence_suffix + subset.caption_extension
    for folder in sorted(folders):
        try:
            found = sorted(os.listdir(folder))
        except OSError:
            continue
        yield from (
            folder / name for name in found if name.endswith(ending) and not name.startswith(".")
        )


def check_all(images: Sequence[ImageInfo], findings: Findings) -> None:
    """Of the whole run: whether there are sentences at all, and which pictures lack one of the two."""
    asking = [image for image in images if image.subset.asks_for_sentences]
    if not asking:
        return
    without = [image for image in asking if not (image.sentences or "").strip()]
    if len(without) == len(asking):
        findings.problem(*no_sentences(asking[0]))
        return
    findings.note("without sentences, trained with their tags alone", [i.path for i in without])
    no_tags = [
        image.path
        for image in asking
        if image.subset.asks_for_tags and not (image.caption or "").strip() and image.has_text
    ]
    findings.note("without tags, trained with their sentences alone", no_tags)
    note_idle(asking, findings)


def no_sentences(image: ImageInfo) -> tuple[str, str, str]:
    """Message, place and source of the problem that there are none. image: one that should have some"""
    subset = image.subset
    message = "asks for sentences, and no picture has any. "
    if subset.metadata_file:
        message += 'Write them as "caption" of each entry, the tags as "tags"'
    else:
        message += f"Write those of {image.path.name} into {sentence_file(image.path, subset).name}"
        message += ", or set sentence_suffix"
    return f"{message}; or leave caption_shares out.", "caption_shares", subset.place


def note_idle(images: Sequence[ImageInfo], findings: Findings) -> None:
    """Settings of tags where no tags are trained."""
    by_place: dict[str, list[ImageInfo]] = {}
    for image in images:
        if not image.subset.asks_for_tags:
            by_place.setdefault(image.subset.place, []).append(image)
    for place, own in by_place.items():
        subset = own[0].subset
        idle = [name for name in OF_TAGS if getattr(subset, name) != KEYS[name].default]
        if idle and all((image.sentences or "").strip() for image in own):
            findings.notes.append(
                f"{place}: {', '.join(idle)} change nothing: caption_shares trains sentences alone"
            )
