"""NetworkTrainer: the stages of a run and its loop, for any model family.

A family subclasses it and fills in the hooks (anima_train_network.py does). `train()` is the table of
contents. Names of the hooks are sd-scripts'; what they take and return is typed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from library import train_util
from library.caching.contents import Contents
from library.caching.latents_cache import LatentsCache, cache_latents
from library.caching.text_windows import RunTexts, TextNow, TextWindows
from library.data.batch_loader import BatchLoader
from library.data.bucket_sampler import BucketBatchSampler
from library.data.data_types import Batch, RunPosition, StepResult
from library.data.dataset_config import DatasetGroupConfig
from library.data.datasets import TrainDataset
from library.data.scan import scan
from library.device_utils import precision_dtype
from library.errors import EXIT_USER_ERROR, ConfigError, Problem
from library.saving import metadata
from library.saving.checkpoints import Checkpoints
from library.saving.output_checks import check_outputs
from library.saving.resumption import ResumableRun
from library.saving.stopping import Request, rescue
from library.settings.run_config import TrainConfig
from library.system.program import run_main
from library.trainer_hooks import FamilyHooks
from library.training import losses
from library.training.flow_matching import NoiseSettings, Noising, NoisyLatents
from library.training.optimization import OptimizedRun
from library.training.optimizers import describe_optimizer, optimizer_eval_mode
from library.utils import log_lines, position_seed
from library.watching import validation
from library.watching.monitor import Monitor
from library.watching.progress import RunProgress
from library.watching.trackers import create_trackers
from networks.loading import load_network_module, make_network, merge_base_weights, quiet

logger = logging.getLogger(__name__)


class NetworkTrainer(OptimizedRun, ResumableRun, FamilyHooks):
    """Trains adapters on a frozen model. Each stage sets what the later ones read."""

    is_main = True  # until the accelerator tells; a report goes on where there is none

    def __init__(self, cfg: TrainConfig, datasets: DatasetGroupConfig) -> None:
        self.cfg = cfg
        self.datasets = datasets
        self.state = RunPosition()
        self.contents = Contents()

    def train(self) -> None:
        """The whole run, from pictures on disk to the exported file."""
        with self.outputs_claimed():
            self.prepare()
            with self.stops, contextlib.closing(self.progress), rescue(self.files, self.state):
                self.run_epochs()
                last_words = self.finish()
        logger.info(last_words)  # of one process only: the others do not tell

    def prepare(self) -> None:
        """Everything before the first step, one large model in memory at a time."""
        self.prepare_process()
        self.check()
        log_lines(logger, self.warnings(), logging.WARNING)
        log_lines(logger, self.differences())
        self.prepare_data()
        self.check_optimization(self.outline)
        self.check_resume()
        self.cache_inputs()
        self.load_models()
        self.attach_network()
        self.prepare_optimization()
        self.start_logs()
        self.take_over()

    def assert_extra_args(self) -> list[Problem]:
        """What is wrong between flags, model files and the output folder, before any heavy work."""
        return check_outputs(self.cfg) if self.is_main else []  # one process makes and removes

    def prepare_process(self) -> None:
        """Establish the accelerator, the seed and the settings of the path."""
        train_util.prepare_torch(self.cfg)
        self.accelerator = train_util.prepare_accelerator(self.cfg)
        self.seed = train_util.choose_seed(self.open_state())
        self.noising = train_util.make_noising(self.cfg.flow)
        self.weight_dtype = precision_dtype(self.cfg.precision.mixed_precision)
        self.is_main = self.accelerator.is_main_process

    def check(self) -> None:
        """Establish that flags, model files and adapters fit together; all problems in one error."""
        net = self.cfg.network
        self.network_module = load_network_module(net.network_module)
        dims = net.network_dim, net.network_alpha, net.network_dropout
        problems = self.network_module.check_network_args(*dims, **self.network_kwargs())
        problems += self.assert_extra_args()
        if problems:
            raise ConfigError([*problems, *self.optimizer_problems()])
        with torch.device("meta"), quiet():
            model = self.empty_model()
            merge_base_weights(net, model)
            made = make_network(self.network_module, net, self.network_kwargs(), model)
        self.outline = made  # what will be attached, without memory

    def prepare_data(self) -> None:
        """Establish the catalogue of pictures, the order of batches and the length of the run."""
        self.catalogue = scan(self.datasets)
        self.sampler = BucketBatchSampler(
            self.catalogue,
            seed=self.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        accumulation = self.cfg.loop.gradient_accumulation_steps
        plan = train_util.StepPlan.make(len(self.sampler), accumulation, self.cfg)
        self.plan = self.begin_at(plan)
        self.checkpoints = Checkpoints(self.cfg.save, self.plan.epochs, self.cfg.resume)
        self.validation = validation.Validation(self.catalogue.validation(), self.cfg.validation)
        log_lines(logger, [*self.catalogue.notes, *self.warnings_of_length()], logging.WARNING)
        log_lines(logger, self.catalogue.describe())

    def cache_inputs(self) -> None:
        """Establish latents and text outputs, cached as asked, their encoders put away."""
        cache = self.cfg.cache
        self.prepare_strategies()
        latents = self.cache_latents() if cache.cache_latents else None
        texts = self.cache_text() if cache.cache_text_encoder_outputs else None
        self.texts = texts or TextNow(self.tokenize_strategy, self.text_strategy)
        self.dataset = self.make_dataset(latents=latents, texts=texts)
        self.validation.use_latents(latents)
        encoders = {"VAE": cache.cache_latents, "text encoder": cache.cache_text_encoder_outputs}
        for what in (name for name, is_cached in encoders.items() if not is_cached):
            logger.info("The %s stays in memory: its outputs are not cached.", what)

    def prepare_strategies(self) -> None:
        """Establish how captions and pictures are encoded; models are loaded only when used."""
        self.tokenize_strategy = self.get_tokenize_strategy()
        self.latents_strategy = self.get_latents_caching_strategy()
        self.text_strategy = self.get_text_encoding_strategy()

    def make_dataset(self, **caches: Any) -> TrainDataset:
        return TrainDataset(
            self.catalogue,
            seed=self.seed,
            max_train_steps=self.plan.total_steps,
            steps_per_epoch=self.plan.steps_per_epoch,
            prior_loss_weight=self.cfg.loss.prior_loss_weight,
            **caches,
        )

    def cache_latents(self) -> LatentsCache:
        """Encode every picture once; the VAE is freed when this returns."""
        options, to_disk = self.cfg.cache, self.cfg.cache.cache_latents_to_disk
        share = train_util.share_of_caching(self.accelerator, to_disk)
        return cache_latents(
            self.catalogue.everything(), self.latents_strategy, share=share, to_disk=to_disk,
            batch_size=options.vae_batch_size, skip_check=options.skip_cache_check,
            contents=self.contents,
        )  # fmt: skip

    def cache_text(self) -> TextWindows:
        """The run's texts, shuffled and dropped ones included; those needed first are encoded."""
        strategy, options = self.get_text_encoder_outputs_caching_strategy(), self.cfg.cache
        share = train_util.share_of_caching(
            self.accelerator, options.cache_text_encoder_outputs_to_disk
        )
        windows = TextWindows.make(self.run_texts(), strategy, options, self.contents, share)
        windows.prepare_epoch(self.state.epoch)
        return windows

    def run_texts(self) -> RunTexts:
        """Which texts the run uses when."""
        plan, always = self.plan, self.validation.captions()
        return RunTexts(self.make_dataset(), self.sampler, plan.epochs, plan.last_batches, always)

    def load_models(self) -> None:
        """Establish the frozen model on its device, --base_weights merged in."""
        self.model = self.load_target_model()
        merge_base_weights(self.cfg.network, self.model)

    def attach_network(self) -> None:
        """Establish the adapters inside the model, and gradient checkpointing around them."""
        torch.manual_seed(position_seed(self.seed, "adapters"))  # the same factors on every rank
        network = make_network(
            self.network_module, self.cfg.network, self.network_kwargs(), self.model
        )
        network.apply_to(None, self.model, apply_text_encoder=False, apply_unet=True)
        network.prepare_grad_etc(None, self.model)
        if self.cfg.precision.full_bf16:
            network.cast_trainables(torch.bfloat16)
        loop = self.cfg.loop
        offload = loop.cpu_offload_checkpointing or loop.unsloth_offload_checkpointing
        if loop.gradient_checkpointing or offload:
            self.model.enable_gradient_checkpointing(cpu_offload=offload)
        self.network = network
        log_lines(logger, network.summary())

    def start_logs(self) -> None:
        """Establish trackers and metadata, and say what is about to run."""
        cfg, plan = self.cfg, self.plan
        self.monitor = Monitor(cfg.monitor, self.optimizer, self.accelerator.device)
        optimizer = describe_optimizer(self.optimizer.optimizer, cfg.optimizer)
        processes = self.accelerator.num_processes
        facts = metadata.RunFacts(
            cfg, self.catalogue, plan, self.network, optimizer, self.seed, processes
        )
        entries = metadata.start_entries(facts)
        self.update_metadata(entries)
        entries |= self.resumed.run["metadata"] if self.resumed else {}
        self.metadata = metadata.RunMetadata(entries, cfg.save.no_metadata)
        self.trackers = create_trackers(
            cfg.logging if self.is_main else None,
            output_dir=cfg.save.output_dir,
            output_name=cfg.save.output_name,
            config=cfg.flat(),
        )
        log_lines(logger, [*plan.describe(cfg, self.accelerator), *self.trackers.describe()])
        self.progress = RunProgress(
            self.trackers, plan, self.is_main, self.monitor, start=self.state.step
        )

    def run_epochs(self) -> None:
        loader = train_util.make_loader(self.dataset, self.sampler, self.cfg.data)
        for epoch in range(self.state.epoch, self.plan.epochs):
            self.texts.prepare_epoch(epoch)
            self.state.begin_epoch(epoch)
            self.progress.start_epoch(epoch)
            self.network.on_epoch_start(None, self.model)
            self.train_epoch(loader)
            if self.stops.quits:
                break
            if self.validation.is_due_after_epoch(epoch + 1):
                self.validate()
            self.files.after_epoch(self.state)

    def train_epoch(self, loader: BatchLoader) -> None:
        """Every window of the epoch that is left, until the run's last step."""
        if self.is_over:
            return
        self.sampler.set_epoch(self.state.epoch, start_batch=self.state.batch_in_epoch)
        accumulation = self.cfg.loop.gradient_accumulation_steps
        with contextlib.closing(train_util.windows(loader, accumulation)) as windows:
            for window in windows:
                self.train_step(window)
                self.after_step()
                if self.is_over:
                    break

    @property
    def is_over(self) -> bool:
        return self.stops.quits or self.state.step >= self.plan.total_steps

    def train_step(self, window: list[Batch]) -> None:
        """One update from the micro-batches of a window."""
        last, loss, results = len(window) - 1, 0.0, []
        for micro_step, batch in enumerate(window):
            with self.sync_gradients(micro_step == last):
                train_util.seed_dropout(
                    self.seed, self.accelerator.process_index, self.state.step, micro_step
                )
                result = self.process_batch(batch.to(self.accelerator.device))
                self.accelerator.backward(result.loss / len(window))
            results.append(result)
            loss = loss + result.loss.detach() / len(window)  # stays on the device: reading stalls
        with self.files.unsettled():
            norm = self.update()
            limited = self.limit_norms()
            self.state.step += 1
            self.state.batch_in_epoch += len(window)
            self.state.samples_seen += sum(len(batch.keys) for batch in window)
        self.progress.add(
            self.state.step,
            {"loss/current": loss, "norm/grad": norm, **limited},
            self.rates.latest,
            results,
        )

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
            latents = self.encode_images_to_latents(batch.pixels)
        prediction, noisy = self.get_noise_pred_and_target(
            latents, self.get_conditioning(batch), batch.seeds, sigma
        )
        elements = losses.elementwise_loss(prediction, noisy.velocity, noisy.sigma, self.cfg.loss)
        per_sample = losses.reduce_to_samples(elements, batch.loss_mask)
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
        outputs = batch.texts or [self.texts.get(caption) for caption in batch.captions]
        return self.text_strategy.collate(outputs).to(self.accelerator.device)

    def get_noise_pred_and_target(
        self,
        latents: Tensor,
        conditioning: Any,
        seeds: tuple[int, ...],
        sigma: Tensor | None = None,
    ) -> tuple[Tensor, NoisyLatents]:
        """Draw sigma unless given, noise the latents, predict."""
        noisy = self.noising.draw(latents, seeds, sigma)
        return self.call_unet(noisy, conditioning), noisy

    def after_step(self) -> None:
        step = self.state.step
        if step % self.cfg.logging.log_every_n_steps == 0 or self.monitor.must_stop:
            self.progress.write()
        if self.validation.is_due_at_step(step):
            self.validate()
        self.files.after_step(self.state, now=self.stops.poll() > Request.NOTHING)

    def validate(self) -> None:
        """The loss on the pictures kept for that, shared among the ranks."""
        with self.as_used(), optimizer_eval_mode(self.optimizer):
            values = self.validation.run(self.process_batch, self.accelerator)
        self.trackers.log(self.state.step, values)
        logger.info("step %d: %s", self.state.step, validation.describe(values))

    @contextlib.contextmanager
    def as_used(self) -> Iterator[None]:
        """Meanwhile the model is as one uses it: no dropout, no extra noise, no wrapper that syncs."""
        model, noising = self.model, self.noising
        self.model = self.accelerator.unwrap_model(model)
        self.noising = Noising(noising.sampling, NoiseSettings())
        self.network.set_training(False)
        try:
            yield
        finally:
            self.model, self.noising = model, noising
            self.network.set_training(True)

    def finish(self) -> str:
        """The final export; returns the run's last words: its file, or how to go on."""
        end = self.files.finish(self.state, self.plan.total_steps)
        self.accelerator.end_training()
        return end


def main() -> int:
    """Explain: a model family's own entry trains; this file is what they share."""
    print("train_network.py holds the trainer that model families share; run a family's entry:")
    for entry in sorted(Path(__file__).parent.glob("*_train_network.py")):
        print(f"  accelerate launch {entry.name} --config_file A.toml --dataset_config B.toml")
    return EXIT_USER_ERROR


if __name__ == "__main__":
    run_main(main)
