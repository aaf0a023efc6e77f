"""A file of prompts to draw: lines with sd-scripts' inline options, TOML or JSON. All problems at once.

txt:  one picture a line, `a cat --n blurry --w 832 --h 1216 --d 42`; empty lines and # lines are passed over
toml: [prompt] holds what all share, each [[prompt.subset]] is a picture; keys as in JSON
json: a list of pictures, or {"prompt": {..., "subset": [...]}}; a picture is a text or an object
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from library.errors import ConfigError, Problem
from library.previews.prompts import parse_prompt
from library.previews.samplers import SAMPLERS, resolve_sampler
from library.previews.sampling import sigma_list
from library.previews.sigma_rules import RULES
from library.system.text_files import TextFileError, parse_json, parse_toml, read_text
from library.utils import nearest_name

LARGEST_FILE = 4_000_000  # bytes
COMFYUIS_NEGATIVE = (
    "worst quality, low quality, score_1, score_2, score_3, blurry, jpeg artifacts, sepia"
)
GRID = 8  # pixels that a latent covers


@dataclass(frozen=True, kw_only=True)
class PreviewPrompt:
    """One picture to draw. Defaults are those of ComfyUI's workflow for the model.

    seed:       None: the caller's
    width, height: pixels, multiples of 8; None: the caller's
    multiplier: strength of the trained adapters
    notes:      what should be told of its settings
    """

    prompt: str
    negative: str = COMFYUIS_NEGATIVE
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    steps: int = 30
    cfg: float = 4.0
    shift: float = 3.0
    sampler: str = "er_sde"
    scheduler: str = "simple"
    multiplier: float = 1.0
    notes: tuple[str, ...] = ()

    @property
    def has_negative(self) -> bool:
        """Whether the negative is asked: not where guidance is 1."""
        return not math.isclose(self.cfg, 1.0)


@dataclass(frozen=True)
class Setting:
    """One thing that can be said of a picture. letter: of the inline option; keys: in TOML and JSON."""

    field: str
    letter: str
    keys: tuple[str, ...]
    read: Callable[[Any], Any]


class Unfit(ValueError):
    """What is wrong with a value, as the rest of a sentence."""


def number(low: float, high: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        try:
            found = float(value) if not isinstance(value, bool) else math.nan
        except (TypeError, ValueError, OverflowError):
            found = math.nan
        if not low <= found <= high:
            raise Unfit(f"expected a number from {low:g} to {high:g}")
        return found

    return read


def whole(low: int, high: int, grid: int = 1) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        shown = f"expected a whole number from {low} to {high}"
        is_text = isinstance(value, str) and re.fullmatch(r"\d{1,20}", value)
        if isinstance(value, bool) or not (isinstance(value, int) or is_text):
            raise Unfit(shown)
        found = int(value)
        if not low <= found <= high:
            raise Unfit(shown)
        if found % grid:
            below = found // grid * grid
            raise Unfit(f"expected a multiple of {grid}: {below} or {below + grid}")
        return found

    return read


def words(value: Any) -> str:
    if not isinstance(value, str):
        raise Unfit("expected text")
    parse_prompt(value)
    return value


def one_of(names: Mapping[str, object]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in tuple(names):
            near = nearest_name(str(value), names)
            hint = f"Did you mean {near}?" if near else f"There are {', '.join(names)}"
            raise Unfit(f"no such name. {hint}")
        return str(value)

    return read


def sampler(value: Any) -> str:
    """A sampler's name, ours or sd-scripts'; it is resolved when the picture is put together."""
    if not isinstance(value, str) or resolve_sampler(value) is None:
        near = nearest_name(str(value), SAMPLERS)
        hint = f"Did you mean {near}?" if near else f"There are {', '.join(SAMPLERS)}"
        raise Unfit(f"no such sampler. {hint}")
    return value


SETTINGS = (
    Setting("prompt", "", ("prompt",), words),
    Setting("negative", "n", ("negative_prompt", "negative"), words),
    Setting("width", "w", ("width",), whole(64, 8192, GRID)),
    Setting("height", "h", ("height",), whole(64, 8192, GRID)),
    Setting("seed", "d", ("seed",), whole(0, 2**63 - 1)),
    Setting("steps", "s", ("sample_steps", "steps"), whole(1, 1000)),
    Setting("cfg", "l", ("scale", "cfg"), number(0, 100)),
    Setting("cfg", "g", ("guidance_scale",), number(0, 100)),
    Setting("shift", "fs", ("flow_shift", "shift"), number(0.01, 100)),
    Setting("sampler", "ss", ("sample_sampler", "sampler"), sampler),
    Setting("scheduler", "sc", ("scheduler",), one_of(RULES)),
    Setting("multiplier", "am", ("additional_network_multiplier", "multiplier"), number(-100, 100)),
)
BY_LETTER = {setting.letter: setting for setting in SETTINGS if setting.letter}
BY_KEY = {key: setting for setting in SETTINGS for key in setting.keys}
WITHOUT_USE = {"cn", "ctr", "rcfg", "controlnet_image", "ctr_mode", "enum"}
"""sd-scripts' options for what this model has not; enum is its own numbering."""


USUAL = PreviewPrompt(prompt="")


def read_prompts(path: str | Path, usual: PreviewPrompt = USUAL) -> list[PreviewPrompt]:
    """The pictures of a prompt file, in order. Raises ConfigError with every problem and its place.

    usual: settings of pictures that do not name theirs
    """
    source = str(path)
    try:
        text = read_text(path)
        if len(text) > LARGEST_FILE:
            raise TextFileError("is too large for a file of prompts.")
        entries = list(_entries(text, Path(path).suffix.lower()))
    except FileNotFoundError:
        message = f"no such file. It is looked for in {Path.cwd()}."
        raise ConfigError(message, source=source) from None
    except TextFileError as error:
        raise ConfigError(str(error), source=source) from error
    if not entries:
        raise ConfigError("holds no prompt. Write one a line.", source=source)
    reader = _Reader(usual)
    prompts = [reader.picture(where, values) for where, values in entries]
    if reader.problems:
        raise ConfigError(reader.problems, source=source)
    return prompts


Values = list[tuple[str, str, Any]]
"""What a picture is told: (name as written, key of BY_KEY or BY_LETTER with its dashes, value)."""


def _entries(text: str, suffix: str) -> Iterator[tuple[str, Values]]:
    """Each picture: where it stands, and what is said of it."""
    if suffix == ".toml":
        yield from _of_tables(parse_toml(text))
    elif suffix == ".json":
        document = parse_json(text)
        if isinstance(document, list):
            yield from _of_list(document, {})
        else:
            yield from _of_tables(document)
    else:
        for number_, line in enumerate(text.splitlines(), start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                yield f"line {number_}", _of_line(line.strip())


def _of_line(line: str) -> Values:
    prompt, *options = re.split(r"(?:^|\s)--(?=[A-Za-z])", line)
    values: Values = [("prompt", "prompt", prompt.strip())]
    for option in options:
        letter, _, value = option.strip().partition(" ")
        values.append((f"--{letter}", f"--{letter}", value.strip()))
    return values


def _of_tables(document: Any) -> Iterator[tuple[str, Values]]:
    table = document.get("prompt") if isinstance(document, dict) else None
    if not isinstance(table, dict):
        raise TextFileError("holds no [prompt] table with [[prompt.subset]] tables in it.")
    shared = {key: value for key, value in table.items() if key != "subset"}
    subsets = table.get("subset", [{}] if "prompt" in shared else [])
    if not isinstance(subsets, list):
        raise TextFileError("prompt.subset is not a list: write [[prompt.subset]].")
    yield from _of_list(subsets, shared)


def _of_list(pictures: list[Any], shared: Mapping[str, Any]) -> Iterator[tuple[str, Values]]:
    for number_, picture in enumerate(pictures, start=1):
        if isinstance(picture, str):
            yield f"picture {number_}", [*_of_object(shared), *_of_line(picture)]
        elif isinstance(picture, dict):
            yield f"picture {number_}", _of_object({**shared, **picture})
        else:
            raise TextFileError(f"picture {number_} is neither a text nor a table.")


def _of_object(values: Mapping[str, Any]) -> Values:
    return [(key, key, value) for key, value in values.items()]


class _Reader:
    """Turns what is said of pictures into prompts, collecting problems."""

    def __init__(self, usual: PreviewPrompt) -> None:
        self.usual = usual
        self.problems: list[Problem] = []

    def picture(self, where: str, values: Values) -> PreviewPrompt:
        found: dict[str, Any] = {}
        notes: list[str] = []
        for name, key, value in values:
            setting = BY_LETTER.get(key[2:]) if key.startswith("--") else BY_KEY.get(key)
            if setting is None:
                self.unknown(where, name, key, notes)
                continue
            try:
                read = setting.read(value)
            except Unfit as error:
                text = f"{error}{'' if str(error).endswith('?') else '.'}"
                self.problems.append(Problem(text, f"{where}  {name} {str(value)[:40]}"))
                continue
            except ConfigError as error:
                self.problems += [Problem(p.message, where) for p in error.problems]
                continue
            if setting.field == "cfg" and found.get("cfg", read) != read:
                message = "is guidance too, with another value. Keep one of them."
                self.problems.append(Problem(message, f"{where}  {name}"))
            found[setting.field] = read
        if "prompt" not in found:
            found["prompt"] = ""
            if not any(p.where.startswith(where) for p in self.problems):
                self.problems.append(Problem("has no prompt.", where))
        if "sampler" in found:
            found["sampler"], note = resolve_sampler(found["sampler"]) or ("", "")
            notes += [f"{where}: {note}"] if note else []
        prompt = replace(self.usual, **found, notes=tuple(notes))
        try:
            sigma_list(prompt.scheduler, prompt.steps, shift=prompt.shift, sampler=prompt.sampler)
        except ConfigError as error:
            self.problems += [Problem(p.message, where) for p in error.problems]
        return prompt

    def unknown(self, where: str, name: str, key: str, notes: list[str]) -> None:
        if key.lstrip("-") in WITHOUT_USE:
            if key != "enum":
                notes.append(f"{where}: {name} has no use here and was passed over.")
            return
        known = [f"--{letter}" for letter in BY_LETTER] if key.startswith("--") else list(BY_KEY)
        near = nearest_name(key, known)
        hint = f" Did you mean {near}?" if near else f" There are {', '.join(known)}."
        self.problems.append(Problem(f"no such option.{hint}", f"{where}  {name}"))

