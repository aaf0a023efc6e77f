"""NetworkTrainer: the stages of a run and its loop, for any model family.

A family subclasses it and fills in the hooks (a family's own entry does). `train()` is the table of
contents; the stages before the first step are in library/trainer_checks.py, trainer_inputs.py and
trainer_stages.py.
Names of the hooks are sd-scripts'; what they take and return is typed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from library import train_util
from library.data.batch_loader import BatchLoader
from library.data.data_types import Batch, StepResult
from library.device_utils import clean_memory_on_device
from library.errors import EXIT_USER_ERROR
from library.memory.modes import SavesMemory
from library.previews.schedule import Moment
from library.reporting.stage_times import timed
from library.saving.output_claim import outputs_claimed
from library.saving.stopping import Request, rescue
from library.system.program import run_main
from library.trainer_stages import TrainerStages
from library.training import compiling, losses
from library.training.flow_matching import NoiseSettings, Noising, NoisyLatents
from library.training.prior import mixed_targets
from library.training.processes import is_so_anywhere, losses_told
from library.utils import log_lines
from library.watching import drawn_sigmas, drift, evaluation, validation

logger = logging.getLogger(__name__)


class NetworkTrainer(TrainerStages):
    """Trains adapters on a frozen model, on what the stages have prepared."""

    def train(self) -> None:
        """The whole run, from pictures on disk to the exported file; or what is shown in its place."""
        if self.cfg.shown_draw.show_timesteps:
            return drawn_sigmas.show(self.cfg, self.datasets, self.pixels_per_token)
        with losses_told(), outputs_claimed(self.cfg.save), self.reporter:
            self.prepare()
            with (
                self.stops, contextlib.closing(self.progress), contextlib.closing(self.files),
                rescue(self.files, self.state),
                compiling.failures_told(self.compilation, self.accelerator.device),
            ):  # fmt: skip
                self.run_epochs()
                last_words = self.finish()
            self.reporter.end(last_words)
        logger.info(last_words)  # only the first process shows its messages

    @timed
    def run_epochs(self) -> None:
        loader = train_util.make_loader(self.dataset, self.sampler, self.cfg.data, self.ahead)
        goes_on = self.resumption.state is not None
        for due in self.previews.begin(self.state, self.plan.steps_per_epoch, goes_on=goes_on):
            self.draw(due, save=False)
        for epoch in range(self.state.epoch, self.plan.epochs):
            self.texts.prepare_epoch(epoch)
            self.finish_texts()
            self.state.begin_epoch(epoch)
            self.progress.start_epoch(epoch)
            self.network.on_epoch_start(None, self.model)
            self.train_epoch(loader)
            if self.stops.quits:
                break
            if self.validation.is_due_after_epoch(epoch + 1):
                self.validate()
            if self.evaluation.is_due_after_epoch(epoch + 1):
                self.evaluate()
            self.files.after_epoch(self.state)
            if moment := self.previews.schedule.after_epoch(epoch + 1, self.state.step):
                self.draw(moment)

    def train_epoch(self, loader: BatchLoader) -> None:
        """Every window of the epoch that is left, until the run's last step."""
        if self.is_over:
            return
        self.sampler.set_epoch(self.state.epoch, start_batch=self.state.batch_in_epoch)
        accumulation = self.cfg.loop.gradient_accumulation_steps
        with contextlib.closing(train_util.windows(loader, accumulation)) as windows:
            for window in windows:
                is_first = self.state.step == self.cheaper.start
                with compiling.duration_told(self.compilation, is_first=is_first):
                    self.train_step(window)
                self.after_step()
                if self.is_over:
                    break

    @property
    def is_over(self) -> bool:
        return self.stops.quits or self.state.step >= self.plan.total_steps

    def train_step(self, window: list[Batch]) -> None:
        """One update from the micro-batches of a window."""
        self.optimization.begin(self.state.step)
        results = self.gradients_that_fit(window)
        shares = [result.loss.detach() / len(window) for result in results]
        with self.files.unsettled():
            norm = self.update()
            limited = self.limit_norms()
            self.state.step += 1
            if self.average:
                self.average.update(self.state.step)
            self.state.batch_in_epoch += len(window)
            self.state.samples_seen += sum(len(batch.keys) for batch in window)
        self.progress.add(
            self.state.step,
            {"loss/current": reduce(torch.add, shares), "norm/grad": norm, **limited},
            self.optimization.rates.latest,
            results,
        )

    def gradients_that_fit(self, window: list[Batch]) -> list[StepResult]:
        """As gradients_of; where memory is short in the first steps, made with cheaper modes."""
        fused = self.optimization.is_fused  # then weights change in the backward pass
        may = not fused and self.cheaper.is_there(self.state.step, self.plain_model.num_blocks)
        alone = self.accelerator.num_processes == 1
        if may and not alone and self.falls_short(window):
            self.step_down()
        try:
            with self.files.unsettled() if fused else contextlib.nullcontext():
                return self.gradients_of(window)
        except torch.OutOfMemoryError:
            if not (may and alone):
                raise
        self.step_down()  # by now nothing is kept of the pass that failed
        return self.gradients_of(window)

    def falls_short(self, window: list[Batch]) -> bool:
        """Whether this step's passes are too much for the memory of one process, of all that train.

        Each tries its own on the model that exchanges nothing, and drops what they give.
        """
        model, failed = self.model, False
        self.model = self.base
        try:
            self.gradients_of(window)
        except torch.OutOfMemoryError:
            failed = True
        finally:
            self.model = model
        self.network.clear_gradients()
        if failed:  # the exchange wants memory too
            clean_memory_on_device(self.accelerator.device)
        return is_so_anywhere(self.accelerator, failed)

    def gradients_of(self, window: list[Batch]) -> list[StepResult]:
        """Each micro-batch forward and backward; nothing is read from the device: that would stall."""
        results = []
        for micro_step, batch in enumerate(window):
            self.between_buckets.before(batch.size)
            passes = list(self.prior.passes(self.ahead.take(batch)))
            for each in passes:
                is_last = micro_step == len(window) - 1 and each is passes[-1]
                with self.sync_gradients(is_last):
                    train_util.seed_dropout(
                        self.seed, self.accelerator.process_index, self.state.step, micro_step
                    )
                    result = self.forth_and_back(each, len(window))
                if each is passes[0]:
                    results.append(result)
        return results

    def forth_and_back(self, batch: Batch, share: int) -> StepResult:
        """What a pass found. share: it is one of so many of an update.

        Nothing of its graph is left. While the nodes of one live, the next pass has those of them that add
        gradients up; they work on the stream of the pass that made them, and no recording may wait for that.
        """
        result = self.process_batch(batch)
        self.accelerator.backward(result.loss / share)
        return replace(result, loss=result.loss.detach())

    def step_down(self) -> None:
        """Let the model save more memory, in the first steps of a run with --vram_target."""
        self.network.clear_gradients()
        told = self.cheaper.take(self.state.step, self.plain_model, self.accelerator.device)
        self.memory_modes = self.cheaper.loop
        saves = str(self.memory_modes.gradient_checkpointing)
        self.metadata.entries["ss_gradient_checkpointing"] = saves
        log_lines(logger, told, logging.WARNING)

    @property
    def plain_model(self) -> SavesMemory:
        assert isinstance(self.base, SavesMemory), "every family's model does"
        return self.base

    def update(self) -> Tensor:
        """One update, never with a gradient that is not finite; returns its norm, on the device."""
        return self.optimization.update(self.monitor.guard.step)

    def limit_norms(self) -> dict[str, Tensor]:
        limit = self.cfg.network.scale_weight_norms
        return self.network.scale_weight_norms(limit) if limit else {}

    def sync_gradients(self, last_of_window: bool) -> contextlib.AbstractContextManager:
        """Ranks exchange gradients once per update, not per micro-step."""
        return contextlib.nullcontext() if last_of_window else self.accelerator.no_sync(self.model)

    def process_batch(self, batch: Batch, sigma: Tensor | None = None) -> StepResult:
        """Condition, predict, compare: the loss of one micro-batch. sigma (B,) is drawn if None."""
        if self.network.multiplier != batch.network_multiplier:
            self.network.set_multiplier(batch.network_multiplier)
        latents = batch.latents
        if latents is None:
            assert batch.pixels is not None, "a batch has one of the two"
            latents = self.encode_images_to_latents(batch.pixels)
        prediction, noisy = self.get_noise_pred_and_target(
            latents, self.get_conditioning(batch), batch, sigma
        )
        per_sample = losses.sample_losses(
            prediction, noisy.velocity, noisy.sigma, self.cfg.loss, batch.loss_mask
        )
        weight = batch.loss_weight * self.noising.loss_weight(noisy.sigma)
        return StepResult(
            loss=(per_sample * weight).mean(),
            per_sample=per_sample.detach(),
            sigma=noisy.sigma,
            keys=batch.keys,
        )

    def encode_images_to_latents(self, pixels: Tensor) -> Tensor:
        return self.latents_strategy.encode(pixels).to(self.accelerator.device)

    def get_conditioning(self, batch: Batch) -> Any:
        """Of the batch's captions; what is not cached is encoded now."""
        if batch.conditioning is not None:
            return batch.conditioning
        outputs = batch.texts or [self.texts.get(caption) for caption in batch.captions]
        return self.text_strategy.collate(outputs).to(self.accelerator.device)

    def get_noise_pred_and_target(
        self,
        latents: Tensor,
        conditioning: Any,
        batch: Batch,
        sigma: Tensor | None = None,
    ) -> tuple[Tensor, NoisyLatents]:
        """Draw sigma unless given, noise the latents, predict."""
        drawn = batch.drawn or self.noising.draw_ahead(
            latents.shape, batch.seeds, batch.sigma_offsets
        )
        noisy = self.noising.draw(latents, batch.seeds, sigma, drawn)
        if self.prior.applies(batch):
            target = mixed_targets(noisy.velocity, self.predict_base(noisy, conditioning), batch)
            noisy = replace(noisy, velocity=target)
        return self.call_unet(noisy, conditioning), noisy

    @torch.no_grad()
    def predict_base(self, noisy: NoisyLatents, conditioning: Any) -> Tensor:
        """The prediction without the adapters."""
        model, strength = self.model, self.network.multiplier
        self.model = self.base
        self.network.set_multiplier(0.0)
        try:
            return self.call_unet(noisy, conditioning)
        finally:
            self.model = model
            self.network.set_multiplier(strength)

    def after_step(self) -> None:
        step = self.state.step
        if step % self.cfg.logging.log_every_n_steps == 0 or self.monitor.must_stop:
            self.progress.write()
        if self.validation.is_due_at_step(step):
            self.validate()
        if self.evaluation.is_due_at_step(step):
            self.evaluate()
        self.files.after_step(self.state, now=self.stops.poll() > Request.NOTHING)
        if not self.stops.quits and (moment := self.previews.schedule.at_step(step)):
            self.draw(moment)

    @timed
    def draw(self, moment: Moment, *, save: bool = True) -> None:
        """Pictures by the adapters as they are; what is asked of the run meanwhile is done after it.

        save: there is something to save that a stop would lose
        """
        self.progress.write()
        eager = compiling.uncompiled(self.base)
        with self.as_used(), self.optimization.as_saved(), eager:
            pictures = self.previews.draw(moment)
        for each in pictures:
            self.reporter.add_picture(each.step, each.number, each.prompt, each.seed, each.path)
        self.progress.bar.unpause()  # it tells the time that steps take
        if self.stops.poll() > Request.NOTHING and save:
            self.files.after_step(self.state, now=True)

    @timed
    def validate(self) -> None:
        """The loss on the pictures kept for that, shared among the ranks."""
        with self.as_used(), self.optimization.as_saved():
            values = self.validation.run(self.process_batch, self.accelerator)
        self.trackers.log(self.state.step, values)
        logger.info("step %d: %s", self.state.step, validation.describe(values))

    @timed
    def evaluate(self) -> None:
        """What the adapters change, beside the base, for trained and held-out pictures and for prompts."""
        step, channels = self.state.step, self.latents_strategy.channels
        if self.evaluation.is_done(step):
            return
        shape = self.drift.shape(channels, self.latents_strategy.downscale)
        with self.as_used(), self.optimization.as_saved():
            losses = self.evaluation.run(self.process_batch, self.accelerator, step)
            moved = self.drift.run(self.predict_caption, shape, self.accelerator)
        if losses or moved:
            self.trackers.log(step, losses | moved)
        told = [*evaluation.describe(losses), *drift.describe(moved)]
        log_lines(logger, [f"step {step}: {line}" for line in told])

    def predict_caption(self, noisy: NoisyLatents, caption: str, strength: float) -> Tensor:
        """The model's prediction for one caption, the adapters at a strength."""
        if self.network.multiplier != strength:
            self.network.set_multiplier(strength)
        outputs = [self.texts.get(caption)] * len(noisy.sigma)
        conditioning = self.text_strategy.collate(outputs).to(self.accelerator.device)
        return self.call_unet(noisy, conditioning)

    @contextlib.contextmanager
    def as_used(self) -> Iterator[None]:
        """Meanwhile the model is as one uses it: no dropout, no extra noise, no wrapper that syncs."""
        model, noising = self.model, self.noising
        self.model = self.base
        self.noising = Noising(noising.sampling, NoiseSettings())
        self.network.set_training(False)
        try:
            yield
        finally:
            self.model, self.noising = model, noising
            self.network.set_training(True)

    @timed
    def finish(self) -> str:
        """The final export; returns the run's last words: its file, or how to go on; which one to keep."""
        if self.evaluation.has_interval and self.state.step >= self.plan.total_steps:
            self.evaluate()
        end = self.files.finish(self.state, self.plan.total_steps)
        steps = [each.step for each in self.evaluation.history]
        advice = self.evaluation.best(self.files.files_after(steps, self.plan))
        self.accelerator.end_training()
        return "\n".join([end, *advice])


def main() -> int:
    """Explain: a model family's own entry trains; this file is what they share."""
    print("train_network.py holds the trainer that model families share; run a family's entry:")
    for entry in sorted(Path(__file__).parent.glob("*_train_network.py")):
        print(f"  accelerate launch {entry.name} --config_file A.toml --dataset_config B.toml")
    return EXIT_USER_ERROR


if __name__ == "__main__":
    run_main(main)
