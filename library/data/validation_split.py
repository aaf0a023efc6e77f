"""Which pictures are kept for validation: by content, so that no copy of one is trained on."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from library.data.data_types import ImageInfo
from library.data.dataset_config import DatasetGroupConfig
from library.data.picture_files import Findings
from library.data.picture_folders import natural_key
from library.utils import position_seed, sha256_of_file


def hold_out(
    images: list[ImageInfo], group: DatasetGroupConfig, findings: Findings
) -> tuple[list[ImageInfo], list[ImageInfo]]:
    """(pictures to train on, pictures to validate on), by each dataset's validation_split.

    The share of a dataset's different pictures, at least one of them; regularisation pictures stay in
    training. A copy of a validation picture anywhere else in the run is not trained on.
    """
    splits = {n: each for n, each in enumerate(group.datasets) if each.validation_split > 0}
    if not splits:
        return images, []
    contents = content_ids({image.path for image in images})
    chosen: set[int] = set()
    for number, dataset in splits.items():
        mine = [i for i in images if i.dataset_index == number and not i.subset.is_reg]
        mine.sort(key=lambda image: natural_key(image.path.name))
        groups = list(dict.fromkeys(contents[image.path] for image in mine))
        if len(groups) < 2:
            message = (
                "validation_split needs two different pictures or more: one has to be trained on."
            )
            findings.notes.append(f"dataset {number}: {message}")
            continue
        random.Random(position_seed(dataset.validation_seed or 0, "validation")).shuffle(groups)
        amount = min(len(groups) - 1, max(1, round(len(groups) * dataset.validation_split)))
        chosen.update(groups[:amount])
    train, held_out, copies = [], [], []
    for image in images:
        if contents[image.path] not in chosen:
            train.append(image)
        elif image.dataset_index in splits and not image.subset.is_reg:
            held_out.append(image)
        else:
            copies.append(image.path)
    findings.note("the same as one kept for validation, left out of training", copies)
    return train, held_out


def content_ids(paths: Iterable[Path]) -> dict[Path, int]:
    """A number for each file, the same for files of the same content.

    Only files of one size are read: others cannot be the same.
    """
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in sorted(paths, key=str):
        by_size[path.stat().st_size].append(path)
    ids: dict[tuple[int, str], int] = {}
    found = {}
    for size, same in by_size.items():
        for path in same:
            digest = sha256_of_file(path) if len(same) > 1 else ""
            found[path] = ids.setdefault((size, digest), len(ids))
    return found
