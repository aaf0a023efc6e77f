"""What the adapters change in the loss of trained and of held-out pictures, beside the base alone.

Fixed noise and fixed sigmas, the base by strength 0: what differs is what was learned. Where the loss
of trained pictures falls and that of held-out ones does not, it was learned by heart; the area under
the curve (AUC) of telling one kind from the other by the difference says so in one number. Nothing is
drawn from a generator that training uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from library.data.data_types import Batch, ImageInfo, StepResult
from library.utils import position_seed
from library.watching.fixed_pictures import FixedPictures, is_due

if TYPE_CHECKING:
    from accelerate import Accelerator

    from library.data.catalogue import Catalogue
    from library.settings.flags.evaluation import EvaluationOptions

SIGMAS = (0.3, 0.5, 0.7)
TRAINED, HELD_OUT = "trained", "held_out"

Process = Callable[[Batch, Tensor], StepResult]


@dataclass(frozen=True)
class Evaluated:
    """One evaluation: after which step, and of held-out pictures the mean loss, that of the base alone,
    and the AUC of telling trained pictures from them."""

    step: int
    loss: float
    base: float
    auc: float


@dataclass(frozen=True)
class Losses:
    """(P, S): of each picture at each of SIGMAS, on the CPU. now: with the adapters; base: without."""

    now: Tensor
    base: Tensor

    @property
    def difference(self) -> Tensor:
        return self.now - self.base


class Evaluation(FixedPictures):
    """When to evaluate, on which pictures, and what was found.

    catalogue: of the run. As many pictures of each kind as the options say, chosen by their names and
    the seed: of those that are trained no regularisation pictures.
    """

    def __init__(self, catalogue: Catalogue, options: EvaluationOptions, seed: int) -> None:
        self.options, self.seed = options, seed
        held_out = self.chosen(catalogue.held_out) if self.has_interval else []
        own = [image for image in catalogue.images if not image.subset.is_reg]
        trained = self.chosen(own) if held_out else []
        super().__init__(catalogue.plain([*trained, *held_out]), seed)
        self.numbers = {image.key: number for number, image in enumerate(self.catalogue.images)}
        self.trained = len(trained)
        self.base: Tensor | None = None
        self.history: list[Evaluated] = []
        self.last_step: int | None = None

    @property
    def has_interval(self) -> bool:
        options = self.options
        return bool(options.evaluate_every_n_steps or options.evaluate_every_n_epochs)

    @property
    def compares(self) -> bool:
        """Whether there are pictures of both kinds."""
        return 0 < self.trained < len(self.catalogue.images)

    def chosen(self, images: Sequence[ImageInfo]) -> list[ImageInfo]:
        """At most so many as are asked for, in their order."""

        def place(image: ImageInfo) -> int:
            return position_seed(self.seed, "evaluation", image.key)

        kept = {
            image.key for image in sorted(images, key=place)[: self.options.evaluation_pictures]
        }
        return [image for image in images if image.key in kept]

    def is_due_at_step(self, step: int) -> bool:
        return is_due(step, self.options.evaluate_every_n_steps)

    def is_due_after_epoch(self, epoch: int) -> bool:
        """epoch counts from 1."""
        return is_due(epoch, self.options.evaluate_every_n_epochs)

    def begin_after(self, step: int) -> None:
        """Forget what was found later than the step at which the run begins."""
        self.history = [each for each in self.history if each.step <= step]

    def is_done(self, step: int) -> bool:
        """Whether there was an evaluation after this step."""
        return step in {self.last_step, *(each.step for each in self.history)}

    def warnings(self) -> list[str]:
        """What was asked for and cannot be."""
        asked = any(dataset.validation_split for dataset in self.catalogue.group.datasets)
        if not (self.has_interval and asked) or self.compares:
            return []
        return ["evaluation: no picture was held out (validation_split), so no losses are compared."]

    def plan_lines(self) -> list[str]:
        """What will be looked at, for the log."""
        if not self.compares:
            return []
        held_out = len(self.catalogue.images) - self.trained
        sigmas = ", ".join(f"{sigma:g}" for sigma in SIGMAS)
        return [
            f"evaluation: {self.trained} trained and {held_out} held-out pictures at sigma {sigmas}"
        ]

    def batches(self, accelerator: Accelerator) -> Iterator[Batch]:
        """This process's share, on the device."""
        for batch in self.share(accelerator.process_index, accelerator.num_processes):
            yield batch.to(accelerator.device)

    def run(self, process: Process, accelerator: Accelerator, step: int) -> dict[str, float]:
        """What is logged, by key; the same on every process. Remembers it as of `step`.

        process: a batch on the device at sigma (B,), at the strength of the batch. The base's losses
        are made once: it never changes. Nothing where no picture is held out.
        """
        self.last_step = step
        if not self.compares:
            return {}
        if self.base is None:
            self.base = self.losses(process, accelerator, without_adapters=True)
        losses = Losses(self.losses(process, accelerator), self.base)
        values = self.values(losses)
        found = (values[key] for key in ("eval/loss/held_out", "eval/loss/base", "eval/auc"))
        self.history.append(Evaluated(step, *found))
        return values

    @torch.no_grad()
    def losses(
        self, process: Process, accelerator: Accelerator, *, without_adapters: bool = False
    ) -> Tensor:
        """(P, S) float32 on the CPU: of all processes, with one read of the device."""
        places: list[tuple[int, int]] = []
        found: list[Tensor] = []  # on the device until all are there
        for batch in self.batches(accelerator):
            if without_adapters:
                batch = replace(batch, network_multiplier=0.0)
            for number, sigma in enumerate(SIGMAS):
                sigmas = torch.full((len(batch.keys),), sigma, device=accelerator.device)
                found.append(process(batch, sigmas).per_sample.float())
                places += [(self.numbers[key], number) for key in batch.keys]
        table = torch.zeros(len(self.numbers), len(SIGMAS), device=accelerator.device)
        if found:
            rows, columns = torch.tensor(places, device=accelerator.device).unbind(1)
            table[rows, columns] = torch.cat(found)
        return accelerator.reduce(table).cpu()

    def values(self, losses: Losses) -> dict[str, float]:
        """By log key: mean differences by kind and sigma, mean losses of held-out pictures, the AUC."""
        kinds = {TRAINED: slice(0, self.trained), HELD_OUT: slice(self.trained, None)}
        values = {}
        for kind, rows in kinds.items():
            by_sigma = losses.difference[rows].double().mean(0).tolist()
            values[f"eval/difference/{kind}"] = sum(by_sigma) / len(by_sigma)
            for sigma, value in zip(SIGMAS, by_sigma):
                values[f"eval/difference/{kind}/sigma_{sigma:g}"] = value
        held_out = kinds[HELD_OUT]
        values["eval/loss/held_out"] = losses.now[held_out].double().mean().item()
        values["eval/loss/base"] = losses.base[held_out].double().mean().item()
        scores = losses.difference.double().mean(1)
        values["eval/auc"] = auc(scores[: self.trained], scores[self.trained :])
        return values

    def best(self, files: Mapping[int, Path]) -> list[str]:
        """The sentence that says which file to keep; none where nothing was compared.

        files: by the step after which they were saved; those that are still there
        """
        of_files = [each for each in self.history if each.step in files]
        if not of_files:
            return []
        best = min(of_files, key=_order)
        lowest = min(self.history, key=_order)
        name = files[best.step]
        if best.loss < best.base:
            text = (
                f"Keep {name}: its loss on held-out pictures, {best.loss:.5f}, is the lowest of "
                f"{len(of_files)} evaluated files (the base alone: {best.base:.5f}; AUC {best.auc:.2f}, "
                f"0.5: trained pictures cannot be told from others)."
            )
        else:
            text = (
                f"No evaluated file has a lower loss on held-out pictures than the base alone "
                f"({best.base:.5f}); {name} comes nearest ({best.loss:.5f}, AUC {best.auc:.2f})."
            )
        if _order(lowest) < _order(best):
            text += f" It was lower after step {lowest.step} ({lowest.loss:.5f}), of which there is no file."
        return [text]

    def kept(self) -> Tensor:
        """What was found, for a state: rows of Evaluated, float64."""
        rows = [(each.step, each.loss, each.base, each.auc) for each in self.history]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)

    def take_back(self, kept: Tensor) -> None:
        self.history = [Evaluated(int(step), *rest) for step, *rest in kept.tolist()]


def _order(each: Evaluated) -> float:
    return each.loss if math.isfinite(each.loss) else math.inf


def auc(trained: Tensor, held_out: Tensor) -> float:
    """The chance that a trained picture's score is below a held-out one's, ties counting half; (N,), (M,).

    The rank statistic of Mann and Whitney. 0.5: they cannot be told apart; NaN where a score is not
    finite.
    """
    if not (torch.isfinite(trained).all() and torch.isfinite(held_out).all()):
        return math.nan
    below = trained[:, None] < held_out[None, :]
    same = trained[:, None] == held_out[None, :]
    return (below.double() + 0.5 * same.double()).mean().item()


def describe(values: Mapping[str, float]) -> list[str]:
    """The line for the log, if there were pictures to compare."""
    if not values:
        return []
    trained, held_out = (values[f"eval/difference/{kind}"] for kind in (TRAINED, HELD_OUT))
    text = f"loss beside the base alone: trained pictures {trained:+.5f}, held-out ones {held_out:+.5f}"
    return [f"{text}; AUC {values['eval/auc']:.2f}"]
