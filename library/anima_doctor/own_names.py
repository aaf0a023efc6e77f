"""What the user's own names are, and a text without them: of pictures, folders, files and the run.

They often say who or what is trained: `5_alice`, `alice_v2.safetensors`. Words that every run has
(train, output, lora) tell nothing and stay, so that a report can still be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from library.data.picture_folders import CACHE_FOLDER

DATA_FOLDERS = ("image_dir", "train_data_dir", "reg_data_dir", "conditioning_data_dir", "mask_path")
OWN_PATHS = (
    *("output_dir", "logging_dir", "console_log_file", "network_weights", "base_weights", "resume"),
    *("config_file", "dataset_config", "sample_prompts", "drift_prompts", "in_json", "metadata_file"),
    *("metadata_thumbnail", "prior_preservation_prompts", "log_tracker_config"),
)
OWN_NAMES = (
    *("output_name", "class_tokens", "trigger_word", "wandb_run_name", "log_tracker_name"),
    *("log_prefix", "huggingface_repo_id", "huggingface_path_in_repo"),
)
NUMBERED = re.compile(r"(-step\d+|-\d+|-state|-ema|-universal)+$")
"""What the program puts behind a run's name in names of files."""
CUT_PATH = re.compile(r"(?P<before>[\\/](?:\d+_)?)(?P<rest>[^\\/\n]+?)\.\.\.")
REPEATS = re.compile(r"^\d+_(?=.)")
MOST_FILES = 20_000  # of a folder that is looked through
COMMON_WORDS = (
    "my lora loras lokr loha oft anima sd scripts train training trainer args config configs dataset "
    "datasets data img imgs image images pic pics picture pictures photo photos caption captions tag "
    "tags mask masks reg regularization regularisation sample samples log logs console prompt prompts "
    "validation val eval preview previews model models base weights checkpoint checkpoints out output "
    "outputs run runs test tests demo quickstart new old final last best latest state step epoch ema "
    "universal ver version concept character style preset safetensors txt json jsonl toml csv file "
    "files folder metadata tmp temp mnt media volumes var srv opt etc usr root home user users "
    "workspace workspaces content drive mydrive kaggle working input documents desktop downloads "
    "project projects ai work "
    "训练 数据 数据集 图片 图像 素材 标注 输出 模型 日志 提示词 样图 测试 炼丹"
)
ORDINARY = frozenset(COMMON_WORDS.split())


@dataclass(frozen=True)
class OwnNames:
    """words: blotted out wherever they stand; folders: in paths; pictures: before an ending, numbered."""

    words: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()

    def blot_out(self, text: str) -> str:
        """The text with PICTURE_<number> for names of pictures and *** for the others."""
        lower = text.lower()
        numbers = {name: number for number, name in enumerate(self.pictures, 1)}
        for name in longest_first(self.pictures):
            if name.lower() in lower:
                pattern = rf"(?i)(?<![^\W_]){re.escape(name)}(?=(?:_\w+)?\.\w)"
                text = re.sub(pattern, f"PICTURE_{numbers[name]}", text)
        for name in longest_first(self.words):
            if name.lower() in lower:
                text = re.sub(rf"(?i)(?<![^\W_]){re.escape(name)}(?![^\W_])", "***", text)
        for name in longest_first(self.folders):
            if name.lower() in lower:
                sign = re.escape(name)
                pattern = rf"(?i)(?<=[\\/]){sign}(?![^\W_])|(?<![^\W_]){sign}(?=[\\/])"
                text = re.sub(pattern, "***", text)
        return CUT_PATH.sub(self.blot_out_beginning, text)

    def blot_out_beginning(self, cut: re.Match[str]) -> str:
        """The last name of a path that a table has cut, without it where it may be one of the names."""
        rest = cut["rest"].lower()
        names = (*self.words, *self.folders, *self.pictures)
        is_own = any(name.lower().startswith(rest) for name in names)
        return f"{cut['before']}***..." if is_own else cut[0]


def longest_first(names: Iterable[str]) -> list[str]:
    return sorted(names, key=len, reverse=True)


def own_names(
    settings: Iterable[tuple[str, str]], pictures: Iterable[Path], known: Iterable[str]
) -> OwnNames:
    """The names in settings and on the disk.

    settings: (key, text) of the files of settings and the command line
    pictures: those of the catalogue; the data folders are looked through besides
    known:    names that stay: of the user, the machine, the program's folder
    """
    stay = {name.lower() for name in known}
    words: set[str] = set()
    paths: list[str] = []
    files = [str(path) for path in pictures]
    for key, value in settings:
        if key in OWN_NAMES:
            words |= {part.strip() for part in re.split(r"[\\/,]", value)}
        elif key in DATA_FOLDERS:
            paths.append(value)
            files += islice(files_within(value), MOST_FILES)
        elif key in OWN_PATHS:
            paths.append(value)
    paths += dict.fromkeys(map(os.path.dirname, files))
    folders: set[str] = set()
    for path in paths:
        *above, last = parts_of(path) or [""]
        folders.update(above)
        words |= {last, NUMBERED.sub("", os.path.splitext(last)[0])}
    return OwnNames(
        words=tuple(sorted(name for name in words if tells(name) and name.lower() not in stay)),
        folders=tuple(sorted(name for name in folders if tells(name) and name.lower() not in stay)),
        pictures=tuple(stems_of(files)),
    )


def stems_of(files: Iterable[str]) -> Iterator[str]:
    """Each name without its ending, but numbers, and names that go on from another (`a_nl` from `a`)."""
    stems = dict.fromkeys(os.path.splitext(os.path.basename(file))[0] for file in files)
    for stem in stems:
        cuts = (found.start() for found in re.finditer("_", stem))
        if any(letter.isalpha() for letter in stem) and not any(stem[:cut] in stems for cut in cuts):
            yield stem


def files_within(folder: str) -> Iterator[str]:
    """Every file below a folder, in the order of names, and each folder as a path that ends in a slash."""
    for place, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if name[0] != "." and name != CACHE_FOLDER)
        yield from (os.path.join(place, name) for name in ("", *sorted(names)))


def parts_of(path: str) -> list[str]:
    """The names in a path, from the root down, without drives, repeats and the user's home."""
    whole, home = os.path.abspath(os.path.expanduser(path)), os.path.expanduser("~")
    if len(home) > 1 and whole.startswith(home):
        whole = whole[len(home) :]
    parts = (REPEATS.sub("", part) for part in re.split(r"[\\/]+", whole))
    return [part for part in parts if part and not part.endswith(":")]


def tells(name: str) -> bool:
    """Whether a name may tell what is trained: it has a word that not every run has."""
    if len(name) < 2 and name.isascii():
        return False
    words = [word for word in re.split(r"[\W\d_]+", name.lower()) if word]
    return any(word not in ORDINARY and not (len(word) == 1 and word.isascii()) for word in words)
