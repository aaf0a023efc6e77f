"""A zip for a bug report: the report, the settings, the end of the log, what lies in the output folder.

No pictures and no captions are in it; secrets, names of users in paths, and the names that the user
gave to pictures, folders and the run are blotted out.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.anima_doctor.own_names import DATA_FOLDERS, OWN_NAMES, OwnNames, own_names
from library.anima_doctor.page import ROOT, SECRET_NAME, scrub, secret_values, value_of
from library.errors import ConfigError, OutputError, Problem
from library.settings.config_file import with_suffix
from library.system.files import replace_file
from library.system.system_errors import output_errors
from library.system.text_files import TextFileError, parse_json, parse_toml, read_text

if TYPE_CHECKING:
    from library.anima_doctor.report import Check
    from library.data.data_types import ImageInfo

LOG_LINES = 200
MOST_FILES = 1000
SHORTEST = 4  # letters of a caption that is searched for: shorter ones are words of any text
SHORTEST_SECRET = 8
CUT = 20  # letters by which the beginning of a longer one is known
OWN_WORDS = r"caption_prefix|caption_suffix|class_tokens|trigger\w*|training_comment|metadata_\w+"
TEXT_KEYS = re.compile(rf"^({OWN_WORDS}|\w*prompts?)$")
ASSIGNED = re.compile(rf"\b((?:{OWN_WORDS})\s*=\s*)\S.*")  # a line of a file, where it is quoted
QUOTED = re.compile(rf"(The line: (?:{'|'.join((*OWN_NAMES, *DATA_FOLDERS))})\s*=\s*)\S.*")
"""The same of a file that is not valid: what it names is known from nowhere else."""
FILES_OF_TEXTS = (".txt", ".toml", ".json", ".jsonl")
IN_HOMES = re.compile(r"(?i)([\\/](?:home|users|documents and settings)[\\/]+)[^\\/\"'\n<>|:*?]+")
PUBLIC_NAMES = {"root", "user", "users", "home", "admin", "ubuntu", "runner", "localhost"}
CONTENTS = """What is in this file, made by tools/doctor.py --bundle:

report.txt           the report on the run
settings/*.json      the two files of settings, without comments
versions.txt         the packages that are installed
output_files.txt     names and sizes of what is in the output folder
log.txt              the last lines of console_log_file, where it is set
steps.jsonl          the last lines of the newest loss.jsonl

Left out: pictures, captions, prompts, keys and tokens. *** stands for a secret, a caption, a text of
yours or a name that you gave (of folders, of the run, of what is trained), PICTURE_<number> for the name
of a picture, USER for a user's or a machine's name. Names of model files and words such as train and
output stay. Look through it before you publish it.
"""


@dataclass(frozen=True)
class Redaction:
    """secrets: values of secret options. texts: captions and prompts. names: of user and machine.

    own: names that the user gave
    """

    secrets: tuple[str, ...]
    texts: tuple[str, ...]
    names: tuple[str, ...]
    own: OwnNames = field(default_factory=OwnNames)

    def apply(self, text: str) -> str:
        """The text without secrets, captions, the names of users and those that they gave."""
        text = ASSIGNED.sub(r"\1***", scrub(text, self.secrets))
        text = QUOTED.sub(r"\1***", text)
        for private in self.texts:
            if private in text:
                text = re.sub(rf"(?<!\w){re.escape(private)}(?!\w)", "***", text)
            elif len(private) > CUT and private[:CUT] in text:  # the report ends long values so
                text = re.sub(rf"{re.escape(private[:CUT])}[^\n]*?\.\.\.", "***...", text)
        text = IN_HOMES.sub(r"\1USER", text)
        for name in self.names:
            text = re.sub(rf"(?i)(?<![^\W_]){re.escape(name)}(?![^\W_])", "USER", text)
        return self.own.blot_out(text)


def check_target(file: str) -> None:
    """Raises ConfigError or OutputError for a name that no zip can be written to."""
    path = Path(file)
    if path.suffix.lower() != ".zip":
        raise ConfigError(Problem(f"{file} should end in .zip.", "--bundle"))
    if path.exists():
        raise OutputError(Problem("is there already. Choose another name.", source=str(path)))


def write(check: Check, report: str, file: str) -> None:
    """The zip for a run that was looked at. Raises OutputError where it cannot be written."""
    path = Path(file)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    texts = list(parts(check, report))
    with output_errors(path):
        try:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, text in texts:
                    archive.writestr(name, text)
            replace_file(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def parts(check: Check, report: str) -> Iterator[tuple[str, str]]:
    """Each file of the zip: its name and its text."""
    settings = dict(settings_files(check))
    typed = {dest: item.value for dest, item in check.loaded.given.items()}
    said = [pair for content in (*settings.values(), typed) for pair in leaves(content)]
    names = private_names()
    redaction = Redaction(
        (*secret_values(check.loaded), *secrets_around()),
        tuple(private_texts(check, said)),
        tuple(names),
        own_names(said, [image.path for image in images_of(check)], [*names, *ROOT.parts, "USER"]),
    )
    yield "contents.txt", CONTENTS
    yield "report.txt", redaction.apply(report)
    for name, content in settings.items():
        shown = json.dumps(without_texts(content), ensure_ascii=False, indent=1, default=str)
        yield f"settings/{name}.json", redaction.apply(shown)
    installed = {f"{each.metadata['Name']}=={each.version}" for each in metadata.distributions()}
    yield "versions.txt", redaction.apply("\n".join(sorted(installed, key=str.lower)) + "\n")
    folder = check.train.save.output_dir
    listing = "\n".join(files_below(Path(folder))) if folder else "output_dir is not set"
    yield "output_files.txt", redaction.apply(listing + "\n")
    if check.catalogue is None:
        yield "log.txt", "left out: the captions that may stand in it are not known\n"
        return
    if log := check.train.logging.console_log_file:
        yield "log.txt", redaction.apply(last_lines(Path(log)))
    if steps := newest_steps(check):
        yield "steps.jsonl", redaction.apply(last_lines(steps))


def settings_files(check: Check) -> Iterator[tuple[str, Any]]:
    """What stands in the files of settings, by a name for each; of an unreadable one only that it is."""
    for dest in ("config_file", "dataset_config"):
        if dest not in check.loaded.given:
            continue
        file = str(value_of(check.loaded, dest))
        try:
            yield dest, read_table(with_suffix(file) if dest == "config_file" else file)
        except (TextFileError, FileNotFoundError):
            yield dest, "cannot be read: see the report"


def without_texts(content: Any, name: str = "") -> Any:
    """The settings, with *** for secrets and for texts of the user's own."""
    if isinstance(content, dict):
        return {key: without_texts(value, key) for key, value in content.items()}
    if isinstance(content, list):
        return [without_texts(value, name) for value in content]
    if SECRET_NAME.search(name) or (isinstance(content, str) and is_text(name, content)):
        return "***"
    return content


def is_text(name: str, value: str) -> bool:
    """Whether the value of a key is the user's own words, and not a file of them."""
    return bool(TEXT_KEYS.match(name)) and not value.lower().endswith(FILES_OF_TEXTS)


def images_of(check: Check) -> list[ImageInfo]:
    """Every picture that was found, to train and to validate with."""
    return [*check.catalogue.images, *check.catalogue.held_out] if check.catalogue else []


def secrets_around() -> list[str]:
    """Tokens and keys in the environment: a library's message may quote them."""
    found = (value for name, value in os.environ.items() if SECRET_NAME.search(name.lower()))
    return [value for value in found if len(value) >= SHORTEST_SECRET]


def private_texts(check: Check, said: Iterable[tuple[str, str]]) -> list[str]:
    """Captions, prompts and texts in the settings, the longest first. said: (key, text) of those."""
    found: set[str] = set()
    for image in images_of(check):
        found |= {image.caption or "", image.sentences or ""}
    for name, value in said:
        if is_text(name, value):
            found.add(value)
        elif TEXT_KEYS.match(name):
            found |= prompts_of(value)
    lines = {line.strip() for text in found for line in text.splitlines()}
    lines |= {line.partition(" --")[0].strip() for line in lines}
    lines |= {json.dumps(line, ensure_ascii=False)[1:-1] for line in lines}
    return sorted((line for line in lines if len(line) >= SHORTEST), key=len, reverse=True)


def prompts_of(file: str) -> set[str]:
    """The texts of a file of prompts; none where it cannot be read, which the report tells."""
    try:
        if not file.lower().endswith((".toml", ".json")):
            return {read_text(file)}
        said = leaves(read_table(file))
    except (TextFileError, FileNotFoundError):
        return set()
    return {text for key, text in said if not key or is_text(key, text) or "negative" in key}


def read_table(file: str | Path) -> Any:
    """What a TOML or JSON file holds. Raises TextFileError, FileNotFoundError."""
    parse = parse_json if Path(file).suffix.lower() == ".json" else parse_toml
    return parse(read_text(file))


def leaves(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of every text in the settings."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from leaves(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from leaves(value, name)
    elif isinstance(content, str):
        yield name, content


def private_names() -> list[str]:
    """The names of the user and of the machine, but those that tell nothing."""
    home = os.path.basename(os.path.expanduser("~"))
    found = {home, platform.node(), platform.node().partition(".")[0]}
    try:
        found.add(getpass.getuser())
    except (OSError, KeyError, ImportError):  # no such user, as in a container
        pass
    names = (name for name in found if len(name) > 2 and name.lower() not in PUBLIC_NAMES)
    return sorted(names, key=len, reverse=True)


def files_below(folder: Path) -> list[str]:
    """Name and bytes of each file, MOST_FILES at most."""
    if not folder.is_dir():
        return ["the folder is not there yet"]
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            lines.append(f"{path.stat().st_size:>14,}  {path.relative_to(folder).as_posix()}")
    return [
        *lines[:MOST_FILES],
        *([f"and {len(lines) - MOST_FILES} more"] if lines[MOST_FILES:] else []),
    ]


def newest_steps(check: Check) -> Path | None:
    """The loss.jsonl that was written last below the output folder or logging_dir."""
    folders: Collection[str | None] = (check.train.save.output_dir, check.train.logging.logging_dir)
    found = [file for folder in folders if folder for file in Path(folder).rglob("loss.jsonl")]
    return max(found, key=lambda file: file.stat().st_mtime, default=None)


def last_lines(file: Path) -> str:
    """LOG_LINES of a text at most; says so where there is none."""
    try:
        text = file.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        return f"cannot be read: {error.strerror}\n"
    return "\n".join(text.splitlines()[-LOG_LINES:]) + "\n"
