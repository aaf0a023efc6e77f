"""Folders to the catalogue of a run: pictures in a fixed order with captions, crop plans and masks.

Only headers are read. Everything unusable in all folders is reported in one DatasetError; what is
usable but worth knowing becomes a note.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from library.data import sentence_files
from library.data.buckets import BucketManager, Size
from library.data.captions import caption_lines
from library.data.catalogue import Catalogue
from library.data.data_types import ImageInfo
from library.data.dataset_config import DatasetConfig, DatasetGroupConfig, SubsetConfig
from library.data.masks import MaskFolder
from library.data.picture_files import Findings, PictureFile, count, list_pictures, names
from library.data.picture_folders import Search
from library.data.picture_sizes import read_headers
from library.data.user_pictures import pictures_of_class
from library.data.validation_split import hold_out
from library.errors import DatasetError, as_utf8

MOST_SAMPLES = 1_000_000  # an epoch's order is made as a list: a second, and a few 100 MB


@dataclass(frozen=True)
class _Folder:
    """One subset's place in the run, its pictures and their masks."""

    dataset_index: int
    subset_index: int
    subset: SubsetConfig
    pictures: tuple[PictureFile, ...]
    masks: tuple[Path | None, ...]


def scan(group: DatasetGroupConfig) -> Catalogue:
    """Read every folder. Raises DatasetError with all pictures and captions that cannot be used."""
    findings = Findings(notes=list(group.notes))
    folders = list(_list_folders(group, findings))
    sizes = _sizes(folders, findings)
    images = [image for folder in folders for image in _images(group, folder, sizes, findings)]
    images = _without_twins(images, group, findings)
    _check_texts(images, findings)
    sentence_files.check_all(images, findings)
    if not images and not findings.problems:
        findings.problem("no picture is left to train on.", source=group.source)
    if findings.problems:
        raise DatasetError(list(dict.fromkeys(findings.problems)))
    _note_images(images, findings)
    uses = Counter(os.path.realpath(p.path) for f in _distinct(folders) for p in f.pictures)
    findings.note(
        "in more than one subset, trained in each",
        [Path(path) for path, n in uses.items() if n > 1],
    )
    images, held_out = hold_out(images, group, findings)
    images = _balance_regularisation(images, group, findings)
    if (samples := sum(image.repeats for image in images)) > MOST_SAMPLES:
        text = f"an epoch would have {samples:,} samples (pictures x num_repeats), and {MOST_SAMPLES:,} "
        text += "are the most. Lower num_repeats (--dataset_repeats), and raise max_train_epochs instead."
        raise DatasetError(text, source=group.source)
    notes = tuple(dict.fromkeys(findings.notes))
    return Catalogue(tuple(images), group, notes, tuple(held_out))


def make_bucket_manager(dataset: DatasetConfig) -> BucketManager:
    return BucketManager(
        dataset.resolution,
        enable_bucket=dataset.enable_bucket,
        min_size=dataset.min_bucket_reso,
        max_size=dataset.max_bucket_reso,
        step=dataset.bucket_reso_steps,
        no_upscale=dataset.bucket_no_upscale,
    )


def _list_folders(group: DatasetGroupConfig, findings: Findings) -> Iterator[_Folder]:
    """Each subset's pictures. A folder given twice in a dataset counts once, as in sd-scripts."""
    listed: dict[tuple[int, int], tuple] = {}
    for d, dataset in enumerate(group.datasets):
        seen: set[tuple[str, ...]] = set()
        for s, subset in enumerate(dataset.subsets):
            places = (subset.image_dir, subset.metadata_file)
            own = (subset.dataset_class or "", subset.custom_attributes or "")
            place = (*(os.path.realpath(each) for each in places if each), *own)
            if place in seen:
                findings.notes.append(
                    f"{subset.place}: given twice in dataset {d}; the second time is ignored"
                )
                continue
            seen.add(place)
            family = dataset.family, s
            if family not in listed:  # the datasets of one list of resolutions share theirs
                if subset.dataset_class:
                    pictures = tuple(pictures_of_class(subset, findings))
                else:
                    pictures = tuple(list_pictures(subset, findings, _search_of(subset, group)))
                masks = MaskFolder(subset, findings)
                masks_found = tuple(masks.mask_of(picture) for picture in pictures)
                masks.tell(p.path for p, mask in zip(pictures, masks_found) if mask is None)
                sentence_files.check_files(subset, pictures, findings)
                listed[family] = pictures, masks_found
            yield _Folder(d, s, subset, *listed[family])


def _search_of(subset: SubsetConfig, group: DatasetGroupConfig) -> Search:
    """The search for a subset's pictures, which leaves masks and the other sort to their own uses."""
    subsets = [each for dataset in group.datasets for each in dataset.subsets]
    places = {
        each: os.path.realpath(each.pictures_dir) for each in subsets if not each.dataset_class
    }
    return Search(
        deep=subset.is_deep,
        masks={os.path.realpath(each) for each in group.mask_dirs},
        others={place for each, place in places.items() if each.is_reg != subset.is_reg},
        used=set(places.values()),
    )


def _distinct(folders: Iterable[_Folder]) -> list[_Folder]:
    """The folders, those of datasets that differ in resolution alone once."""
    return list({id(folder.pictures): folder for folder in folders}.values())


def _sizes(folders: list[_Folder], findings: Findings) -> dict[Path, Size]:
    """Of pictures and masks; unreadable ones become problems."""
    files = [p.path for folder in folders for p in folder.pictures]
    files += [mask for folder in folders for mask in folder.masks if mask]
    remembered = {
        picture.path.parent
        for folder in folders
        if folder.subset.cache_info
        for picture in folder.pictures
    }
    headers, problems = read_headers(dict.fromkeys(files), remembered)
    findings.problems += problems
    several = [path for path, header in headers.items() if header.several]
    findings.note("of several frames or pages, of which the first is used", several)
    return {path: header.size for path, header in headers.items()}


def _images(
    group: DatasetGroupConfig, folder: _Folder, sizes: dict[Path, Size], findings: Findings
) -> Iterator[ImageInfo]:
    """The subset's usable pictures; those left out by its own rules are noted."""
    dataset, subset = group.datasets[folder.dataset_index], folder.subset
    manager = make_bucket_manager(dataset)
    left_out: dict[str, list[Path]] = {}
    for picture, mask in zip(folder.pictures, folder.masks):
        if picture.path not in sizes or (mask and mask not in sizes):
            continue  # its problem is recorded
        size = sizes[picture.path]
        if reason := _why_left_out(picture, size, subset, dataset):
            left_out.setdefault(reason, []).append(picture.path)
            continue
        if mask and sizes[mask] != size:
            shown = "{} x {}, its picture {} x {}".format(*sizes[mask], *size)
            findings.problem(f"{mask}: the mask is {shown}. Make them the same size.")
        yield ImageInfo(
            key=f"{folder.dataset_index}.{folder.subset_index}/{picture.name}",
            path=picture.path,
            size=size,
            caption=picture.caption,
            dataset_index=folder.dataset_index,
            subset=subset,
            plan=manager.plan(size),
            mask=mask,
            repeats=subset.num_repeats,
            sentences=picture.sentences,
        )
    for reason, paths in left_out.items():
        findings.note(f"left out by {reason}", paths)


def _why_left_out(
    picture: PictureFile, size: Size, subset: SubsetConfig, dataset: DatasetConfig
) -> str:
    """The rule that leaves a picture out; "" when none does."""
    limit = dataset.skip_image_resolution
    if limit and size[0] * size[1] <= limit[0] * limit[1]:
        return f"skip_image_resolution = {limit[0]} x {limit[1]}"
    ratio = size[0] / size[1]
    if subset.min_ar and ratio < subset.min_ar:
        return f"min_ar = {subset.min_ar:g}"
    if subset.max_ar and ratio > subset.max_ar:
        return f"max_ar = {subset.max_ar:g}"
    caption = subset.class_tokens if picture.caption is None else picture.caption
    is_empty = not (caption.strip() or (picture.sentences or "").strip())
    return "skip_empty_caption" if subset.skip_empty_caption and is_empty else ""


def _without_twins(
    images: list[ImageInfo], group: DatasetGroupConfig, findings: Findings
) -> list[ImageInfo]:
    """Without pictures that look the same at two sizes of one list of resolutions."""
    seen: set[tuple] = set()
    kept: list[ImageInfo] = []
    twins: list[ImageInfo] = []
    for image in images:
        family = group.datasets[image.dataset_index].family
        look = (family, image.key.partition(".")[2], image.plan)
        (twins if look in seen else kept).append(image)
        seen.add(look)
    findings.note(
        "too small for a larger resolution of the list, used once", [t.path for t in twins]
    )
    return kept


def _balance_regularisation(
    images: list[ImageInfo], group: DatasetGroupConfig, findings: Findings
) -> list[ImageInfo]:
    """Regularisation pictures are repeated, or left out, until they are as many as the others.

    As sd-scripts does, in each dataset: repeats in turn, one more each.
    """
    for number in range(len(group.datasets)):
        mine = [i for i, image in enumerate(images) if image.dataset_index == number]
        regular = [i for i in mine if images[i].subset.is_reg]
        wanted = sum(images[i].repeats for i in mine) - sum(images[i].repeats for i in regular)
        if not regular or not wanted:
            continue
        repeats, total = dict.fromkeys(regular, 0), 0
        for i in regular:
            if total < wanted:
                repeats[i] = images[i].repeats
                total += repeats[i]
        if total < wanted:
            each, rest = divmod(wanted - total, len(regular))
            total = wanted
            for turn, i in enumerate(regular):
                repeats[i] += each + (turn < rest)
        unused = [images[i].path for i in regular if not repeats[i]]
        findings.notes.append(
            f"dataset {number}: {len(regular) - len(unused)} regularisation pictures are shown "
            f"{total} times in each epoch, beside {wanted} samples to train on"
        )
        findings.note("of regularisation are more than that, left out", unused)
        images = [
            replace(image, repeats=repeats.get(i, image.repeats))
            for i, image in enumerate(images)
            if repeats.get(i, 1)
        ]
    return images


def _check_texts(images: list[ImageInfo], findings: Findings) -> None:
    """What becomes part of captions has to be text: a folder's name may be in another encoding."""
    used: dict[tuple[str, str, str], None] = {}
    for image in images:
        subset = image.subset
        fields = ["caption_prefix", "caption_suffix", "trigger_word"]
        fields += ["class_tokens"] if image.caption is None and not image.has_text else []
        used |= dict.fromkeys((subset.place, name, getattr(subset, name)) for name in fields)
    for place, name, text in used:
        if as_utf8(text) != text:
            message = f"{name} = {text} is not UTF-8 text, and captions are. Write it in UTF-8"
            if name == "class_tokens":
                message += ", or rename the folder that gave it, or give every picture a caption"
            findings.problem(f"{message}.", source=place)


def _note_images(images: list[ImageInfo], findings: Findings) -> None:
    """Captions that are missing or empty, pictures that are enlarged a lot."""
    without = [i for i in images if i.caption is None and not i.has_text]
    if missing := list(dict.fromkeys(i.path for i in without)):
        tokens = {i.subset.class_tokens for i in without}
        texts = sorted(repr(text) for text in tokens if text)
        use = f"class_tokens {', '.join(texts)}" if texts else ""
        used = " or ".join(
            part for part in (use, "the empty caption" if "" in tokens else "") if part
        )
        findings.notes.append(
            f"{count(missing)} without a caption file, trained with {used}: {names(missing)}"
        )
        if other := _other_captions(missing):
            findings.notes.append(
                f"{other} files lie beside them: set caption_extension to read those"
            )
    short = [i.path for i in images if i.subset.caption_lines is None and loses_lines(i)]
    findings.note(
        'with several lines in the caption, of which the first is trained alone (caption_lines = "join" '
        'trains them as one caption, "each" draws one every time, "first" is this without a note)', short
    )  # fmt: skip
    empty = [i.path for i in images if i.caption is not None and not i.has_text]
    findings.note("with an empty caption file", empty)
    enlarged = [i.path for i in images if 4 * math.prod(i.size) < math.prod(i.plan.resized)]
    findings.note("enlarged to more than twice its size", enlarged)


def loses_lines(image: ImageInfo) -> bool:
    """Whether lines of a caption are never trained."""
    uses_first = image.subset.use_of_lines == "first"
    return uses_first and len(caption_lines(image.caption or "")) > 1


def _other_captions(paths: list[Path]) -> str | None:
    """The extension of caption files that are there after all, if most pictures have one."""
    counts = Counter(
        extension
        for path in paths
        for extension in (".txt", ".caption")
        if os.path.isfile(path.with_suffix(extension))
    )
    return next((extension for extension, n in counts.most_common(1) if n > len(paths) / 2), None)
