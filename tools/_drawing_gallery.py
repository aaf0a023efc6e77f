"""The files that a drawing leaves: numbered pictures with their settings inside, the grid, the latents."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import safetensors.torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from library.previews.pictures import Drawn, save_png
from library.system.system_errors import output_errors
from library.utils import atomic_write
from tools._drawing_grid import Grid
from tools._drawing_order import Order
from tools._drawing_plan import Piece, Plan

logger = logging.getLogger(__name__)


class Gallery:
    """written: the files so far, in order"""

    def __init__(self, order: Order, plan: Plan) -> None:
        """Makes the folders. Raises OutputError where that fails."""
        self.order, self.plan = order, plan
        output = Path(order.options.output)
        is_file = output.suffix.lower() == ".png"
        self.folder = output.parent if is_file else output
        self.stem = output.stem if is_file else "picture"
        count = len(plan.pieces) * order.options.batch
        self.only = output if is_file and count == 1 and not plan.rows else None
        with output_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if order.options.latents:
                Path(order.options.latents).parent.mkdir(parents=True, exist_ok=True)
            self.next = 1 if order.options.overwrite else self.last_number() + 1
        self.written: list[Path] = []
        self.latents: dict[str, Tensor] = {}
        sizes = {
            place: (piece.prompt.width or 0, piece.prompt.height or 0)
            for piece in plan.pieces
            for place in piece.places
        }
        self.grid = Grid(sizes, plan.rows, plan.columns) if sizes else None

    def last_number(self) -> int:
        """The highest that a picture or a grid of this name has; 0 for none."""
        name = re.compile(rf"{re.escape(self.stem)}_(?:grid_)?(\d+)\.png", re.IGNORECASE)
        found = (name.fullmatch(path.name) for path in self.folder.iterdir())
        return max((int(match[1]) for match in found if match), default=0)

    def hang(self, piece: Piece, latents: Tensor, pixels: Tensor) -> list[Path]:
        """Write the pictures of a piece, (B, H, W, 3) uint8; returns their files."""
        files = []
        for place, picture in enumerate(pixels):
            file = self.new_file()
            with output_errors(file):
                save_png(file, picture, self.drawn(piece, place))
            files.append(file)
            if self.order.options.latents:
                self.latents[file.stem] = latents[place].clone()
        for each in piece.places:
            assert self.grid, "only a grid has places"
            self.grid.put(each, Image.fromarray(pixels[0].numpy()))
        self.written += files
        return files

    def new_file(self, what: str = "") -> Path:
        """Where the next picture goes."""
        if self.only and (self.order.options.overwrite or not self.only.exists()):
            return self.only
        file = self.folder / f"{self.stem}_{what}{self.next:04d}.png"
        self.next += 1
        return file

    def drawn(self, piece: Piece, place: int) -> Drawn:
        order, prompt = self.order, piece.prompt
        assert prompt.seed is not None and prompt.width and prompt.height, "the order says them"
        files = order.files.transformer, order.files.qwen, order.files.vae
        image = order.options.image
        return Drawn(
            prompt=prompt,
            seed=prompt.seed,
            width=prompt.width,
            height=prompt.height,
            files=(Path(files[0]).name, Path(files[1]).name, Path(files[2]).name),
            adapters=[(Path(file).name, strength) for file, strength in piece.adapters],
            batch=order.options.batch,
            place=place,
            start=(Path(image).name, order.denoise) if image else None,
        )

    def finish(self) -> None:
        """Write the grid and the latents, if they were asked for."""
        if self.grid:
            file = self.new_file("grid_")
            info = PngInfo()
            told = {"rows": self.plan.rows, "columns": self.plan.columns}
            info.add_itxt("grid", json.dumps(told, ensure_ascii=False))
            with output_errors(file), atomic_write(file, sync=False) as temporary:
                self.grid.sheet.save(temporary, format="PNG", pnginfo=info)
            self.tell(file)
        if self.order.options.latents:
            file = Path(self.order.options.latents)
            with output_errors(file), atomic_write(file) as temporary:
                safetensors.torch.save_file(self.latents, temporary)
            self.tell(file)

    def tell(self, file: Path) -> None:
        logger.info("written: %s", file)
        self.written.append(file)
