"""Pictures, buckets and tags of a run as its files tell of them, in the shape that readers know."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from library.data.captions import caption_lines, split_tags
from library.data.catalogue import Catalogue
from library.data.data_types import ImageInfo
from library.data.dataset_config import DatasetConfig, SubsetConfig
from library.settings.dataset_keys import CAPTION_FORMS

SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")
CLOSING_MARKS = "\"'”’»)]）】」』 "
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]{1,2}|[^\s\u3040-\u30ff\u3400-\u9fff]+")
"""Two letters of Chinese or Japanese, which put no spaces between words, are taken for one word."""
LONGEST_TAG = 4
"""In words."""
PATHS = ("image_dir", "metadata_file", "mask_path", "conditioning_data_dir")


def describe_datasets(catalogue: Catalogue) -> list[dict[str, Any]]:
    """ss_datasets: each dataset's settings, by our names and by sd-scripts', its buckets and subsets."""
    return [
        describe_dataset(dataset, [i for i in catalogue.images if i.dataset_index == index])
        for index, dataset in enumerate(catalogue.group.datasets)
    ]


def describe_dataset(dataset: DatasetConfig, images: Sequence[ImageInfo]) -> dict[str, Any]:
    repeats = {is_reg: 0 for is_reg in (False, True)}
    for image in images:
        repeats[image.subset.is_reg] += image.repeats
    kinds = {subset.resize_interpolation for subset in dataset.subsets}
    return {
        **asdict(dataset),
        "is_dreambooth": all(subset.metadata_file is None for subset in dataset.subsets),
        "batch_size_per_device": dataset.batch_size,
        "num_train_images": repeats[False],
        "num_reg_images": repeats[True],
        "resize_interpolation": kinds.pop() if len(kinds) == 1 else None,
        "tag_frequency": frequencies(images),
        "bucket_info": bucket_info(images),
        "subsets": [
            describe_subset(subset, [image for image in images if image.subset is subset])
            for subset in dataset.subsets
        ],
    }


def describe_subset(subset: SubsetConfig, images: Sequence[ImageInfo]) -> dict[str, Any]:
    """A subset's settings and the number of its pictures; no paths of the user's disk."""
    settings = asdict(subset)
    shown: dict[str, Any] = {key: folder_name(settings[key]) for key in PATHS if settings[key]}
    if subset.custom_attributes:  # their values may be paths
        shown["custom_attributes"] = sorted(json.loads(subset.custom_attributes))
    if subset.caption_shares:
        shown["caption_shares"] = dict(zip(CAPTION_FORMS, subset.caption_shares))
    return {**settings, **shown, "img_count": len(images)}


def folder_name(path: str) -> str:
    """The last part of a path, also of "." and of one that ends with a slash."""
    return os.path.basename(os.path.abspath(path))


def shown_name(subset: SubsetConfig) -> str:
    """What readers call a subset: its metadata file, else its folder."""
    return subset.dataset_class or folder_name(subset.metadata_file or subset.image_dir or "")


def dataset_dirs(catalogue: Catalogue, *, is_reg: bool) -> dict[str, dict[str, int]]:
    """Repeats and pictures of each folder; a second one of the same name is called "img (2)"."""
    found: dict[str, dict[str, int]] = {}
    for index, subset in distinct_subsets(catalogue, is_reg):
        inside = [i for i in catalogue.images if i.subset is subset and i.dataset_index == index]
        name, number = shown_name(subset), 2
        while name in found:
            name, number = f"{shown_name(subset)} ({number})", number + 1
        found[name] = {"n_repeats": subset.num_repeats, "img_count": len(inside)}
    return found


def distinct_subsets(catalogue: Catalogue, is_reg: bool) -> Iterator[tuple[int, SubsetConfig]]:
    """Each subset with the number of its dataset; one of several resolutions with the first alone."""
    seen = set()
    for index, dataset in enumerate(catalogue.group.datasets):
        for place, subset in enumerate(dataset.subsets):
            if subset.is_reg is is_reg and (dataset.family, place) not in seen:
                seen.add((dataset.family, place))
                yield index, subset


def tag_frequency(catalogue: Catalogue) -> dict[str, dict[str, int]]:
    """How many pictures of each folder have each tag.

    Folders of one name add up. Regularisation comes last: readers take the first folder for what was
    learned.
    """
    return frequencies(sorted(catalogue.images, key=lambda image: image.subset.is_reg))


def frequencies(images: Iterable[ImageInfo]) -> dict[str, dict[str, int]]:
    """Tags of each folder; a picture that is used several times counts once."""
    found: dict[str, Counter[str]] = {}
    seen = set()
    for image in images:
        name = shown_name(image.subset)
        counter = found.setdefault(name, Counter())
        if (name, image.path) not in seen:
            seen.add((name, image.path))
            counter.update(tags_of(image))
    return {name: dict(counter) for name, counter in found.items()}


def tags_of(image: ImageInfo) -> list[str]:
    """The tags of the lines that are trained on; a line of prose is not cut at its commas.

    What a file of sentences says is no tag.
    """
    subset = image.subset
    named = subset.class_tokens if image.sentences is None else ""
    lines = caption_lines(named if image.caption is None else image.caption)
    found = []
    for line in lines[:1] if subset.use_of_lines == "first" else lines:
        tags = split_tags(line, subset.caption_separator)
        found += [line] if is_prose(line, tags) else tags
    return found


def is_prose(line: str, pieces: Sequence[str]) -> bool:
    """Whether a line ends like a sentence and has a piece longer than tags are, or all of it is so long.

    The second is for sentences without a full stop; a few long names among tags do not make one.
    """
    lengths = [len(WORD.findall(piece)) for piece in pieces]
    if not lengths:
        return False
    if line.rstrip(CLOSING_MARKS).endswith(SENTENCE_ENDS):
        return max(lengths) > LONGEST_TAG
    return sum(lengths) > LONGEST_TAG * len(lengths) and lengths[0] > LONGEST_TAG


def bucket_info(images: Sequence[ImageInfo]) -> dict[str, Any]:
    """Samples of one epoch in each bucket, and how far the pictures' shapes are from them."""
    counts: Counter[tuple[int, int]] = Counter()
    errors = []
    for image in images:
        width, height = image.plan.bucket
        counts[width, height] += image.repeats
        errors.append(abs(width / height - image.size[0] / image.size[1]))
    buckets = {
        str(number): {"resolution": list(bucket), "count": count}
        for number, (bucket, count) in enumerate(sorted(counts.items()))
    }
    return {"buckets": buckets, "mean_img_ar_error": sum(errors) / max(1, len(errors))}
