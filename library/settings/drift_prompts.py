"""Prompts without the trained subject, by which forgetting is measured or prevented: a file, or the list here."""

from __future__ import annotations

from library.errors import ConfigError, Problem
from library.system.text_files import TextFileError, read_text

BUILTIN = "builtin"
MOST_PROMPTS = 64
"""What the base predicts for them is kept in RAM."""

TAGS = (
    "1girl, solo, long hair, blue eyes, school uniform, smile, upper body, classroom",
    "1boy, solo, short hair, armor, sword, standing, night sky, full moon",
    "1girl, solo, silver hair, red eyes, kimono, cherry blossoms, from side, outdoors",
    "no humans, scenery, mountain, lake, reflection, sunset, cloud",
    "no humans, cat, window, rain, indoors, potted plant, close-up",
    "1girl, solo, twintails, green hair, singing, stage, microphone, dynamic angle",
    "1boy, solo, glasses, white coat, laboratory, looking at viewer, holding cup",
    "chibi, 1girl, solo, witch hat, broom, flying, full body, simple background",
)
SENTENCES = (
    "A lighthouse stands on a rocky coast while high waves break below it in the evening light.",
    "An old man with a grey beard reads a newspaper on a bench in an autumn park.",
    "A watercolor painting of a narrow street with lanterns after the rain, seen from above.",
    "A red steam train crosses a stone bridge in a snowy valley, with smoke over the trees.",
    "A young woman in a yellow raincoat holds a transparent umbrella and looks up at the clouds.",
    "A still life of three lemons, a glass bottle and a folded cloth on a wooden table.",
    "An astronaut sits at a small campfire on the surface of the moon, and the earth rises behind.",
    "A pencil sketch of a sleeping dog that lies in front of a fireplace.",
)
SEVERAL = (
    "2girls, one with short black hair in a blue dress, one with long blonde hair in a white dress, holding hands",
    "1boy, 1girl, the boy carries the girl on his back, summer festival, fireworks, yukata",
    "3girls, sitting on a bench, the one in the middle plays a guitar, park, daytime",
    "A knight in silver armor kneels in front of a queen in a green gown, in a great hall.",
    "Two cats, one black and one white, chase a red ball down a staircase.",
    "4boys, basketball court, the tallest one jumps with the ball, the others watch him",
    "A mother teaches her small daughter to ride a bicycle, and a brown dog runs beside them.",
    "2girls, back to back, one holds a spear, the other a book, ruins, dramatic lighting",
)
PROMPTS = (*TAGS, *SENTENCES, *SEVERAL)


def read_drift_prompts(given: str, option: str = "drift_prompts") -> tuple[str, ...]:
    """The list here for BUILTIN, else a file's lines; empty ones and those that begin with # are left out.

    option: whose value it is. Raises ConfigError.
    """
    if given == BUILTIN:
        return PROMPTS
    lines = [line.strip() for line in _text_of(given, option).splitlines()]
    prompts = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not prompts:
        raise _error(given, option, "holds no prompts. Write one on each line.")
    if len(prompts) > MOST_PROMPTS:
        message = f"holds {len(prompts)} prompts; at most {MOST_PROMPTS} are taken. Leave some out."
        raise _error(given, option, message)
    return prompts


def _text_of(path: str, option: str) -> str:
    try:
        return read_text(path)
    except FileNotFoundError as error:
        message = f"no such file. Write a text file with a prompt on each line, or {BUILTIN}."
        raise _error(path, option, message) from error
    except TextFileError as error:
        raise _error(path, option, str(error)) from error


def _error(given: str, option: str, message: str) -> ConfigError:
    return ConfigError(Problem(message, f"{option} = {given}"))
