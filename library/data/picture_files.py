"""The pictures of a subset and their captions: from a folder, from folders within, or from a JSON.

Raises nothing: what cannot be used becomes a problem, what is worth knowing a note.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from library.data.caption_json import CaptionEntry, read_caption_json
from library.data.dataset_config import SubsetConfig
from library.data.picture_folders import PassedOver, Search, cure_of, is_picture, natural_key, some
from library.errors import DatasetError, Problem


@dataclass
class Findings:
    """What comes up while pictures are looked for."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, message: str, where: str = "", source: str = "") -> None:
        self.problems.append(Problem(message, where, source))

    def note(self, what: str, paths: list[Path]) -> None:
        """`what` of these pictures, each counted once; nothing when there are none."""
        if distinct := list(dict.fromkeys(paths)):
            self.notes.append(f"{count(distinct)} {what}: {names(distinct)}")


@dataclass(frozen=True)
class PictureFile:
    """A picture of a subset. name: its path within the subset, with /.

    caption, sentences: None when it has none, or where sentences are not asked for
    """

    path: Path
    name: str
    caption: str | None
    sentences: str | None = None


def list_pictures(
    subset: SubsetConfig, findings: Findings, search: Search | None = None
) -> list[PictureFile]:
    """The subset's pictures in natural order, with captions as they stand in the files.

    search: knows the folders within that are of other use
    """
    search = search or Search(deep=subset.is_deep)
    try:
        folder = Path(subset.pictures_dir)
        files = list(search.files(folder))
        other = "train" if subset.is_reg else "regularisation"
        tell_passed_over(search.passed, subset.place, other, findings)
        if subset.metadata_file:
            return _from_json(subset, folder, files, findings)
    except OSError as error:
        message = f"the folder cannot be read: {error.strerror}."
        findings.problem(message, source=str(error.filename or subset.place))
        return []
    except DatasetError as error:
        findings.problems += error.problems
        return []
    stems = Counter(path.with_suffix("") for path in files)
    same = [path for path in files if stems[path.with_suffix("")] > 1]
    findings.note("share a caption file with another, each is trained", same)
    if not subset.asks_for_sentences:
        return [
            PictureFile(path, name_within(path, folder), read_caption(path, subset, findings))
            for path in files
        ]
    return [
        PictureFile(
            path, name_within(path, folder), read_caption(path, subset, findings),
            read_text_file(sentence_file(path, subset), findings),
        )
        for path in files
    ]  # fmt: skip


def sentence_file(picture: Path, subset: SubsetConfig) -> Path:
    """Where a picture's sentences are: a_nl.txt for a.png."""
    return picture.with_name(f"{picture.stem}{subset.sentence_suffix}{subset.caption_extension}")


def tell_passed_over(passed: PassedOver, place: str, other: str, findings: Findings) -> None:
    """Note what a search came by and did not use. other: the sort of subset that it left alone."""
    searches = "(recursive = true of a dataset file searches them)"
    lists = (
        (passed.broken, "link that leads", "links that lead", "nowhere, left out"),
        (passed.twice, "folder", "folders", "searched by another path already"),
        (passed.masks, "folder", "folders", "of masks, not searched for pictures"),
        (passed.others, "folder", "folders", f"of a {other} subset, left to it"),
        (passed.deeper, "folder", "folders", f"with pictures, left out {searches}"),
        (passed.hidden, "hidden picture or folder,", "hidden pictures or folders,", "left out"),
    )
    for paths, one, several, text in lists:
        if paths:
            what = one if len(paths) == 1 else several
            findings.notes.append(f"{place}: {len(paths)} {what} {text}: {names(paths)}")
    if unread := passed.unread:
        findings.note(f"of kinds that are not read ({cure_of(unread)})", unread)


def name_within(path: Path, folder: Path) -> str:
    """The path within the folder; a picture of somewhere else has its full path."""
    try:
        return path.relative_to(folder).as_posix()
    except ValueError:
        return path.as_posix()


def read_caption(picture: Path, subset: SubsetConfig, findings: Findings) -> str | None:
    """The caption file's text, None when there is none; a problem when it cannot be read."""
    return read_text_file(picture.with_suffix(subset.caption_extension), findings)


def read_text_file(path: Path, findings: Findings) -> str | None:
    """A text of captions, None when there is none; a problem when it cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # what cannot exist is not there
            return None
        kind = "this caption is a folder" if path.is_dir() else f"cannot be read: {error.strerror}"
        findings.problem(f"{path}: {kind}. Put a text file there or nothing.")
        return None
    if "\0" in text:
        message = f"{path}: the caption is not UTF-8 text. Save it as UTF-8 (Notepad: Save as, "
        message += "Encoding UTF-8; or iconv -f GB18030 -t UTF-8 when it is Chinese text in GBK)."
        findings.problem(message)
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _from_json(
    subset: SubsetConfig, base: Path, files: list[Path], findings: Findings
) -> list[PictureFile]:
    """The pictures that the metadata file names, which are those of image_dir or of its own folder.

    A key is a path with or without extension, from image_dir; or a full path, as sd-scripts' tagging
    tools write on request.
    """
    source = subset.metadata_file or ""
    entries, unread = read_caption_json(source)
    by_name = {path.relative_to(base).as_posix(): path for path in files}
    by_stem: dict[str, Path] = {}
    for name, path in by_name.items():
        by_stem.setdefault(name[: -len(path.suffix)], path)
    found: dict[Path, PictureFile] = {}
    for key, entry in entries.items():
        name = key.replace("\\", "/")
        named = by_name.get(name) or by_stem.get(name) or _named_file(key, base)
        if named is None:
            message = f"no such picture in {base}. Correct the name or remove the entry."
            findings.problem(message, f"{key!r:.60}", source)
        elif named in found:
            message = f"{named.name} has two entries. Keep one."
            findings.problem(message, f"{key!r:.60}", source)
        else:
            found[named] = _of_entry(named, base, entry, subset)
    if unread:
        findings.notes.append(f"{source}: not read: {', '.join(unread)} (captions and tags are)")
    if subset.image_dir:
        left_out = [path for path in files if path not in found]
        findings.note(f"without an entry in {source}, left out", left_out)
    return sorted(found.values(), key=lambda picture: natural_key(picture.name))


def _of_entry(
    picture: Path, base: Path, entry: CaptionEntry, subset: SubsetConfig
) -> PictureFile:
    """Tags and caption of an entry as one text, or apart where sentences are asked for."""
    name = name_within(picture, base)
    if subset.asks_for_sentences:
        return PictureFile(picture, name, entry.tags, entry.caption)
    several = subset.use_of_lines == "each"
    return PictureFile(picture, name, entry.text(subset.caption_separator, several_lines=several))


def _named_file(key: str, base: Path) -> Path | None:
    """The picture of a full path, or of one that stays inside `base`."""
    try:
        path = base / key
        inside = Path(key).is_absolute() or path.resolve().is_relative_to(base.resolve())
        return path if inside and is_picture(path.name) and path.is_file() else None
    except (OSError, ValueError):  # a name too long, a zero byte
        return None


def count(paths: list[Path]) -> str:
    return f"{len(paths)} picture{'s' if len(paths) > 1 else ''}"


def names(paths: Sequence[Path]) -> str:
    return some([path.name for path in paths])
