"""The prompts of a run: read again when their file changes, their text encoded once.

A prompt that is added while the run goes on needs the text encoder for a moment; it is then loaded on
the CPU, where nothing has to make room for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from library.errors import ConfigError, Problem
from library.previews.prompt_file import USUAL, PreviewPrompt, read_prompts
from library.previews.samplers import resolve_sampler
from library.utils import file_facts, log_lines

if TYPE_CHECKING:
    from library.data.data_types import TextOutputs
    from library.settings.flags.preview import PreviewOptions

logger = logging.getLogger(__name__)

Encode = Callable[[Iterable[str]], "dict[str, TextOutputs]"]
"""Prompts to what a text encoder makes of them, on the CPU."""


def prompt_problems(options: PreviewOptions) -> list[Problem]:
    """What is wrong with the file of prompts, if there is one."""
    if not options.sample_prompts:
        return []
    try:
        read_prompts(options.sample_prompts)
    except ConfigError as error:
        return list(error.problems)
    return []


class PromptFile:
    """The prompts of a file, as it was when it was last in order.

    path: None: there are no prompts. sampler: of pictures that name none, by our name or sd-scripts'
    Raises ConfigError where the file is not in order at the start.
    """

    def __init__(self, path: str | None, sampler: str) -> None:
        self.path = path
        sampler, note = resolve_sampler(sampler) or (sampler, "")
        self.usual = replace(USUAL, sampler=sampler)
        self.facts = facts_of(path)  # before reading: what is changed meanwhile is read again
        self.prompts = read_prompts(path, self.usual) if path else []
        log_lines(logger, [note] if note and path else [], logging.WARNING)
        self.tell_notes()

    def refresh(self) -> bool:
        """Read the file again if it was changed, or is gone; returns whether prompts are others now.

        One that is not in order leaves them as they are, and that is told.
        """
        facts = facts_of(self.path)
        if self.path is None or facts == self.facts:
            return False
        self.facts, before = facts, self.prompts
        try:
            self.prompts = read_prompts(self.path, self.usual)
        except ConfigError as error:
            logger.warning("%s\nThe pictures are drawn by the prompts as they were.", error)
            return False
        if self.prompts == before:
            return False
        logger.info("%s was changed: %d prompts from here on", self.path, len(self.prompts))
        self.tell_notes()
        return True

    def tell_notes(self) -> None:
        notes = [f"{self.path}, {note}" for prompt in self.prompts for note in prompt.notes]
        log_lines(logger, notes, logging.WARNING)


def facts_of(path: str | None) -> list[int] | None:
    """By which a change of the file is seen; None when it is not there."""
    try:
        return file_facts(path) if path else None
    except (OSError, ValueError):
        return None


def words_of(prompts: Iterable[PreviewPrompt]) -> list[str]:
    """Every text that is to be encoded, once; no negative where it is not asked."""
    texts: dict[str, None] = {}
    for prompt in prompts:
        texts[prompt.prompt] = None
        if prompt.has_negative:
            texts[prompt.negative] = None
    return list(texts)


class PromptTexts:
    """The prompts of a run and what the text encoder makes of them.

    late: encodes when the run's own encoder has gone
    """

    def __init__(self, file: PromptFile, late: Encode) -> None:
        self.file, self.late = file, late
        self.prompts = tuple(file.prompts)
        self.outputs: dict[str, TextOutputs] = {}

    def use(self, prompts: Iterable[PreviewPrompt], encode: Encode | None = None) -> None:
        """From here on these prompts count. What is missing of them is encoded, late unless told how.

        What only others had is let go.
        """
        prompts = tuple(prompts)
        texts = words_of(prompts)
        missing = [text for text in texts if text not in self.outputs]
        made = (encode or self.late)(missing) if missing else {}
        known = {**self.outputs, **made}
        self.outputs = {text: known[text] for text in texts}
        self.prompts = prompts
