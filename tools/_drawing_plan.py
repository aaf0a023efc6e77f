"""Which pictures an order asks for, and where each stands in its grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from library.previews.prompt_file import PreviewPrompt
from tools._drawing_order import Order, Strengths


@dataclass(frozen=True)
class Piece:
    """One picture, or a batch of one draw. adapters: those that act; places: (row, column) in the grid"""

    prompt: PreviewPrompt
    adapters: Strengths
    places: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Plan:
    """What is drawn, in this order.

    pieces: in a grid those with the same adapters stand together, so that weights change seldom
    rows, columns: titles; none where there is no grid
    """

    pieces: tuple[Piece, ...]
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


Cells = Mapping[tuple[int, int], tuple[PreviewPrompt, Strengths]]


def plan_of(order: Order) -> Plan:
    """The pictures of an order. One that would stand in several places of a grid is drawn once."""
    if order.options.matrix:
        return matrix(order, order.options.matrix)
    if order.options.compare:
        return comparison(order)
    pieces = [Piece(p, acting(order.loras, p.multiplier), ()) for p in order.prompts]
    return Plan(tuple(pieces))


def comparison(order: Order) -> Plan:
    """A row for each prompt, a column for each strength."""
    cells = {
        (row, column): (prompt, acting(order.loras, factor * prompt.multiplier))
        for row, prompt in enumerate(order.prompts)
        for column, factor in enumerate(order.compared)
    }
    sign = "x" if len(order.loras) > 1 or order.loras[0][1] != 1 else ""
    columns = tuple(f"{sign}{factor:g}" for factor in order.compared)
    return Plan(joined(cells), row_titles(order.prompts), columns)


def matrix(order: Order, files: Sequence[str]) -> Plan:
    """A row for each prompt and a column for each file; of several strengths each is a column, and each
    file has rows of its own. What --lora says lies under all of them."""

    def drawn(prompt: PreviewPrompt, file: str, factor: float) -> tuple[PreviewPrompt, Strengths]:
        return prompt, acting((*order.loras, (file, factor)), prompt.multiplier)

    prompts, factors, stems = order.prompts, order.compared, stems_of(files)
    if len(factors) == 1:
        cells = {
            (row, column): drawn(prompt, file, factors[0])
            for row, prompt in enumerate(prompts)
            for column, file in enumerate(files)
        }
        at = "" if factors[0] == 1 else f"\n{factors[0]:g}"
        return Plan(joined(cells), row_titles(prompts), tuple(f"{stem}{at}" for stem in stems))
    pairs = [(prompt, file) for prompt in prompts for file in files]
    cells = {
        (row, column): drawn(prompt, file, factor)
        for row, (prompt, file) in enumerate(pairs)
        for column, factor in enumerate(factors)
    }
    words = row_titles(prompts) if len(prompts) > 1 else ("",)
    rows = tuple(f"{stem}\n{text}".rstrip() for text in words for stem in stems)
    return Plan(joined(cells), rows, tuple(f"{factor:g}" for factor in factors))


def acting(adapters: Strengths, factor: float) -> Strengths:
    """The adapters that change anything, with their strengths."""
    return tuple((file, strength * factor) for file, strength in adapters if strength * factor)


def joined(cells: Cells) -> tuple[Piece, ...]:
    """Equal cells as one piece; the pieces by their adapters."""
    places: dict[tuple[Strengths, PreviewPrompt], list[tuple[int, int]]] = {}
    for place in sorted(cells, key=lambda place: (place[1], place[0])):
        prompt, adapters = cells[place]
        places.setdefault((adapters, prompt), []).append(place)
    known = list(dict.fromkeys(adapters for adapters, _ in places))
    ordered = sorted(places, key=lambda key: known.index(key[0]))
    return tuple(
        Piece(prompt, adapters, tuple(places[adapters, prompt])) for adapters, prompt in ordered
    )


def row_titles(prompts: Sequence[PreviewPrompt]) -> tuple[str, ...]:
    return tuple(prompt.prompt for prompt in prompts)


def stems_of(files: Sequence[str]) -> list[str]:
    """Names without folder and ending; with the folder's where two are the same."""
    stems = [Path(file).stem for file in files]
    return [
        stem if stems.count(stem) == 1 else f"{Path(file).resolve().parent.name}/{stem}"
        for file, stem in zip(files, stems)
    ]
