"""dataset.toml to frozen configurations: [general] -> [[datasets]] -> [[datasets.subsets]].

The lower level wins, then the flag of the same meaning, then the default. Types are strict, and all
problems are reported at once with their lines. Without a file, the folders named by flags make one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from library.data.dataset_config import (
    DatasetConfig,
    DatasetGroupConfig,
    Setting,
    SubsetConfig,
    Table,
)
from library.data.dataset_effects import written_keys
from library.data.dataset_file import TableLines, folder_problem, folders_document, read_document
from library.data.user_pictures import class_problem
from library.errors import ConfigError, Problem
from library.settings.dataset_keys import KEYS, LEVELS, belongs, convert, split_numbers
from library.settings.family import ForeignMessage
from library.settings.options import all_flags
from library.settings.run_config import GROUPS
from library.settings.unknown_keys import explain_dataset_key
from library.utils import nearest_name

FLAGS = frozenset(all_flags(GROUPS.values()))

PIXEL_GRID = 16
"""Every edge of a bucket is a multiple of it: the VAE shrinks by 8, the denoiser takes patches of 2."""


DATASET_FIELDS = tuple(set(DatasetConfig.__dataclass_fields__) - {"subsets", "family"})
SUBSET_FIELDS = tuple(SubsetConfig.__dataclass_fields__)


Settings = dict[str, Setting]


def read_datasets(
    path: str | None, fallbacks: Mapping[str, Any], foreign_message: ForeignMessage | None = None
) -> DatasetGroupConfig:
    """The datasets of a run: of its dataset file, or of the folders that flags name."""
    if not path:
        return load_folders_config(fallbacks)
    return load_dataset_config(path, fallbacks, foreign_message=foreign_message)


def load_dataset_config(
    path: str | Path, fallbacks: Mapping[str, Any], *, foreign_message: ForeignMessage | None = None
) -> DatasetGroupConfig:
    """Read and check a dataset file, TOML or JSON. Raises ConfigError with everything that is wrong.

    fallbacks: flag values by flag name, used where the file is silent; None counts as not given
    foreign_message: what tells the files of other programs
    """
    document, lines = read_document(Path(path), foreign_message)
    return _configure(document, lines, fallbacks, str(path))


def load_folders_config(fallbacks: Mapping[str, Any]) -> DatasetGroupConfig:
    """The datasets of a run without a dataset file, from the folders that flags name.

    Raises ConfigError. See dataset_file.folders_document.
    """
    document, lines, notes = folders_document(fallbacks)
    group = _configure(document, lines, fallbacks, "the command line")
    return replace(group, notes=(*notes, *group.notes))


def _configure(
    document: dict, lines: TableLines, fallbacks: Mapping[str, Any], source: str
) -> DatasetGroupConfig:
    reader = _DatasetFileReader(lines, fallbacks)
    datasets = reader.read(document)
    if reader.problems:
        raise ConfigError(list(dict.fromkeys(reader.problems)), source=source)
    notes = tuple(dict.fromkeys(reader.notes))
    return DatasetGroupConfig(
        datasets=datasets,
        source=source,
        notes=notes,
        mask_dirs=tuple(reader.mask_dirs),
        written=written_keys(reader.tables),
    )


def takes_empty(name: str) -> bool:
    """Whether an empty text is a value of the key: of one that is empty by default, or cannot be."""
    never_empty = ("caption_separator", "sentence_suffix")
    return name in KEYS and (KEYS[name].default == "" or name in never_empty)


class _DatasetFileReader:
    """Turns the document into configurations, collecting problems on the way."""

    def __init__(self, lines: TableLines, fallbacks: Mapping[str, Any]) -> None:
        self.lines = lines
        self.fallbacks = fallbacks
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.tables: list[Table] = []
        self.mask_dirs: list[str] = []

    def problem(self, message: str, where: str = "") -> None:
        self.problems.append(Problem(message, where))

    def where(self, path: tuple, key: str = "") -> str:
        """The line of a key, or its path when no line was found."""
        names = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in (*path, key)]
        return self.lines.get((path, key)) or "".join(names).strip(".")

    def read(self, document: dict) -> tuple[DatasetConfig, ...]:
        for name in document:
            if name not in ("general", "datasets"):
                self.unknown_at_top(name)
        general = document.get("general", {})
        if not isinstance(general, dict):
            self.problem("expected a table. Write [general] on a line of its own.", "general")
            general = {}
        outer = [self.entries(general, ("general",)), self.flag_entries()]
        tables = self.array(document, (), "datasets")
        found = [d for i, t in enumerate(tables) for d in self.datasets(t, i, outer)]
        subsets = [subset for dataset in found for subset in dataset.subsets]
        if subsets and all(subset.is_reg for subset in subsets) and not self.problems:
            self.problem("every subset has is_reg = true: there is nothing to train. Unset one.")
        return tuple(found)

    def array(self, parent: dict, path: tuple, name: str) -> list[dict]:
        """The tables under `name`; a problem when there is none or it is not an array."""
        tables, header = parent.get(name, []), LEVELS[name]
        where = self.where((*path, name))
        if isinstance(tables, dict):
            self.problem(f"one table, expected a list. Write {header}, double brackets.", where)
        elif not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
            self.problem(f"expected tables. Write {header} on a line of its own.", where)
        elif not tables:
            purpose = "resolution and batch size" if name == "datasets" else "an image_dir"
            place = self.where(path) if path else ""
            self.problem(f"no {header} here: nothing to train on. Add one with {purpose}.", place)
        else:
            return tables
        return []

    def entries(self, table: dict, path: tuple) -> Settings:
        """The converted values of one table; those with a problem count as their default."""
        found = {}
        level = next(part for part in reversed(path) if isinstance(part, str))
        for name, value in table.items():
            where = self.where(path, name)
            if value == "" and not takes_empty(name):
                continue  # not given
            if name == "subsets" and level == "datasets":
                continue
            if name not in KEYS:
                self.problem(explain_dataset_key(name, FLAGS), where)
            elif level[0] not in KEYS[name].levels:
                self.problem(belongs(name, level), where)
            else:
                found[name] = self.entry(name, value, where)
        return self.with_attributes(found)

    def with_attributes(self, found: Settings) -> Settings:
        """sd-scripts' custom_attributes = {timestep_sampling = {offset = ...}} as the key it is here."""
        given = found.get("custom_attributes")
        sampling = given.value.get("timestep_sampling") if given and given.value else None
        if given is None or not isinstance(sampling, dict) or "offset" not in sampling:
            return found
        if "timestep_offset" in found:
            message = "timestep_offset and custom_attributes' timestep_sampling.offset: keep one."
            self.problem(message, given.where)
        found["timestep_offset"] = self.entry("timestep_offset", sampling["offset"], given.where)
        rest = {name: value for name, value in sampling.items() if name != "offset"}
        others = {name: each for name, each in given.value.items() if name != "timestep_sampling"}
        others |= {"timestep_sampling": rest} if rest else {}
        if others:
            found["custom_attributes"] = Setting(others, given.where)
        else:
            del found["custom_attributes"]
        return found

    def flag_entries(self) -> Settings:
        """What the command line gives for the file's keys."""
        fallbacks = self.fallbacks
        found = {}
        for name, key in KEYS.items():
            flag = name if key.flag == "=" else key.flag
            if name == "caption_extension" and fallbacks.get("caption_extention"):
                flag = "caption_extention"  # the historical misspelling wins, as in sd-scripts
            value = fallbacks.get(flag) if flag else None
            if value is not None:
                value = split_numbers(value) if key.kind in ("size", "range") else value
                found[name] = self.entry(name, value, f"--{flag}")
        return found

    def entry(self, name: str, value: Any, where: str) -> Setting:
        """Check one value against its key."""
        key = KEYS[name]
        try:
            value = convert(key, value)
        except ValueError as error:
            self.problem(str(error), where)
            return Setting(key.default, where)
        return Setting(value, where)

    def unknown_at_top(self, name: str) -> None:
        where = self.where((), name)
        if name in KEYS:
            self.problem(belongs(name, "the top of the file"), where)
            return
        if name in FLAGS:
            self.problem(explain_dataset_key(name, FLAGS), where)
            return
        near = nearest_name(name, ("general", "datasets"))
        hint = f" Did you mean {near}?" if near else " Known: [general] and [[datasets]]."
        self.problem(f"no such section.{hint}", self.where((name,)) if near else where)

    def datasets(self, table: dict, number: int, outer: list[Settings]) -> list[DatasetConfig]:
        """The dataset of one table; one for each size where it lists `resolutions`."""
        path = ("datasets", number)
        chain = [self.entries(table, path), *outer]
        values = {name: _find(name, chain) for name in DATASET_FIELDS}
        sizes = self.sizes(chain)
        for size in sizes:
            self.check_buckets({**values, "resolution": size}, path)
        tables = self.array(table, path, "subsets")
        chains = [[self.entries(t, (*path, "subsets", i)), *chain] for i, t in enumerate(tables)]
        subsets = tuple(self.subset(c, (*path, "subsets", i)) for i, c in enumerate(chains))
        if not subsets or any(size.value is None for size in sizes):
            return []  # their problem is recorded
        fields = {name: entry.value for name, entry in values.items()}
        counts = self.batch_sizes(values["batch_size"], [size.value for size in sizes])
        made = [
            DatasetConfig(**fields | {"resolution": size.value, "batch_size": count},
                          subsets=subsets, family=number)
            for size, count in zip(sizes, counts)
        ]  # fmt: skip
        for dataset in made:
            self.tables.append(Table(chain, dataset))
            self.tables += [Table(c, dataset, subset) for c, subset in zip(chains, subsets)]
        return made

    def sizes(self, chain: list[Settings]) -> list[Setting]:
        """What to train at: resolution or resolutions, whichever is set further inside."""
        for entries in chain:
            if "resolution" in entries and "resolutions" in entries:
                where = entries["resolutions"].where
                self.problem("resolution and resolutions are both set. Keep one.", where)
            if "resolutions" in entries:
                listed = entries["resolutions"]
                return [Setting(size, listed.where) for size in listed.value or ()]
            if "resolution" in entries:
                return [entries["resolution"]]
        return [Setting(None)]

    def batch_sizes(self, entry: Setting, sizes: list[tuple[int, int]]) -> list[int]:
        """Pictures per micro-step at each of the sizes."""
        if not isinstance(entry.value, dict):
            return [entry.value] * len(sizes)
        for title, wrong in (
            ("says nothing of", set(sizes) - entry.value.keys()),
            ("names what is no resolution here,", entry.value.keys() - set(sizes)),
        ):
            if wrong:
                shown = ", ".join(f"{w}" if w == h else f'"{w},{h}"' for w, h in sorted(wrong))
                message = f"batch_size {title} {shown}. Give each resolution its number."
                self.problem(message, entry.where)
        return [entry.value.get(size, 1) for size in sizes]

    def subset(self, chain: list[Settings], path: tuple) -> SubsetConfig:
        """The subset of one table. chain: what is written for it, the innermost first."""
        values = {name: _find(name, chain) for name in SUBSET_FIELDS}
        self.check_places(values, path)
        self.choose_mask(values, chain[0])
        self.check_augmentation(values)
        low, high = values["min_ar"], values["max_ar"]
        if low.value and high.value and low.value > high.value:
            self.problem(f"min_ar is above max_ar = {high.value:g}.", low.where)
        if values["is_reg"].value and "trigger_word" not in chain[0]:
            values["trigger_word"] = Setting("")  # regularisation pictures show the class without it
        if attributes := values["custom_attributes"].value:
            text = json.dumps(attributes, sort_keys=True, default=str)
            values["custom_attributes"] = Setting(text, values["custom_attributes"].where)
        return SubsetConfig(**{name: entry.value for name, entry in values.items()})

    def check_places(self, values: Settings, path: tuple) -> None:
        """The pictures' folder is there and has pictures; the metadata file is a file, the class a class."""
        folder, metadata = values["image_dir"], values["metadata_file"]
        named = values["dataset_class"]
        if named.value is not None:
            if other := [name for name in ("image_dir", "metadata_file") if values[name].where]:
                self.problem(f"dataset_class and {other[0]} are both set. Keep one.", named.where)
            elif message := class_problem(named.value):
                self.problem(message, named.where)
        elif not folder.where and not metadata.where:
            self.problem("image_dir is missing: the folder with the pictures.", self.where(path))
        if folder.value is not None:
            recursive = values["recursive"].value or metadata.value is not None
            if message := folder_problem(folder.value, recursive=recursive):
                self.problem(message, folder.where)
        if metadata.value is not None and not os.path.isfile(metadata.value):
            is_folder = "this is a folder" if os.path.isdir(metadata.value) else "no such file"
            message = f"{is_folder}. Give a JSON file of captions by picture."
            self.problem(message, metadata.where)

    def choose_mask(self, values: Settings, own: Settings) -> None:
        """One source of masks: what the subset itself names wins over what flags say."""
        sources = ("mask_path", "conditioning_data_dir", "alpha_mask")
        given = [name for name in sources if values[name].value]
        named = [values[name].value for name in given if name != "alpha_mask"]
        self.mask_dirs += filter(os.path.isdir, named)
        here = [name for name in given if name in own]
        if len(here) > 1:
            self.problem(
                f"{' and '.join(here)}: a picture has one mask. Keep one.", own[here[0]].where
            )
        for name in given:
            if name != (here or given)[0]:
                values[name] = Setting(KEYS[name].default)
        if values["conditioning_data_dir"].value and not self.fallbacks.get("masked_loss"):
            values["conditioning_data_dir"] = Setting(None)
        for name in ("mask_path", "conditioning_data_dir"):
            if (folder := values[name]).value is not None:
                recursive = values["recursive"].value or values["metadata_file"].value is not None
                if message := folder_problem(folder.value, recursive=recursive):
                    self.problem(message, folder.where)

    def check_augmentation(self, values: Settings) -> None:
        """What changes a picture every time cannot be used with latents that are encoded once."""
        cached = [f for f in ("cache_latents", "cache_latents_to_disk") if self.fallbacks.get(f)]
        for name in ("color_aug", "random_crop", "face_crop_aug_range"):
            if cached and values[name].value:
                text = f"{name} changes pictures every time, and --{cached[0]} encodes them once. "
                self.problem(f"{text}Leave one of them out.", values[name].where)

    def check_buckets(self, values: Settings, path: tuple) -> None:
        """What has to hold between resolution, bucket sizes and steps."""
        resolution, step = values["resolution"], values["bucket_reso_steps"]
        if resolution.value is None:
            if not resolution.where:
                missing = "resolution is missing. Add for example resolution = 1024."
                self.problem(missing, self.where(path))
            return
        bucketed = values["enable_bucket"].value
        if bucketed and step.value % PIXEL_GRID:
            self.problem(f"bucket_reso_steps must be a multiple of {PIXEL_GRID}.", step.where)
            return
        unit, reason = (step.value, "bucket_reso_steps") if bucketed else (PIXEL_GRID, "the model")
        self.check_multiple("resolution", resolution, unit, reason)
        if not bucketed or values["bucket_no_upscale"].value:
            return  # min and max have no effect
        low, high = values["min_bucket_reso"], values["max_bucket_reso"]
        self.check_multiple("min_bucket_reso", low, unit, reason)
        self.check_multiple("max_bucket_reso", high, unit, reason)
        place = resolution.where
        if low.value > min(resolution.value):
            message = f"resolution is below min_bucket_reso = {low.value}. Lower min_bucket_reso"
            self.problem(f"{message} to {min(resolution.value)} or less.", low.where or place)
        if high.value < max(resolution.value):
            message = f"resolution is above max_bucket_reso = {high.value}. Raise max_bucket_reso"
            self.problem(f"{message} to {max(resolution.value)} or more.", high.where or place)

    def check_multiple(self, name: str, entry: Setting, unit: int, reason: str) -> None:
        edges = entry.value if isinstance(entry.value, tuple) else (entry.value,)
        wrong = [edge for edge in edges if edge % unit]
        if wrong:
            near = [max(unit, round(edge / unit) * unit) for edge in edges]
            shown = near[0] if len(set(near)) == 1 else near
            text = f"{name} {wrong[0]} is not divisible by {unit} ({reason}). Nearest: {shown}."
            self.problem(text, entry.where)


def _find(name: str, chain: Iterable[Settings]) -> Setting:
    """The innermost entry of a key, else its default."""
    return next((e[name] for e in chain if name in e), Setting(KEYS[name].default))
