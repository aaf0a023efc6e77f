"""What a dataset file comes to: subsets in datasets in a group, each frozen."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from library.data.captions import CaptionRecipe
from library.settings.dataset_keys import default_of

ANOTHER_NAME = {"resolutions": "resolution"}


@dataclass(frozen=True, kw_only=True)
class SubsetConfig(CaptionRecipe):
    """One folder or metadata file of pictures, and how its pictures and captions are used.

    At most one of alpha_mask, mask_path and conditioning_data_dir is set. Pictures are of image_dir, of
    metadata_file, or of dataset_class, which is called with custom_attributes, a JSON object.
    """

    image_dir: str | None = default_of("image_dir")
    metadata_file: str | None = default_of("metadata_file")
    dataset_class: str | None = default_of("dataset_class")
    custom_attributes: str | None = None
    recursive: bool = default_of("recursive")
    num_repeats: int = default_of("num_repeats")
    is_reg: bool = default_of("is_reg")
    caption_extension: str = default_of("caption_extension")
    sentence_suffix: str = default_of("sentence_suffix")
    cache_info: bool = default_of("cache_info")
    flip_aug: bool = default_of("flip_aug")
    color_aug: bool = default_of("color_aug")
    random_crop: bool = default_of("random_crop")
    face_crop_aug_range: tuple[float, float] | None = default_of("face_crop_aug_range")
    resize_interpolation: str | None = default_of("resize_interpolation")
    alpha_mask: bool = default_of("alpha_mask")
    mask_path: str | None = default_of("mask_path")
    conditioning_data_dir: str | None = default_of("conditioning_data_dir")
    min_ar: float | None = default_of("min_ar")
    max_ar: float | None = default_of("max_ar")
    skip_empty_caption: bool = default_of("skip_empty_caption")
    loss_multiplier: float = default_of("loss_multiplier")
    timestep_offset: float = default_of("timestep_offset")

    @property
    def place(self) -> str:
        """What to call it: its folder, else its metadata file or its class."""
        return self.image_dir or self.metadata_file or self.dataset_class or ""

    @property
    def pictures_dir(self) -> str:
        """Where its pictures lie: its folder, else that of its metadata file."""
        return self.image_dir or os.path.dirname(self.metadata_file or "") or "."

    @property
    def is_deep(self) -> bool:
        """Whether the folders within are searched too."""
        return self.recursive or self.metadata_file is not None

    @property
    def mask_dir(self) -> str | None:
        """The folder with the masks of its pictures."""
        return self.mask_path or self.conditioning_data_dir

    @property
    def is_masked(self) -> bool:
        return self.alpha_mask or self.mask_dir is not None


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Subsets that share a resolution (width, height) and a batch size.

    family: number of the [[datasets]] table; the datasets made from one list of `resolutions` share it
    """

    resolution: tuple[int, int]
    subsets: tuple[SubsetConfig, ...]
    batch_size: int = default_of("batch_size")
    enable_bucket: bool = default_of("enable_bucket")
    min_bucket_reso: int = default_of("min_bucket_reso")
    max_bucket_reso: int = default_of("max_bucket_reso")
    bucket_reso_steps: int = default_of("bucket_reso_steps")
    bucket_no_upscale: bool = default_of("bucket_no_upscale")
    skip_image_resolution: tuple[int, int] | None = default_of("skip_image_resolution")
    network_multiplier: float = default_of("network_multiplier")
    validation_split: float = default_of("validation_split")
    validation_seed: int | None = default_of("validation_seed")
    family: int = 0


@dataclass(frozen=True)
class Setting:
    """A converted value and where it was set: a line, a flag, "" for a default."""

    value: Any
    where: str = ""


@dataclass(frozen=True)
class Table:
    """A dataset, or a subset of it, with the entries that reach it, the innermost first."""

    entries: Sequence[Mapping[str, Setting]]
    dataset: DatasetConfig
    subset: SubsetConfig | None = None

    def reaching(self) -> dict[str, list[tuple[str, Setting]]]:
        """Field -> what was written for it, as (key, entry); the first one decides."""
        found: dict[str, list[tuple[str, Setting]]] = {}
        for entries in self.entries:
            for key, entry in entries.items():
                name = ANOTHER_NAME.get(key, key)
                if hasattr(self.dataset if self.subset is None else self.subset, name):
                    found.setdefault(name, []).append((key, entry))
        return found


@dataclass
class Written:
    """A key as it was written: in the file, or as a flag.

    where: the line, or the flag
    used:  the tables whose value it is
    lost:  the values that the other tables in its reach have instead
    """

    key: str
    value: Any
    where: str
    used: list[Table] = field(default_factory=list)
    lost: list[Any] = field(default_factory=list)

    @property
    def is_flag(self) -> bool:
        return self.where.startswith("--")


@dataclass(frozen=True, kw_only=True)
class DatasetGroupConfig:
    """All datasets of a run, the file they come from, and what the user should be told once.

    written:   every key that was set, and what uses it
    mask_dirs: every folder that is named as one of masks, used or not
    """

    datasets: tuple[DatasetConfig, ...]
    source: str
    notes: tuple[str, ...] = ()
    mask_dirs: tuple[str, ...] = ()
    written: tuple[Written, ...] = ()
