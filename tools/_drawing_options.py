"""The flags of tools/generate.py, beside those that it shares with the trainer."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.errors import ConfigError, Problem
from library.previews.prompt_file import BY_KEY, USUAL, PreviewPrompt, Unfit
from library.previews.samplers import SAMPLERS, resolve_sampler
from library.previews.sigma_rules import RULES
from library.settings.options import between, flag

DENOISE = 0.6


def fits(key: str) -> Callable[[Any], str | None]:
    """The check that a file of prompts has for this key."""

    def check(value: Any) -> str | None:
        try:
            BY_KEY[key].read(value)
        except Unfit as error:
            return f"{error}{'' if str(error).endswith('?') else '.'}"
        except ConfigError as error:
            return error.problems[0].message
        return None

    return check


def one_text(key: str, value: tuple[str, ...] | None) -> Problem | None:
    is_more = value is not None and len(value) > 1
    return Problem("expected one text. Put it in quotes.", key) if is_more else None


@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """Drawing"""

    dit: str | None = flag(None, "the DiT; as anima_transformer", path=True)
    prompt: str | None = flag(None, "what to draw", check=fits("prompt"), prose=True)
    prompts: str | None = flag(
        None, "a file of prompts: lines with --n --w --h --d --s --l --fs --ss --sc --am, TOML or JSON",
        path=True)  # fmt: skip
    negative: tuple[str, ...] | None = flag(
        None,
        "what to stay away from; ComfyUI's own if not given",
        check=fits("negative"),
        prose=True,
    )
    width: int | None = flag(None, "pixels; 1024, or the picture's to change", check=fits("width"))
    height: int | None = flag(None, "pixels; as width", check=fits("height"))
    batch: int = flag(1, "pictures of one draw of noise", check=between(1, 64))
    steps: int = flag(USUAL.steps, "steps", check=fits("steps"))
    cfg: float = flag(USUAL.cfg, "guidance; 1 asks no negative", check=fits("cfg"))
    shift: float = flag(USUAL.shift, "shift of sigma", check=fits("shift"))
    sampler: str = flag(USUAL.sampler, f"sampler ({', '.join(SAMPLERS)})", check=fits("sampler"))
    scheduler: str = flag(USUAL.scheduler, "scheduler", choices=tuple(RULES))
    lora: tuple[str, ...] | None = flag(
        None, "FILE or FILE:STRENGTH of an adapter; as many as you like"
    )
    compare: tuple[str, ...] | None = flag(
        None, "strengths, as 0,0.5,1: a grid of them; what --lora says is multiplied"
    )
    matrix: tuple[str, ...] | None = flag(
        None, "adapter files: a grid of them, and of prompts", path=True
    )
    image: str | None = flag(None, "a picture to change", path=True)
    denoise: float | None = flag(
        None, f"how much of it is drawn anew, above 0 to 1 [{DENOISE}]",
        check=lambda value: None if 0 < value <= 1 else "expected more than 0, to 1.",
    )  # fmt: skip
    output: str = flag("drawings", "folder of the pictures, or a name ending in .png", path=True)
    overwrite: bool = flag(False, "replace files that are there; else pictures are numbered on")
    latents: str | None = flag(None, "file for the final latents, float32", path=True)
    device: str | None = flag(None, "cuda, cuda:1, cpu, mps; the first there is")
    step_noise: str = flag(
        "cpu", "noise of the steps: the same on every device, or the device's as ComfyUI's on CUDA",
        choices=("cpu", "device"),
    )  # fmt: skip

    def problems(self) -> list[Problem]:
        found = []
        if (self.prompt is None) is (self.prompts is None):
            message = "say what to draw: --prompt TEXT or --prompts FILE, one of the two."
            found.append(Problem(message, "prompt"))
        if problem := one_text("negative", self.negative):
            found.append(problem)
        for name in ("lora", "compare", "matrix"):
            if getattr(self, name) == ():
                found.append(Problem("expected a value.", name))
        if self.compare and not (self.lora or self.matrix):
            message = "compares strengths of adapters: name them with --lora or --matrix."
            found.append(Problem(message, "compare"))
        if self.batch > 1 and (self.compare or self.matrix):
            message = "a grid shows one picture in each place. Leave out --batch."
            found.append(Problem(message, "batch"))
        if self.denoise is not None and not self.image:
            message = "is for a picture to change: name it with --image."
            found.append(Problem(message, "denoise"))
        return [*found, *self.output_problems()]

    def output_problems(self) -> list[Problem]:
        found = []
        if self.latents and not self.latents.endswith(".safetensors"):
            found.append(Problem("expected a name ending in .safetensors.", "latents"))
        elif self.latents and os.path.exists(self.latents) and not self.overwrite:
            message = "is there already. Name another file, or add --overwrite."
            found.append(Problem(message, "latents"))
        if Path(self.output).suffix.lower() in (".jpg", ".jpeg", ".webp"):
            found.append(Problem("pictures are written as .png.", "output"))
        return found

    def usual(self) -> PreviewPrompt:
        """What counts for every picture that says nothing else."""
        sampler, _ = resolve_sampler(self.sampler) or (USUAL.sampler, "")
        negative = USUAL.negative if self.negative is None else "".join(self.negative[:1])
        return PreviewPrompt(
            prompt=self.prompt or "", negative=negative, width=self.width, height=self.height,
            steps=self.steps, cfg=self.cfg, shift=self.shift, sampler=sampler,
            scheduler=self.scheduler,
        )  # fmt: skip
