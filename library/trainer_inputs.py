"""The stages of a run that make what a step reads: how pictures and texts are encoded, and their caches."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from library import train_util
from library.caching.latents_cache import LatentsCache, Storing, cache_latents
from library.caching.text_windows import RunTexts, TextNow, TextWindows
from library.data.ahead import Ahead
from library.data.data_types import Batch, Drawn
from library.data.datasets import TrainDataset
from library.previews.prompt_texts import PromptFile, PromptTexts
from library.reporting.stage_times import timed
from library.trainer_checks import CheckStages

if TYPE_CHECKING:
    from library.data.data_types import TextOutputs
    from library.strategy_base import (
        LatentsCachingStrategy,
        TextEncodingStrategy,
        TokenizeStrategy,
    )

logger = logging.getLogger(__name__)


class InputStages(CheckStages):
    """What pictures and texts are for a step. Each stage sets what stands under its name."""

    # prepare_strategies
    tokenize_strategy: TokenizeStrategy
    latents_strategy: LatentsCachingStrategy
    text_strategy: TextEncodingStrategy
    # cache_inputs
    prompts: PromptTexts
    texts: TextWindows | TextNow
    dataset: TrainDataset
    ahead: Ahead

    @timed
    def prepare_strategies(self) -> None:
        """Establish how captions and pictures are encoded; models are loaded only when used."""
        self.tokenize_strategy = self.get_tokenize_strategy()
        self.latents_strategy = self.get_latents_caching_strategy()
        self.text_strategy = self.get_text_encoding_strategy()

    @timed
    def cache_inputs(self) -> None:
        """Establish latents and text outputs, cached as asked, their encoders put away."""
        cache = self.cfg.cache
        latents = self.cache_latents() if cache.cache_latents else None
        self.prompts = self.read_prompts()  # while the text encoder is there
        texts = self.cache_text() if cache.cache_text_encoder_outputs else None
        self.texts = texts or TextNow(self.tokenize_strategy, self.text_strategy)
        self.dataset = self.make_dataset(latents=latents, texts=texts)
        self.validation.use_latents(latents)
        self.evaluation.use_latents(latents)
        encoders = {"VAE": cache.cache_latents, "text encoder": cache.cache_text_encoder_outputs}
        for what in (name for name, is_cached in encoders.items() if not is_cached):
            logger.info("The %s stays in memory: its outputs are not cached.", what)
        self.ahead = self.make_ahead()

    def make_ahead(self) -> Ahead:
        """What is prepared on the loader's thread, by the run's own noising whatever stands in for it."""
        noising, strategy = self.noising, self.latents_strategy

        def draw(batch: Batch) -> Drawn:
            if batch.latents is not None:
                shape = batch.latents.shape
            else:
                assert batch.pixels is not None, "a batch has one of the two"
                count, _, height, width = batch.pixels.shape
                shape = torch.Size(strategy.latents_shape(width, height, count))
            return noising.draw_ahead(shape, batch.seeds, batch.sigma_offsets)

        return Ahead(self.accelerator.device, draw, self.text_strategy.collate)

    def make_dataset(self, **caches: Any) -> TrainDataset:
        return TrainDataset(
            self.catalogue,
            seed=self.seed,
            max_train_steps=self.plan.total_steps,
            steps_per_epoch=self.plan.steps_per_epoch,
            prior_loss_weight=self.cfg.loss.regularisation_weight,
            **caches,
        )

    def cache_latents(self) -> LatentsCache:
        """Encode every picture once; the VAE is freed when this returns."""
        options, to_disk = self.cfg.cache, self.cfg.cache.cache_latents_to_disk
        how = Storing(to_disk, options.vae_batch_size, options.skip_cache_check)
        pictures = self.catalogue.everything()
        share = train_util.share_of_caching(self.accelerator, to_disk, pictures)
        return cache_latents(pictures, self.latents_strategy, how, share, self.contents)

    def cache_text(self) -> TextWindows:
        """The run's texts, shuffled and dropped ones included; those needed first are encoded."""
        strategy, options = self.get_text_encoder_outputs_caching_strategy(), self.cfg.cache
        share = train_util.share_of_caching(
            self.accelerator, options.cache_text_encoder_outputs_to_disk, self.catalogue.everything()
        )
        windows = TextWindows.make(self.run_texts(), strategy, options, self.contents, share)
        windows.prepare_epoch(self.state.epoch)
        return windows

    def read_prompts(self) -> PromptTexts:
        """The prompts to draw while training, their text encoded."""
        options = self.cfg.preview
        prompts = PromptTexts(
            PromptFile(options.sample_prompts, options.sample_sampler), self.encode_late
        )
        prompts.use(prompts.file.prompts, partial(self.encode_prompts, self.text_strategy))
        return prompts

    def encode_late(self, texts: Iterable[str]) -> dict[str, TextOutputs]:
        """By an encoder that is there for this moment, on the CPU, unless training keeps its own."""
        if not self.cfg.cache.cache_text_encoder_outputs:
            return self.encode_prompts(self.text_strategy, texts)
        strategy = self.get_text_encoding_strategy(torch.device("cpu"))
        return self.encode_prompts(strategy, texts)

    def encode_prompts(
        self, strategy: TextEncodingStrategy, texts: Iterable[str]
    ) -> dict[str, TextOutputs]:
        tokens = {text: self.tokenize_strategy.tokenize_prompt(text) for text in texts}
        return {text: strategy.encode_prompt(ids) for text, ids in tokens.items()}

    def run_texts(self) -> RunTexts:
        """Which texts the run uses when."""
        plan, always = self.plan, self.validation.captions()
        always |= self.evaluation.captions() | self.drift.captions() | self.prior.captions()
        return RunTexts(self.make_dataset(), self.sampler, plan.epochs, plan.last_batches, always)
