"""Prompts as ComfyUI reads them: parentheses weigh words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from library.errors import ConfigError, Problem

if TYPE_CHECKING:
    from library.data.data_types import ImageInfo

LOUDER = 1.1
DEEPEST = 100  # parentheses within parentheses


def parse_prompt(text: str) -> list[tuple[str, float]]:
    """The pieces of a prompt with their weights, in order; an empty prompt has none.

    (words) weighs 1.1 times as much, once for each pair; (words:1.3) weighs 1.3, whatever stands around
    it. `\\(` and `\\)` are letters. Raises ConfigError for a weight that is not finite.
    """
    hidden = text.replace("\\)", "\0").replace("\\(", "\1")
    pieces = _weighted(hidden, 1.0, DEEPEST)
    for piece, weight in pieces:
        if not math.isfinite(weight):
            raise ConfigError(f"prompt {text!r}: the weight of {_shown(piece)!r} is not finite.")
    return [(_shown(piece), weight) for piece, weight in pieces]


def caption_problems(images: Iterable[ImageInfo]) -> list[Problem]:
    """Captions that cannot be read as prompts are, each once."""
    captions = {
        text: image.path for image in images for text in (image.caption, image.sentences) if text
    }
    found = []
    for caption, path in captions.items():
        try:
            parse_prompt(caption)
        except ConfigError as error:
            words = str(error.problems[0].message)
            found.append(Problem(f"{words} Correct it, or leave out weighted_captions.", str(path)))
    return found


def _shown(piece: str) -> str:
    return piece.replace("\0", ")").replace("\1", "(")


def _weighted(text: str, weight: float, deeper: int) -> list[tuple[str, float]]:
    if not deeper:
        raise ConfigError(f"a prompt has more than {DEEPEST} parentheses within each other.")
    found = []
    for piece in _split(text):
        if len(piece) < 2 or piece[0] != "(" or piece[-1] != ")":
            found.append((piece, weight))
            continue
        inner, own = piece[1:-1], weight * LOUDER
        words, colon, number = inner.rpartition(":")
        if colon and words and (given := _number(number)) is not None:
            inner, own = words, given
        found += _weighted(inner, own, deeper - 1)
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _split(text: str) -> list[str]:
    """Cut at the outermost parentheses. One that closes nothing is counted too, and stays text."""
    pieces, start, depth = [], 0, 0
    for place, letter in enumerate(text):
        if letter == "(":
            if depth == 0:
                pieces.append(text[start:place])
                start = place
            depth += 1
        elif letter == ")":
            depth -= 1
            if depth == 0:
                pieces.append(text[start : place + 1])
                start = place + 1
    pieces.append(text[start:])
    return [piece for piece in pieces if piece]
