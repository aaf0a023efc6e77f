"""The pictures of a run as files: their names, which there are, and the sheet that shows all of them."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from PIL import Image

from library.errors import Problem
from library.previews import contact_sheet
from library.previews.pictures import small_jpeg
from library.previews.schedule import Moment
from library.saving.output_checks import tried
from library.settings.flags.save import SaveOptions

FOLDER = "sample"
MOST_ROWS = 40  # of the sheet
COVER_SIDE = 256  # pixels, as the model metadata wants thumbnails
WRITTEN = re.compile(r"(e?)(\d{6,})_(\d{2,})_(\d{14})_\d+\.png")
"""What follows the run's name: place, number of the prompt, time, seed."""
ADAPTERS_AT_END = re.compile(r"( <lora:[^<>]*>)+$")


@dataclass(frozen=True)
class DrawnPicture:
    """A picture that was drawn during a run.

    epoch:  after which it was drawn, from 1; None: at a step, or before the first one (step 0)
    number: of the prompt in the file, from 0
    prompt: its words as written
    """

    step: int
    epoch: int | None
    number: int
    prompt: str
    seed: int
    path: Path


def album_problems(options: SaveOptions) -> list[Problem]:
    """What keeps pictures from being written; nothing is left behind."""
    assert options.output_dir, "SaveOptions asks for one"
    album = Album(Path(options.output_dir), options.output_name)
    return tried(album.longest_path(), f"output_dir = {options.output_dir}")


def prompt_in(path: Path) -> str:
    """The prompt that a picture of ours was drawn from; "" where it does not say."""
    with contextlib.suppress(OSError, SyntaxError), Image.open(path) as picture:
        text = picture.info.get("parameters")
        if isinstance(text, str):
            return ADAPTERS_AT_END.sub("", text.partition("\nNegative prompt: ")[0])
    return ""


class Album:
    """The folder `sample` of a run's output folder.

    drawn:   what this run drew, in order; for whoever shows pictures
    folder, name: where the files are, and with what their names begin
    newest: picture of the first prompt that was drawn, after its place in the run
    """

    def __init__(self, output_dir: Path, output_name: str | None) -> None:
        self.folder = output_dir / FOLDER
        self.name = f"{output_name}_" if output_name else ""
        self.drawn: list[DrawnPicture] = []
        self.rows: dict[Moment, dict[int, Image.Image]] = {}
        self.titles: dict[int, str] = {}
        self.newest: tuple[tuple[int, int, int], Path] | None = None

    def cover(self) -> str | None:
        """The newest picture of the first prompt, small, as a data: URL; None if there is none."""
        return (small_jpeg(self.newest[1], COVER_SIDE) or None) if self.newest else None

    @property
    def sheet(self) -> Path:
        return self.folder / f"{self.name}sheet.jpg"

    def path(self, moment: Moment, number: int, seed: int, now: datetime) -> Path:
        """Where a picture goes, named as sd-scripts names it."""
        time = now.strftime("%Y%m%d%H%M%S")
        return self.folder / f"{self.name}{moment.name}_{number:02d}_{time}_{seed}.png"

    def longest_path(self) -> Path:
        """The longest that a run needs."""
        return self.path(Moment(10**8 - 1, 10**8 - 1), 999, 2**63, datetime(2000, 1, 1))

    def find(self) -> dict[tuple[str, int], Path]:
        """(name of the moment, number) -> the newest picture of it that there is, of any run of this name."""
        found: dict[tuple[str, int], tuple[str, Path]] = {}
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                rest = path.name.removeprefix(self.name)
                match = WRITTEN.fullmatch(rest) if path.name.startswith(self.name) else None
                if match:
                    place = f"{match[1]}{match[2]}", int(match[3])
                    found[place] = max(found.get(place, ("", path)), (match[4], path))
        return {place: path for place, (_, path) in found.items()}

    def take_over(self, step: int, steps_per_epoch: int) -> None:
        """Take the pictures up to `step` into the sheet: the run goes on from there."""
        for (name, number), path in self.find().items():
            count = int(name.lstrip("e"))
            moment = Moment(count * steps_per_epoch, count) if name[0] == "e" else Moment(count)
            if moment.step <= step:
                with contextlib.suppress(OSError, SyntaxError), Image.open(path) as picture:
                    self.keep(moment, number, picture)
                self.look_at(moment, number, path)

    def look_at(self, moment: Moment, number: int, path: Path) -> None:
        """Of the newest moment the first prompt's picture stands for the run."""
        place = (*moment.order, -number)
        if self.newest is None or place >= self.newest[0]:
            self.newest = place, path

    def drawn_at(self, step: int, steps_per_epoch: int) -> list[DrawnPicture]:
        """The pictures of one step that there are, as an earlier session drew them."""
        found = []
        for (name, number), path in sorted(self.find().items()):
            count, epoch = int(name.lstrip("e")), int(name[1:]) if name[0] == "e" else None
            if step == (count if epoch is None else count * steps_per_epoch):
                seed, prompt = int(path.stem.rpartition("_")[2]), prompt_in(path)
                found.append(DrawnPicture(step, epoch, number, prompt, seed, path))
        return found

    def keep(self, moment: Moment, number: int, picture: Image.Image) -> None:
        """Keep a picture for the sheet. Of too many rows every second goes, never the newest."""
        self.rows.setdefault(moment, {})[number] = contact_sheet.small(picture)
        if len(self.rows) > MOST_ROWS:
            for each in sorted(self.rows, key=lambda moment: moment.order)[-2::-2]:
                del self.rows[each]

    def add(self, drawn: DrawnPicture, picture: Image.Image) -> None:
        """Take note of a picture that was written."""
        self.drawn.append(drawn)
        self.titles[drawn.number] = drawn.prompt
        moment = Moment(drawn.step, drawn.epoch)
        self.keep(moment, drawn.number, picture)
        self.look_at(moment, drawn.number, drawn.path)

    def write_sheet(self) -> None:
        """Anew, of all rows. Raises OSError."""
        moments = sorted(self.rows, key=lambda moment: moment.order)
        rows = {moment.title: self.rows[moment] for moment in moments}
        contact_sheet.write_sheet(self.sheet, rows, self.titles)
