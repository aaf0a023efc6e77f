"""Pictures that a class of the user's names, in place of a folder: `dataset_class = "module.Class"`.

The class is called with the subset's custom_attributes as keywords. What it gives, one after the other,
are dictionaries: "image", the path of a picture; "caption", a text or None; "sentences", the same, for
caption_shares. All else is as with a folder: sizes, buckets, captions, caches, states. So the same
pictures have to come in the same order each time.
"""

from __future__ import annotations

import json
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.data.picture_files import Findings, PictureFile, name_within
from library.data.picture_folders import is_picture, natural_key
from library.errors import ConfigError, as_utf8
from library.settings.user_classes import import_class, is_installed

if TYPE_CHECKING:
    from library.data.dataset_config import SubsetConfig

TEXTS = ("caption", "sentences")
FIELDS = ("image", *TEXTS)
MOST_TOLD = 10  # of wrong entries


def class_problem(path: str) -> str | None:
    """Why there is no such class, or why it gives no pictures; None where nothing is known against it."""
    if not re.fullmatch(r"\w+(\.\w+)+", path):
        return "expected module.Class, for example my_pictures.Pictures."
    module = path.partition(".")[0]
    if not is_installed(module):
        return (
            f"there is no module {module}. Put {module}.py beside the trainer, or its folder into the "
            "environment variable PYTHONPATH."
        )
    try:
        kind = import_class(path, "dataset_class")
    except ConfigError as error:
        return error.problems[0].message.partition(": ")[2]
    except Exception as error:  # noqa: BLE001  it is the user's
        return f"{module} cannot be imported: {_told(error, module)}"
    if not callable(getattr(kind, "__iter__", None)):
        return "the class has no __iter__, which gives {'image': path, 'caption': text} for each picture."
    return None


def pictures_of_class(subset: SubsetConfig, findings: Findings) -> list[PictureFile]:
    """What the subset's class names, in natural order of the paths. What is wrong becomes problems."""
    path = subset.dataset_class or ""
    source = f"dataset_class {path}"
    found: dict[Path, PictureFile] = {}
    wrong: list[tuple[int, str]] = []
    try:
        for number, entry in enumerate(_entries(path, subset.custom_attributes or "{}"), 1):
            if problem := _entry_problem(entry, found):
                wrong.append((number, problem))
            else:
                image = Path(os.path.abspath(entry["image"]))
                texts = {name: entry.get(name) for name in TEXTS}
                found[image] = PictureFile(image, "", texts["caption"], texts["sentences"])
    except Exception as error:  # noqa: BLE001  it is the user's
        findings.problem(f"it fails: {_told(error, path.partition('.')[0])}", source=source)
        return []
    for number, problem in wrong[:MOST_TOLD]:
        findings.problem(problem, f"picture {number}", source)
    if len(wrong) > MOST_TOLD:
        findings.problem(f"{len(wrong) - MOST_TOLD} more are wrong.", source=source)
    if not found and not wrong:
        findings.problem("it gives no pictures.", source=source)
    pictures = list(found.values())
    if not subset.asks_for_sentences and (unused := [p.path for p in pictures if p.sentences]):
        findings.note("with sentences that are not used; caption_shares trains them", unused)
        pictures = [replace(picture, sentences=None) for picture in pictures]
    return _named(pictures)


def _entries(path: str, attributes: str) -> Iterator[Any]:
    made: Any = import_class(path, "dataset_class")(**json.loads(attributes))
    return iter(made)


def _entry_problem(entry: Any, found: Mapping[Path, PictureFile]) -> str | None:
    """What is wrong with one entry, as a sentence."""
    if not isinstance(entry, Mapping):
        return f"expected a dictionary with image and caption, got {type(entry).__name__}."
    if unknown := [str(name) for name in entry if name not in FIELDS]:
        return f"has {', '.join(unknown)}, which nothing reads. There are {', '.join(FIELDS)}."
    image = entry.get("image")
    if not isinstance(image, (str, os.PathLike)):
        return f"image: expected the path of a picture, got {type(image).__name__}."
    for name in TEXTS:
        text = entry.get(name)
        if text is not None and not isinstance(text, str):
            return f"{name}: expected a text or None, got {type(text).__name__}."
        if text is not None and (as_utf8(text) != text or "\0" in text):
            return f"{name}: is not UTF-8 text."
    place = Path(os.path.abspath(image))
    if not is_picture(place.name):
        return f"{place}: this is no picture by its name."
    if not place.is_file():
        return f"{place}: there is no such file."
    return f"{place}: is given twice." if place in found else None


def _named(pictures: list[PictureFile]) -> list[PictureFile]:
    """With names from the folder that holds all of them, so that they are the same on any machine."""
    if not pictures:
        return []
    home = Path(os.path.commonpath([picture.path.parent for picture in pictures]))
    named = [
        PictureFile(each.path, name_within(each.path, home), each.caption, each.sentences)
        for each in pictures
    ]
    return sorted(named, key=lambda picture: natural_key(picture.name))


def _told(error: Exception, module: str) -> str:
    """An error of the user's code in one line, with the last place of it that is theirs."""
    places = traceback.extract_tb(error.__traceback__)
    own = [place for place in places if Path(place.filename).stem == module] or places[-1:]
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}."
