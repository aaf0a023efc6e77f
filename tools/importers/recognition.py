"""Whose file it is: the program by what only its files have, and its table of rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from library.anima_runtime.foreign_files import (
    is_animalora,
    is_diffusion_pipe,
    is_diffusion_pipe_dataset,
    is_kohya_gui,
    is_lets,
    is_onetrainer,
    is_onetrainer_concepts,
)
from library.errors import ConfigError
from library.system.text_files import TextFileError
from tools.importers import (
    ai_toolkit,
    anima_lora,
    animalora,
    diffusion_pipe,
    kohya_gui,
    lets,
    lora_scripts,
    onetrainer,
    sd_scripts,
)
from tools.importers.files import SCRIPTS, parse, read_limited
from tools.importers.machine import Source
from tools.importers.shell_words import read_script


class Known(NamedTuple):
    """A program by the name that --source takes. is_it: recognises its document"""

    source: Source
    is_it: Callable[[Any], bool]


PROGRAMS = {
    "lets": Known(lets.SOURCE, is_lets),
    "ai-toolkit": Known(ai_toolkit.SOURCE, ai_toolkit.knows),
    "onetrainer": Known(onetrainer.SOURCE, is_onetrainer),
    "kohya-gui": Known(kohya_gui.SOURCE, is_kohya_gui),
    "diffusion-pipe": Known(diffusion_pipe.SOURCE, is_diffusion_pipe),
    "animalora": Known(animalora.SOURCE, is_animalora),
    "lora-scripts": Known(lora_scripts.SOURCE, lora_scripts.knows),
    "anima_lora": Known(anima_lora.SOURCE, anima_lora.knows),
    "sd-scripts": Known(sd_scripts.SOURCE, sd_scripts.knows),
}
"""In the order in which files are tried: what could be two programs' is the first one's."""
KINDS_READ = (".toml", ".json", ".yaml", ".yml", *SCRIPTS)


def read_any(path: Path) -> Any:
    """The document of a configuration or of a start script. Raises ConfigError."""
    text = read_limited(path)
    try:
        return (
            read_script(text, path)
            if path.suffix.lower() in SCRIPTS
            else parse(text, path.suffix.lower())
        )
    except TextFileError as error:
        is_known = path.suffix.lower() in KINDS_READ
        expected = "" if is_known else f"expected a file of {', '.join(KINDS_READ)}; this one "
        raise ConfigError(f"{expected}{error}", source=str(path)) from error
    except ConfigError as error:
        raise ConfigError(error.problems, source=str(path)) from error


def source_of(document: Any, path: Path, named: str = "") -> Source:
    """The program whose file it is, or the one that the user names. Raises ConfigError."""
    if named:
        return PROGRAMS[named].source
    if path.suffix.lower() in SCRIPTS:
        return sd_scripts.SOURCE
    if is_diffusion_pipe_dataset(document) or is_onetrainer_concepts(document):
        message = "holds the pictures only. Import the file that names it; --dataset_file says where this one is."
        raise ConfigError(message, source=str(path))
    for known in PROGRAMS.values():
        if known.is_it(document):
            return known.source
    message = (
        f"is not known as a configuration of {', '.join(PROGRAMS)}. Name its program: --source NAME"
    )
    raise ConfigError(message, source=str(path))
