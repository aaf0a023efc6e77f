"""Pictures drawn while a run goes on, by the adapters as they are; the run is afterwards as it was.

Several processes share the prompts; the first keeps the album. A lack of memory, a file or a prompt that
is wrong costs the pictures, with one message, never the run.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from library.device_utils import clean_memory_on_device
from library.errors import UserError
from library.previews.album import Album, DrawnPicture
from library.previews.painting import Contexts, Drawing, developed, paint
from library.previews.pictures import Drawn, save_png
from library.previews.prompt_file import PreviewPrompt
from library.previews.prompt_texts import PromptTexts
from library.previews.schedule import Moment, Schedule
from library.saving.stopping import is_out_of_memory
from library.training.processes import wait_for_all
from library.training.random_states import random_states, restore_random_states
from library.utils import is_quiet

if TYPE_CHECKING:
    from accelerate import Accelerator

    from library.data.data_types import RunPosition, TextOutputs
    from library.strategy_base import LatentsCachingStrategy
    from library.watching.trackers import Trackers
    from networks.trained import Trained

logger = logging.getLogger(__name__)

SHOWN_SIDE = 512  # pixels, the longer side of what trackers get


@dataclass(frozen=True)
class Studio:
    """What a run lends to its previews.

    model:          the denoiser with the adapters inside, without a wrapper
    context:        see FamilyHooks.prompt_context
    contexts_train: whether a prompt's context changes while adapters are trained
    decoder:        whose VAE decodes
    keeps_decoder:  training needs it too: it is not freed
    rows:           of latents decoded at a time, see painting.developed
    is_stopped:     whether this process was asked to stop
    """

    accelerator: Accelerator
    model: nn.Module
    network: Trained
    context: Callable[[nn.Module, TextOutputs], Tensor]
    contexts_train: bool
    decoder: LatentsCachingStrategy
    keeps_decoder: bool
    rows: int | None
    trackers: Trackers
    is_stopped: Callable[[], bool]


@dataclass(frozen=True)
class Usual:
    """What pictures have whose prompts do not say otherwise, and what their files say of the run.

    seed:     of prompt 0; the next has the next
    size:     width, height
    files:    names of the DiT, text encoder and VAE of a moment, for ComfyUI's loaders
    adapters: what a picture of a moment is drawn with beside them, the run's own at a strength:
              (file name, strength) of each
    """

    seed: int
    size: tuple[int, int]
    files: Callable[[Moment], tuple[str, str, str]]
    adapters: Callable[[Moment, float], Sequence[tuple[str, float]]]


class CutShort(Exception):
    """A stop was asked for while a picture was drawn."""


class Previews:
    """Draws what is due.

    first_step: of a run that goes on, where it does; None for others
    there:      the pictures that it found, by (name of the moment, number): not drawn again there
    """

    def __init__(
        self, schedule: Schedule, texts: PromptTexts, album: Album, studio: Studio, usual: Usual
    ) -> None:
        self.schedule, self.texts, self.album = schedule, texts, album
        self.studio, self.usual = studio, usual
        self.contexts: dict[tuple[str, float], Tensor] = {}  # by text and strength, on the CPU
        self.first_step: int | None = None
        self.there: set[tuple[str, int]] = set()
        self.last_step: int | None = None

    @property
    def drawn(self) -> list[DrawnPicture]:
        """What was drawn in this session, by all processes, in order; kept by the first."""
        return self.album.drawn

    def begin(self, position: RunPosition, steps_per_epoch: int, *, goes_on: bool) -> list[Moment]:
        """What is due before the session's first step; of a run that goes on, what is missing.

        It may have been stopped, or lost, between the update and the pictures.
        """
        step, schedule = position.step, self.schedule
        if not goes_on:
            return [moment for moment in [schedule.at_first(step)] if moment]
        found = [schedule.at_step(step)]
        if position.batch_in_epoch == 0:
            found.append(schedule.after_epoch(position.epoch, step))
        if self.texts.file.path:
            self.first_step, self.there = step, set(self.album.find())
            self.album.take_over(step, steps_per_epoch)
        return [moment for moment in found if moment]

    def draw(self, moment: Moment) -> list[DrawnPicture]:
        """Draw, write and show the pictures of a moment, once for each step.

        Returns all of them in the first process, none in the others. Every process calls it at the
        same places, with the model as it is used: no dropout.
        """
        if moment.step == self.last_step:
            return []
        self.last_step = moment.step
        prompts = self.current_prompts()
        begun, made = time.monotonic(), dict[DrawnPicture, Image.Image]()
        states = random_states()
        multiplier = self.studio.network.multiplier
        try:
            self.take(prompts)
            self.draw_share(moment, made)
        except CutShort:
            logger.warning("%s: its pictures are not drawn, since a stop was asked for.", moment.title)
        except Exception as error:
            if not costs_pictures_alone(error):
                raise
            self.give_up(moment, error)
        finally:
            self.studio.network.set_multiplier(multiplier)
            if not self.studio.keeps_decoder:
                self.studio.decoder.free()
            clean_memory_on_device(self.studio.accelerator.device)
            restore_random_states(states)
        return self.publish(moment, made, begun)

    def give_up(self, moment: Moment, error: Exception) -> None:
        """Tell what costs the pictures."""
        short = is_out_of_memory(error)
        traceback.clear_frames(error.__traceback__)  # they hold what the picture had in memory
        what = "memory is too short to draw" if short else "pictures are lost"
        advice = " Smaller ones (--w, --h), or sample_on_cpu_vae, need less." if short else ""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        logger.warning(
            "%s: %s; training goes on (%s).%s", moment.title, what, reason, advice
        )

    def current_prompts(self) -> Sequence[PreviewPrompt]:
        """Of the file as it is now; the first process's in all of them."""
        accelerator, file = self.studio.accelerator, self.texts.file
        if accelerator.is_main_process:
            file.refresh()
        if accelerator.num_processes == 1:
            return file.prompts
        from accelerate.utils import broadcast_object_list

        prompts: list[PreviewPrompt] = broadcast_object_list([file.prompts])[0]
        return prompts

    def take(self, prompts: Sequence[PreviewPrompt]) -> None:
        """Have the text of these prompts encoded, and their contexts made when they are next needed."""
        if tuple(prompts) != self.texts.prompts:
            self.texts.use(prompts)
        known = {} if self.studio.contexts_train else self.contexts
        self.contexts = {k: made for k, made in known.items() if k[0] in self.texts.outputs}

    def draw_share(self, moment: Moment, made: dict[DrawnPicture, Image.Image]) -> None:
        """Draw this process's part of the prompts: all latents, then the VAE is loaded for all."""
        due = self.due(moment)
        if not due:
            return
        self.album.folder.mkdir(parents=True, exist_ok=True)
        steps = sum(prompt.steps for prompt in due.values())
        quiet = is_quiet() or not self.studio.accelerator.is_main_process
        with tqdm(total=steps, desc=f"preview of {moment.title}", leave=False, disable=quiet) as bar:
            latents = {number: self.paint(number, prompt, bar) for number, prompt in due.items()}
        for number, prompt in due.items():
            pixels = developed(self.studio.decoder, latents.pop(number), self.studio.rows)[0]
            self.stop_if_asked()
            drawn = self.write(moment, number, prompt, pixels)
            made[drawn] = reduced(pixels.numpy())

    def due(self, moment: Moment) -> Mapping[int, PreviewPrompt]:
        """This process's prompts by number, without those that an interrupted run has drawn."""
        accelerator = self.studio.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        own = dict(list(enumerate(self.texts.prompts))[rank::world])
        there = self.there if moment.step == self.first_step else ()
        return {n: prompt for n, prompt in own.items() if (moment.name, n) not in there}

    def paint(self, number: int, prompt: PreviewPrompt, bar: tqdm) -> Tensor:
        """The latents of a picture, (1, C, H, W)."""
        studio = self.studio
        studio.network.set_multiplier(prompt.multiplier)
        contexts = Contexts(
            self.context(prompt.prompt, prompt.multiplier),
            self.context(prompt.negative, prompt.multiplier) if prompt.has_negative else None,
        )
        shape = studio.decoder.latents_shape(*self.size(prompt))
        drawing = Drawing(prompt, self.seed(number, prompt), shape)

        def on_step(number: int, latents: Tensor, clean: Tensor) -> None:
            self.stop_if_asked()
            bar.update()

        return paint(studio.model, drawing, contexts, on_step)

    def context(self, text: str, strength: float) -> Tensor:
        """(1, T, X) where the model computes, by the adapters as they are, at this strength."""
        key = text, strength if self.studio.contexts_train else 1.0
        if key not in self.contexts:
            made = self.studio.context(self.studio.model, self.texts.outputs[text])
            self.contexts[key] = made.cpu()
        return self.contexts[key].to(self.studio.accelerator.device)

    def stop_if_asked(self) -> None:
        if self.studio.is_stopped():
            raise CutShort

    def size(self, prompt: PreviewPrompt) -> tuple[int, int]:
        width, height = self.usual.size
        return prompt.width or width, prompt.height or height

    def seed(self, number: int, prompt: PreviewPrompt) -> int:
        return (self.usual.seed + number) % 2**63 if prompt.seed is None else prompt.seed

    def write(
        self, moment: Moment, number: int, prompt: PreviewPrompt, pixels: Tensor
    ) -> DrawnPicture:
        """The picture as a file that ComfyUI and A1111's readers know the settings of."""
        seed, (width, height) = self.seed(number, prompt), self.size(prompt)
        path = self.album.path(moment, number, seed, datetime.now())
        adapters = self.usual.adapters(moment, prompt.multiplier)
        save_png(path, pixels, Drawn(prompt, seed, width, height, self.usual.files(moment), adapters))
        return DrawnPicture(moment.step, moment.epoch, number, prompt.prompt, seed, path)

    def publish(
        self, moment: Moment, made: Mapping[DrawnPicture, Image.Image], begun: float
    ) -> list[DrawnPicture]:
        """Show the pictures of all processes in the sheet and to the trackers; the first returns them."""
        from accelerate.utils import gather_object

        wait_for_all(self.studio.accelerator)
        pictures = sorted(gather_object(list(made.items())), key=lambda pair: pair[0].number)
        if not (pictures and self.studio.accelerator.is_main_process):
            return []
        for drawn, picture in pictures:
            self.album.add(drawn, picture)
        shown = {f"previews/{d.number:02d}": numpy.asarray(picture) for d, picture in pictures}
        self.studio.trackers.show(moment.step, shown)
        try:
            self.album.write_sheet()
        except OSError as error:
            logger.warning("%s: cannot be written (%s)", self.album.sheet, error)
        seconds, folder = time.monotonic() - begun, self.album.folder
        logger.info("%s: %d pictures in %.1f s, %s", moment.title, len(pictures), seconds, folder)
        return [drawn for drawn, _ in pictures]


def costs_pictures_alone(error: Exception) -> bool:
    """Whether a run goes on after it: memory, a file, what the user can put right; no fault of ours."""
    return is_out_of_memory(error) or isinstance(error, (UserError, OSError))


def reduced(pixels: numpy.ndarray) -> Image.Image:
    """(H, W, 3) uint8 as a picture with no side above SHOWN_SIDE."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    return picture
