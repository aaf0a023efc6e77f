"""Drawing batches as a contact sheet: each sample as the trainer sees it, with its caption."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from library.data.data_types import SampleRequest
from library.data.datasets import TrainDataset
from library.errors import visible
from library.system.fonts import CJK_FONTS, NO_LETTERS, Font, find_font, is_wide
from library.system.system_errors import output_errors
from library.utils import atomic_write

CELL, GAP, COLUMNS, ROWS = 224, 8, 6, 8
LINE, LINES = 14, 7
BATCH_COLOURS = ("#f4f1ea", "#e4ecf4")
RED = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1)


def draw_sheet(
    dataset: TrainDataset, batches: Sequence[Sequence[SampleRequest]], output: Path
) -> list[Path]:
    """Write the batches to `output`, and to output_2, ... when one picture is not enough."""
    cells = [(number, request) for number, batch in enumerate(batches) for request in batch]
    name, font = find_font()
    captions = "".join(dataset.caption_of(request) for _, request in cells)
    if name not in CJK_FONTS and any(map(is_wide, captions)):
        print(f"note: {NO_LETTERS}; until then boxes stand for them")
    per_page = COLUMNS * ROWS
    pages = [cells[start : start + per_page] for start in range(0, len(cells), per_page)]
    with output_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    files = []
    for page, inside in enumerate(pages, 1):
        file = output if page == 1 else output.with_stem(f"{output.stem}_{page}")
        with output_errors(file), atomic_write(file) as temporary:
            draw_page(dataset, inside, font).save(temporary, format=image_format(file))
        files.append(file)
    return files


def image_format(file: Path) -> str:
    return {".jpg": "JPEG", ".webp": "WEBP"}.get(file.suffix.lower(), "PNG")


def draw_page(
    dataset: TrainDataset, cells: Sequence[tuple[int, SampleRequest]], font: Font
) -> Image.Image:
    """One page; the background tells neighbouring batches apart."""
    height = CELL + LINE * LINES + GAP
    rows = -(-len(cells) // COLUMNS)
    columns = min(COLUMNS, len(cells))
    page = Image.new("RGB", (columns * (CELL + GAP), rows * (height + GAP)), "white")
    pen = ImageDraw.Draw(page)
    for place, (batch, request) in enumerate(cells):
        left, top = place % COLUMNS * (CELL + GAP), place // COLUMNS * (height + GAP)
        corner = (left + CELL + GAP - 1, top + height)
        pen.rectangle((left, top, *corner), fill=BATCH_COLOURS[batch % 2])
        picture = thumbnail(*dataset.picture_of(request))
        page.paste(picture, (left + GAP // 2 + (CELL - picture.width) // 2, top + GAP // 2))
        for number, line in enumerate(label(dataset, batch, request)):
            place_of_line = (left + GAP // 2, top + GAP + CELL + number * LINE)
            pen.text(place_of_line, line, fill="black", font=font)
    return page


def thumbnail(pixels: Tensor, mask: Tensor | None) -> Image.Image:
    """(3, H, W) in [-1, 1] within a cell; what the mask leaves out turns red."""
    if mask is not None:
        pixels = pixels * (0.35 + 0.65 * mask) + RED * 0.65 * (1 - mask)
    array = pixels.add(1).mul(127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(array)
    image.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    return image


def label(dataset: TrainDataset, batch: int, request: SampleRequest) -> list[str]:
    """What a sample is, then its caption; cut to the lines of a cell."""
    image = dataset.catalogue.images[request.index]
    width, height = image.plan.bucket
    facts = [
        f"#{batch + 1}",
        f"{width}x{height}",
        "mirrored" if dataset.is_flipped(request) else "",
        "reg" if image.subset.is_reg else "",
        f"loss x{image.subset.loss_multiplier:g}" if image.subset.loss_multiplier != 1 else "",
    ]
    caption = dataset.caption_of(request) or "(no caption)"
    lines = [
        " ".join(fact for fact in facts if fact),
        visible(image.path.name)[:34],
        *wrap(caption),
    ]
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], lines[LINES - 1][:-3] + "..."]


def wrap(text: str) -> list[str]:
    """Lines that fit a cell; wide letters such as Chinese count for two."""
    wide = sum(map(is_wide, text))
    width = 36 - round(18 * wide / max(1, len(text)))
    return textwrap.wrap(text, width) or [""]
