"""A grid of pictures with what each row and each column stands for written beside it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from library.system.fonts import CJK_FONTS, NO_LETTERS, Font, find_font, is_wide

logger = logging.getLogger(__name__)

LONGEST = 8000  # pixels, about a side of the whole
GAP = 8
SMALLEST_LETTERS, LETTERS_PER_CELL = 13, 24
SMALLEST_MARGIN = 120
LINES = 6
PAPER, INK = (250, 250, 250), (30, 30, 30)

Place = tuple[int, int]
"""(row, column)."""


class Grid:
    """Empty at first. Pictures are scaled down alike where the whole would be too large.

    sheet: the grid so far
    """

    def __init__(
        self, sizes: Mapping[Place, tuple[int, int]], rows: Sequence[str], columns: Sequence[str]
    ) -> None:
        """sizes: (width, height) of the pictures to come; rows, columns: titles, with or without line ends"""
        wide, high = (max(size[axis] for size in sizes.values()) for axis in (0, 1))
        limits = LONGEST / (wide * (len(columns) + 0.5)), LONGEST / (high * (len(rows) + 0.2))
        self.scale = min(1.0, *limits)
        letters = max(SMALLEST_LETTERS, round(max(wide, high) * self.scale) // LETTERS_PER_CELL)
        name, self.font = find_font(letters)
        if name not in CJK_FONTS and any(map(is_wide, "".join((*rows, *columns)))):
            logger.info("%s; until then the grid shows boxes for them", NO_LETTERS)
        self.line = int(self.font.getbbox("Ag|")[3]) + 3
        width, _ = self.scaled((wide, high))
        margin = max(width // 2, SMALLEST_MARGIN) if any(rows) else 0
        left = [broken(title, self.font, margin - GAP) if margin else [] for title in rows]
        above = [broken(title, self.font, width) for title in columns]
        self.across = [margin + GAP + number * (width + GAP) for number in range(len(columns) + 1)]
        self.down = [2 * GAP + self.line * max(map(len, above))]
        for row, lines in enumerate(left):
            tallest = max(self.scaled(size)[1] for place, size in sizes.items() if place[0] == row)
            self.down.append(self.down[-1] + max(tallest, self.line * len(lines)) + GAP)
        self.sheet = Image.new("RGB", (self.across[-1], self.down[-1]), PAPER)
        for x, lines in zip(self.across, above):
            self.write((x, GAP), lines)
        for y, lines in zip(self.down, left):
            self.write((GAP, y), lines)

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        return max(1, round(size[0] * self.scale)), max(1, round(size[1] * self.scale))

    def write(self, corner: tuple[int, int], lines: Sequence[str]) -> None:
        pen = ImageDraw.Draw(self.sheet)
        for number, text in enumerate(lines):
            pen.text((corner[0], corner[1] + number * self.line), text, INK, self.font)

    def put(self, place: Place, picture: Image.Image) -> None:
        """Show a picture, RGB, in its place."""
        size = self.scaled(picture.size)
        shown = picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)
        self.sheet.paste(shown, (self.across[place[1]], self.down[place[0]]))


def broken(title: str, font: Font, width: int) -> list[str]:
    """The lines of a title, none wider than `width`, at most LINES of them."""
    lines = [line for part in title.split("\n") for line in broken_line(part, font, width)]
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], f"{lines[LINES - 1][:-2]}..."]


def broken_line(text: str, font: Font, width: int) -> list[str]:
    """Broken between words where there are any, else between letters."""
    lines, line = [], ""
    for letter in text:
        if line and font.getlength(line + letter) > width:
            start = line.rfind(" ") + 1
            if not start or letter == " " or is_wide(letter):
                start = len(line)
            lines.append(line[:start].rstrip())
            line = line[start:]
        if line or letter != " ":
            line += letter
    return [*lines, line]
