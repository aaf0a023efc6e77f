"""How training would draw sigma, shown without a run: --show_timesteps.

It is the trainer's own draw, from seeds as a run has them; so is the weight of the loss.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from library.system.program import is_first_process
from library.system.system_errors import output_errors
from library.train_util import make_noising
from library.training.flow_matching import Noising, sample_sigma
from library.utils import atomic_write, position_seed

if TYPE_CHECKING:
    from library.data.dataset_config import DatasetGroupConfig
    from library.settings.run_config import TrainConfig

DRAWS = 10_000
BINS = 20
WIDEST = 50  # letters of the longest bar
PANEL, MARGIN, GAP, LETTERS = (640, 200), 60, 30, 13  # pixels
PAPER, INK, BAR = (250, 250, 250), (40, 40, 40), (70, 110, 170)


@dataclass(frozen=True)
class DrawnSigmas:
    """What was drawn, by equal ranges of the timestep from 0 to 1000.

    shares:  of the draws in each range, in [0, 1]; they add up to 1
    weights: mean weight of the loss in each range; 0 where nothing was drawn
    mean:    of all timesteps
    """

    shares: tuple[float, ...]
    weights: tuple[float, ...]
    mean: float

    @staticmethod
    def of(noising: Noising, latent_size: tuple[int, int], offset: float = 0.0) -> DrawnSigmas:
        """From DRAWS seeds. latent_size: (H, W); offset: of sigma, as a subset has it."""
        seeds = [position_seed("shown draw", number) for number in range(DRAWS)]
        sigma = sample_sigma(seeds, latent_size, noising.sampling, [offset] * DRAWS)
        places = (sigma * BINS).long().clamp(max=BINS - 1)
        counts = torch.bincount(places, minlength=BINS)
        sums = torch.zeros(BINS).index_add(0, places, noising.loss_weight(sigma))
        return DrawnSigmas(
            _numbers(counts / DRAWS), _numbers(sums / counts.clamp(min=1)), sigma.mean().item() * 1000
        )

    def quarters(self) -> str:
        """The share of each quarter, for people."""
        size = BINS // 4
        sums = [sum(self.shares[start : start + size]) for start in range(0, BINS, size)]
        named = zip(("0-250", "250-500", "500-750", "750-1000"), sums)
        return ", ".join(f"{name} {share:.1%}" for name, share in named)

    def text(self) -> str:
        """A histogram in letters, a line for each range."""
        tallest = max(self.shares)
        lines = [" timestep   share  weight of the loss"]
        for number, (share, weight) in enumerate(zip(self.shares, self.weights)):
            low, high = 1000 * number // BINS, 1000 * (number + 1) // BINS
            bar = "#" * round(WIDEST * share / tallest)
            shown = f"{weight:8.3f}" if share else "       -"
            lines.append(f"{low:4d}-{high:4d}  {share:6.2%}{shown}  {bar}".rstrip())
        return "\n".join([*lines, f"mean {self.mean:.0f}; {self.quarters()}"])

    def picture(self, title: str) -> Image.Image:
        """Two charts one above the other: the shares, the weights."""
        width, height = PANEL
        size = width + 2 * MARGIN, 2 * (height + MARGIN) + GAP
        sheet = Image.new("RGB", size, PAPER)
        pen = ImageDraw.Draw(sheet)
        font = ImageFont.load_default(LETTERS)
        shares = tuple(100 * share for share in self.shares)
        pen.text((MARGIN, 8), title, INK, font)
        pen.text((MARGIN, 8 + LETTERS + 4), f"mean {self.mean:.0f}; {self.quarters()}", INK, font)
        charts = (("share of the draws, %", shares), ("mean weight of the loss", self.weights))
        for number, (name, values) in enumerate(charts):
            top = MARGIN + number * (height + MARGIN)
            _chart(pen, font, top, (name, values))
        return sheet


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())


def _chart(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    top: int,
    chart: tuple[str, tuple[float, ...]],
) -> None:
    """Bars with their axes; chart: its name and the height of each bar."""
    name, values = chart
    width, height = PANEL
    bottom, tallest = top + height, max(values) or 1.0
    step = width / len(values)
    for place, value in enumerate(values):
        left = MARGIN + place * step
        bar = (left + 1, bottom - (height - LETTERS - 6) * value / tallest, left + step - 2, bottom)
        pen.rectangle(bar, BAR)
    pen.line((MARGIN, bottom, MARGIN + width, bottom), INK)
    pen.text((MARGIN, top), name, INK, font)
    pen.text((6, top + LETTERS + 6), f"{tallest:.3g}", INK, font)
    for timestep in range(0, 1001, 250):
        pen.text((MARGIN + width * timestep / 1000 - LETTERS, bottom + 3), str(timestep), INK, font)


def write_picture(path: Path, drawn: DrawnSigmas, title: str) -> None:
    """As a PNG, whole or not at all. Raises OutputError."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, sync=False) as temporary:
            drawn.picture(title).save(temporary, format="PNG")


def show(cfg: TrainConfig, datasets: DatasetGroupConfig, pixels_per_token: int) -> None:
    """What --show_timesteps asks for, by the first process. Raises OutputError."""
    if not is_first_process(os.environ):
        return
    options, flow = cfg.shown_draw, cfg.flow
    width, height = max((each.resolution for each in datasets.datasets), key=math.prod)
    if options.show_timesteps_resolution:
        sides = [int(side) for side in options.show_timesteps_resolution.split(",")]
        width, height = sides[0], sides[-1]
    side = math.isqrt(pixels_per_token) // 2  # of a latent's square: a token has four
    offset = options.show_timesteps_offset or 0.0
    drawn = DrawnSigmas.of(make_noising(flow), (height // side, width // side), offset)
    title = f"timestep_sampling {flow.timestep_sampling}, {width} x {height} pixels"
    if flow.weighting_scheme not in ("none", "uniform"):
        title += f", weighting_scheme {flow.weighting_scheme}"
    if offset:
        title += f", timestep_offset {offset:g}"
    if options.show_timesteps == "console":
        print(f"{title}\n{drawn.text()}")
        return
    assert cfg.save.output_dir, "SaveOptions asks for one"
    path = Path(cfg.save.output_dir) / f"{cfg.save.output_name or 'last'}_timesteps.png"
    write_picture(path, drawn, title)
    print(f"written: {path}")
