"""Words for modules: parts of the model, blocks by number, and the patterns of target_modules.

all, norms, text_encoder, llm_adapter, self_attn, cross_attn, mlp, mod: as the rates of training have them,
so that mlp is the DiT's alone. blocks.0-7 or blocks.0,2,5-7: of the DiT; llm_adapter.blocks.0-2: of the
LLM adapter; behind either a part of the block, as in blocks.0-7.mlp. All else: the end of a path
(q_proj), a glob of the whole path (*.mlp.*), or re: and a regular expression.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from library.errors import Problem
from library.utils import nearest_name
from networks._anima_arguments import COMPONENTS, component_of
from networks.codec import TEXT_ENCODER_PREFIXES
from networks.targets import matches_target, name_parts
from networks.workshop.modules import Modules

ALL, NORMS, TEXT_ENCODER, UNKNOWN = "all", "norms", "text_encoder", "unknown"
BLOCKS = re.compile(r"(llm_adapter\.)?blocks\.([\d,\-]+)(?:\.(.+))?")
RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


@dataclass(frozen=True)
class Choice:
    """Some modules, by what the user wrote."""

    text: str
    test: Callable[[str], bool]

    def __call__(self, path: str) -> bool:
        return self.test(path)


def part_of(path: str) -> str:
    """The component of a module, with the text encoder as one more."""
    return TEXT_ENCODER if path.startswith(TEXT_ENCODER_PREFIXES) else component_of(path)


def read_choice(text: str, modules: Modules) -> Choice:
    """Raises ValueError with what is wrong, as a sentence."""
    if text == ALL:
        return Choice(text, lambda path: True)
    if text == NORMS:
        return Choice(text, modules.norms.__contains__)
    if text == TEXT_ENCODER or text in COMPONENTS:
        return Choice(text, lambda path: part_of(path) == text)
    if found := BLOCKS.fullmatch(text):
        return Choice(text, of_blocks(found[1] or "", numbers(found[2]), found[3] or ""))
    if text.startswith("re:"):
        try:
            re.compile(text[3:])
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}.") from error
    if not text.strip():
        raise ValueError("names no modules. Write e.g. mlp, blocks.0-7 or a pattern.")
    return Choice(text, lambda path: matches_target(text, path))


def numbers(text: str) -> set[int]:
    """Those of 0,2,5-7. Raises ValueError."""
    found: set[int] = set()
    for part in text.split(","):
        read = RANGE.fullmatch(part)
        if read is None or int(read[2] or read[1]) < int(read[1]):
            raise ValueError(
                f"{part!r} is no number or range. Write e.g. blocks.0-7 or blocks.0,2,5-7."
            )
        found.update(range(int(read[1]), int(read[2] or read[1]) + 1))
    return found


def of_blocks(start: str, wanted: set[int], rest: str) -> Callable[[str], bool]:
    """Whether a path is in one of these blocks, and in the part of it that `rest` names."""
    block = re.compile(rf"{re.escape(start)}blocks\.(\d+)\.(.+)")

    def test(path: str) -> bool:
        found = block.fullmatch(path)
        if found is None or int(found[1]) not in wanted:
            return False
        inside = f".{found[2]}."
        return not rest or f".{rest}." in inside or component_of(path) == rest

    return test


def read_choices(
    texts: Iterable[str], paths: Iterable[str], modules: Modules, option: str
) -> tuple[list[Choice], list[Problem]]:
    """What was written behind an option; problems also of what chooses none of a file's modules."""
    choices, problems, paths = [], [], list(paths)
    for text in texts:
        try:
            choice = read_choice(text, modules)
        except ValueError as error:
            problems.append(Problem(str(error), f"{option} {text}"))
            continue
        if not any(map(choice, paths)):
            near = nearest_name(text, known_words(paths))
            hint = f" Did you mean {near}?" if near else ""
            problems.append(Problem(f"is no module of the file.{hint}", f"{option} {text}"))
        choices.append(choice)
    return choices, problems


def known_words(paths: Iterable[str]) -> set[str]:
    words = {part for path in paths for part in name_parts(path)}
    return words | {ALL, NORMS, TEXT_ENCODER, *COMPONENTS}


def strength_of(path: str, strengths: Mapping[Choice, float]) -> float:
    """The product of all that name the module."""
    product = 1.0
    for choice, strength in strengths.items():
        product *= strength if choice(path) else 1.0
    return product
