"""dataset.toml to frozen configurations: [general] -> [[datasets]] -> [[datasets.subsets]].

The lower level wins, then the flag of the same meaning, then the default. Types are strict, and all
problems are reported at once with their lines. Every key of sd-scripts is known; those without
effect here yet are an error when set to anything but their default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.captions import CaptionRecipe
from library.dataset_keys import IMAGE_EXTENSIONS, KEYS, LEVELS, belongs, convert, split_numbers
from library.errors import ConfigError, Problem
from library.utils import nearest_name

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

PIXEL_GRID = 16  # the VAE shrinks by 8, the denoiser takes patches of 2


@dataclass(frozen=True, kw_only=True)
class SubsetConfig(CaptionRecipe):
    """One folder of pictures and how its pictures and captions are used."""

    image_dir: str
    num_repeats: int = 1
    caption_extension: str = ".txt"
    flip_aug: bool = False
    resize_interpolation: str | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Subsets that share a resolution (width, height) and a batch size."""

    resolution: tuple[int, int]
    subsets: tuple[SubsetConfig, ...]
    batch_size: int = 1
    enable_bucket: bool = False
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    bucket_reso_steps: int = 64
    bucket_no_upscale: bool = False


@dataclass(frozen=True, kw_only=True)
class DatasetGroupConfig:
    """All datasets of a run, the file they come from, and what the user should be told once."""

    datasets: tuple[DatasetConfig, ...]
    source: str
    notes: tuple[str, ...] = ()


DATASET_FIELDS = tuple(set(DatasetConfig.__dataclass_fields__) - {"subsets"})
SUBSET_FIELDS = tuple(SubsetConfig.__dataclass_fields__)


@dataclass(frozen=True)
class Entry:
    """A converted value and where it was set: a line, a flag, "" for a default."""

    value: Any
    where: str = ""


Entries = dict[str, Entry]


def load_dataset_config(
    path: str | Path, fallbacks: Mapping[str, Any], *, grid: int = PIXEL_GRID
) -> DatasetGroupConfig:
    """Read and check a dataset file. Raises ConfigError with everything that is wrong.

    fallbacks: flag values by flag name, used where the file is silent; None counts as not given
    grid:      pixels to which every bucket edge has to be a multiple
    """
    text, document = _parse(Path(path))
    reader = _Reader(_find_lines(text), grid)
    datasets = reader.read(document, fallbacks)
    if reader.problems:
        raise ConfigError(list(dict.fromkeys(reader.problems)), source=str(path))
    return DatasetGroupConfig(datasets=datasets, source=str(path), notes=tuple(reader.notes))


class _Reader:
    """Turns the document into configurations, collecting problems on the way."""

    def __init__(self, lines: Mapping[tuple, str], grid: int) -> None:
        self.lines = lines
        self.grid = grid
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def problem(self, message: str, where: str = "") -> None:
        self.problems.append(Problem(message, where))

    def where(self, path: tuple, key: str = "") -> str:
        """The line of a key, or its path when no line was found."""
        names = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in (*path, key)]
        return self.lines.get((path, key)) or "".join(names).strip(".")

    def read(self, document: dict, fallbacks: Mapping[str, Any]) -> tuple[DatasetConfig, ...]:
        for name in document:
            if name not in ("general", "datasets"):
                self.unknown_at_top(name)
        general = document.get("general", {})
        if not isinstance(general, dict):
            self.problem("expected a table. Write [general] on a line of its own.", "general")
            general = {}
        outer = [self.entries(general, ("general",)), self.flag_entries(fallbacks)]
        tables = self.array(document, (), "datasets")
        found = [self.dataset(t, ("datasets", i), outer) for i, t in enumerate(tables)]
        return tuple(dataset for dataset in found if dataset)

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

    def entries(self, table: dict, path: tuple) -> Entries:
        """The converted values of one table; those with a problem count as their default."""
        found = {}
        level = next(part for part in reversed(path) if isinstance(part, str))
        for name, value in table.items():
            where = self.where(path, name)
            if name == "subsets" and level == "datasets":
                continue
            if name not in KEYS:
                near = nearest_name(name, KEYS)
                hint = f" Did you mean {near}?" if near else ""
                self.problem(f"no such option.{hint}", where)
            elif level[0] not in KEYS[name].levels:
                self.problem(belongs(name, level), where)
            else:
                found[name] = self.entry(name, value, where)
        return found

    def flag_entries(self, fallbacks: Mapping[str, Any]) -> Entries:
        """What the command line gives for the file's keys."""
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

    def entry(self, name: str, value: Any, where: str) -> Entry:
        """Check one value against its key."""
        key = KEYS[name]
        try:
            value = convert(key, value)
        except ValueError as error:
            self.problem(str(error), where)
            return Entry(key.default, where)
        if key.later and value != key.default:
            self.problem(f"{name} is not available yet. Remove it.", where)
        if name == "cache_info" and value:
            self.notes.append("cache_info has no effect yet: picture sizes are read at every start")
        return Entry(value, where)

    def unknown_at_top(self, name: str) -> None:
        where = self.where((), name)
        if name in KEYS:
            self.problem(belongs(name, "the top of the file"), where)
            return
        near = nearest_name(name, ("general", "datasets"))
        hint = f" Did you mean {near}?" if near else " Known: [general] and [[datasets]]."
        self.problem(f"no such section.{hint}", self.where((name,)) if near else where)

    def dataset(self, table: dict, path: tuple, outer: list[Entries]) -> DatasetConfig | None:
        chain = [self.entries(table, path), *outer]
        values = {name: _find(name, chain) for name in DATASET_FIELDS}
        self.check_buckets(values, path)
        tables = self.array(table, path, "subsets")
        subsets = [self.subset(t, (*path, "subsets", i), chain) for i, t in enumerate(tables)]
        if values["resolution"].value is None or not subsets:
            return None  # its problem is recorded
        fields = {name: entry.value for name, entry in values.items()}
        return DatasetConfig(subsets=tuple(subsets), **fields)

    def subset(self, table: dict, path: tuple, outer: list[Entries]) -> SubsetConfig:
        chain = [self.entries(table, path), *outer]
        values = {name: _find(name, chain) for name in SUBSET_FIELDS}
        if values["image_dir"].where:
            if values["image_dir"].value is not None:
                self.check_folder(values["image_dir"])
        else:
            self.problem("image_dir is missing: the folder with the pictures.", self.where(path))
        return SubsetConfig(**{name: entry.value for name, entry in values.items()})

    def check_buckets(self, values: Entries, path: tuple) -> None:
        """What has to hold between resolution, bucket sizes and steps."""
        resolution, step = values["resolution"], values["bucket_reso_steps"]
        if resolution.value is None:
            if not resolution.where:
                missing = "resolution is missing. Add for example resolution = 1024."
                self.problem(missing, self.where(path))
            return
        bucketed = values["enable_bucket"].value
        if bucketed and step.value % self.grid:
            self.problem(f"bucket_reso_steps must be a multiple of {self.grid}.", step.where)
            return
        unit, reason = (step.value, "bucket_reso_steps") if bucketed else (self.grid, "the model")
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

    def check_multiple(self, name: str, entry: Entry, unit: int, reason: str) -> None:
        edges = entry.value if isinstance(entry.value, tuple) else (entry.value,)
        wrong = [edge for edge in edges if edge % unit]
        if wrong:
            near = [max(unit, round(edge / unit) * unit) for edge in edges]
            shown = near[0] if len(set(near)) == 1 else near
            text = f"{name} {wrong[0]} is not divisible by {unit} ({reason}). Nearest: {shown}."
            self.problem(text, entry.where)

    def check_folder(self, entry: Entry) -> None:
        """The folder is there and has pictures."""
        message = _folder_problem(entry.value)
        if message:
            self.problem(message, entry.where)


def _find(name: str, chain: Iterable[Entries]) -> Entry:
    """The innermost entry of a key, else its default."""
    return next((e[name] for e in chain if name in e), Entry(KEYS[name].default))


def _folder_problem(name: str) -> str | None:
    """What is wrong with a picture folder. A relative one counts from the current directory."""
    folder = Path(name)
    if re.search(r"[\x00-\x1f]", name):
        return "a backslash was read as an escape. Use 'single quotes', or / instead of \\."
    if folder.is_file():
        return "this is a file. Give the folder that holds the pictures."
    if not folder.is_dir():
        hint = f"It is looked for in {Path.cwd()}." if not folder.is_absolute() else ""
        if os.name != "nt" and re.match(r"[A-Za-z]:\\", name):
            hint = "This is a Windows path."
        siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        near = nearest_name(folder.name, siblings)
        return f"no such folder. {f'Did you mean {folder.parent / near}? ' if near else ''}{hint}"
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        return f"the folder cannot be read: {error.strerror}."
    if any(child.suffix.lower() in IMAGE_EXTENSIONS for child in children):
        return None
    message = f"no pictures in this folder (looked for {', '.join(IMAGE_EXTENSIONS)})."
    inner = [child.name for child in children if child.is_dir() and not child.name.startswith("_")]
    return (
        f"{message} It is not searched deeper: give {inner[0]} its own subset."
        if inner
        else message
    )


def _parse(path: Path) -> tuple[str, dict]:
    """The file's text and its content. Raises ConfigError when it cannot be read as TOML."""
    source = str(path)
    if path.suffix.lower() == ".json":
        raise ConfigError("a JSON dataset file is not available yet. Write TOML.", source=source)
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return text, tomllib.loads(text)
    except FileNotFoundError:
        message = f"no such file. --dataset_config is looked for in {Path.cwd()}."
    except OSError as error:
        message = f"cannot be read: {error.strerror}."
    except UnicodeDecodeError:
        message = "is not UTF-8 text. Save it as UTF-8 (in Notepad: Save as, Encoding UTF-8)."
    except (ValueError, RecursionError) as error:  # TOMLDecodeError; endless numbers and nesting
        message = f"is not valid TOML: {error}.{_toml_hint(text, str(error))}"
    raise ConfigError(message, source=source)


def _toml_hint(text: str, error: str) -> str:
    """The line in question, and what to do about Windows paths."""
    place = re.search(r"at line (\d+)", error)
    line = text.splitlines()[int(place[1]) - 1].strip() if place else ""
    shown = f" The line: {line}" if line else ""
    if "\\" in line:
        shown += "  A path with \\ needs 'single quotes', or / instead of \\."
    return shown


def _find_lines(text: str) -> dict[tuple, str]:
    """(table path, key) -> "line N  its text"; key "" for headers. What it misses has no line."""
    found: dict[tuple, str] = {}
    path: tuple = ()
    datasets = subsets = -1
    for number, line in enumerate(text.splitlines(), 1):
        shown = f"line {number}  {line.strip()[:60]}"
        header = re.match(r"\[+([\w.\s-]+)\]+\s*(#.*)?$", line.strip())
        name = header[1].strip() if header else ""
        pair = re.match(r"""\s*["']?([\w-]+)["']?\s*=""", line)
        if name == "datasets":
            datasets, subsets = datasets + 1, -1
            path = ("datasets", datasets)
        elif name == "datasets.subsets":
            subsets += 1
            path = ("datasets", datasets, "subsets", subsets)
        elif header:
            path = (name,)
        if header or pair:
            found.setdefault((path, pair[1] if pair else ""), shown)
    return found
