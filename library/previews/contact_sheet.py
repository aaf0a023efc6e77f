"""One picture of all that a run drew: a row for each time, a column for each prompt."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import takewhile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from library.system.fonts import NO_LETTERS, Font, is_wide, wide_font
from library.utils import atomic_write

logger = logging.getLogger(__name__)

SIDE = 192  # pixels, the longer side of a small picture
GAP = 6
LETTERS = 13  # pixels, their height
LONGEST_TITLE = 100  # letters: more than there is room for
PAPER, INK, EMPTY = (250, 250, 250), (40, 40, 40), (228, 228, 228)
Row = Mapping[int, Image.Image]
"""Small pictures by number of the prompt."""


def small(picture: Image.Image) -> Image.Image:
    """The picture, its longer side at most SIDE."""
    made = picture.convert("RGB")
    made.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return made


def write_sheet(path: Path, rows: Mapping[str, Row], titles: Mapping[int, str]) -> None:
    """Draw and write it as a JPEG, whole or not at all.

    rows: by what stands before them, in order; titles: of the columns, by number of the prompt
    """
    sheet = laid_out(rows, titles)
    with atomic_write(path, sync=False) as temporary:
        sheet.save(temporary, format="JPEG", quality=88)


def laid_out(rows: Mapping[str, Row], titles: Mapping[int, str]) -> Image.Image:
    """The sheet. A row is as high, a column as wide, as the largest picture in it."""
    titles = told_apart(titles)
    font = font_for(titles.values())
    numbers = sorted({number for row in rows.values() for number in row})
    widths = {n: largest(row[n].width for row in rows.values() if n in row) for n in numbers}
    heights = {name: largest(picture.height for picture in row.values()) for name, row in rows.items()}
    left = int(max((font.getlength(name) for name in rows), default=0)) + 2 * GAP
    top = LETTERS + 2 * GAP
    size = (
        left + sum(width + GAP for width in widths.values()),
        top + sum(height + GAP for height in heights.values()),
    )
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    x = left
    for number in numbers:
        text = fitting(f"{number:02d} {titles.get(number, '')}", font, widths[number])
        pen.text((x, GAP), text, INK, font)
        y = top
        for name, row in rows.items():
            if number in row:
                sheet.paste(row[number], (x, y))
            else:
                pen.rectangle((x, y, x + widths[number] - 1, y + heights[name] - 1), EMPTY)
            y += heights[name] + GAP
        x += widths[number] + GAP
    y = top
    for name in rows:
        pen.text((GAP, y), name, INK, font)
        y += heights[name] + GAP
    return sheet


def told_apart(titles: Mapping[int, str]) -> Mapping[int, str]:
    """The titles without the tags that all begin with; as they are where one would have none left."""
    tags = {number: [tag.strip() for tag in title.split(",")] for number, title in titles.items()}
    places = zip(*tags.values())
    shared = sum(1 for _ in takewhile(lambda place: len(set(place)) == 1, places))
    if any(len(each) == shared for each in tags.values()):
        return titles
    return {number: ", ".join(each[shared:]) for number, each in tags.items()}


def largest(sizes: Iterable[int]) -> int:
    return max(sizes, default=SIDE)


def font_for(titles: Iterable[str]) -> Font:
    """Pillow's own, or one of the system's where a title has letters that Pillow's has not."""
    own = ImageFont.load_default(LETTERS)
    if not any(is_wide(each) for title in titles for each in title[:LONGEST_TITLE]):
        return own
    found = wide_font(LETTERS)
    if found is None:
        tell_of_missing_letters()
    return found or own


@cache
def tell_of_missing_letters() -> None:
    """Once in a process."""
    logger.info("%s; until then titles of previews leave them out", NO_LETTERS)


def fitting(text: str, font: Font, width: int) -> str:
    """The start of a text, as much as there is room for; without letters that the font has not."""
    words = " ".join(text[:LONGEST_TITLE].split())
    has_more = font is wide_font(LETTERS)
    shown = "".join(
        each for each in words
        if each.isprintable() and (each.isascii() or (has_more and ord(each) < 0x10000))
    ).strip()  # fmt: skip
    while shown and font.getlength(shown) > width:
        shown = shown[:-1]
    return shown
