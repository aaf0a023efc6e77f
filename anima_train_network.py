"""Train a LoRA or LoKr on Anima.

accelerate launch anima_train_network.py --config_file train_args.toml --dataset_config dataset.toml
"""

from __future__ import annotations

from library.system import stop_signals

if __name__ == "__main__":  # before the imports that take seconds
    stop_signals.listen(stop_signals.while_importing)

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from library.anima_backend.modelling.dit import MIN_CONTEXT, Anima
from library.anima_doctor import report as doctor
from library.anima_doctor.run_memory import RunMemory, largest_batch, longest_tokens
from library.anima_runtime import (
    attention_choice,
    model_loading,
    padding_choice,
    start_notes,
    tokenizer_loading,
)
from library.anima_runtime.command_line import ADAPTERS, load_run
from library.anima_runtime.config_adapter import AnimaConfig, run_notes
from library.anima_runtime.empty_model import empty_model
from library.anima_runtime.family import ANIMA_FILES
from library.anima_runtime.fused_choice import choose_fused
from library.anima_runtime.metadata_entries import hash_entries, run_entries
from library.anima_runtime.model_facts import ModelFacts, ModelFiles, dtype_of_vae, inspect_models
from library.anima_runtime.text_contexts import (
    TextContexts,
    adapts_text,
    prompt_context,
    put_away,
)
from library.anima_runtime.tokenizer_assets import TokenizerFolders
from library.caching.text_windows import TextWindows
from library.data.data_types import TextOutputs
from library.data.dataset_config import DatasetGroupConfig
from library.device_utils import LoadedOnUse
from library.errors import ConfigError, Problem
from library.memory.planning import Count
from library.saving.metadata import FileHashes
from library.saving.snapshot import Snapshot, content_hash
from library.settings.run_config import TrainConfig
from library.strategy_anima import (
    AnimaConditioning,
    AnimaContext,
    AnimaLatentsCachingStrategy,
    AnimaTextEncoderOutputsCachingStrategy,
    AnimaTextEncodingStrategy,
    AnimaTokenizeStrategy,
    predict_velocity,
)
from library.system.program import run_main
from library.training.flow_matching import NoisyLatents
from library.utils import log_lines, setup_logging
from networks.file_contents import FamilyFiles
from networks.network import AdapterNetwork
from train_network import NetworkTrainer

logger = logging.getLogger(__name__)

class AnimaNetworkTrainer(NetworkTrainer):
    """The hooks that know Anima. One large model is in memory at a time, unless it is needed."""

    entry = ADAPTERS
    family_files: FamilyFiles | None = ANIMA_FILES
    snapshot_schema = "anima_resume_snapshot/v2"
    pixels_per_token = 16 * 16

    # check
    model_facts: ModelFacts
    # prepare_data
    hashes: FileHashes
    # check_attention
    fused: bool
    padding: str
    # prepare_strategies
    tokenizer_folders: TokenizerFolders
    tokenize_strategy: AnimaTokenizeStrategy
    text_strategy: AnimaTextEncodingStrategy

    def __init__(self, cfg: TrainConfig, datasets: DatasetGroupConfig, anima: AnimaConfig) -> None:
        super().__init__(cfg, datasets)
        self.anima = anima
        self.model_files = ModelFiles.of(cfg, anima)

    def inspect_models(self) -> tuple[ModelFacts | None, list[Problem]]:
        found = inspect_models(self.cfg, self.anima)
        return found.facts, [problem for error in found.failures for problem in error.problems]

    def check(self, device: torch.device | str | None = None) -> None:
        super().check(device)
        if problems := start_notes.rate_problems(self.cfg, self.outline):
            raise ConfigError(problems)

    @property
    def start(self) -> start_notes.Start:
        assert isinstance(self.outline, AdapterNetwork), "else nothing is told of adapters"
        return start_notes.Start(self.cfg, self.anima, self.outline)

    def warnings(self) -> list[str]:
        return [*super().warnings(), *start_notes.rate_notes(self.start)]

    def warnings_of_length(self) -> list[str]:
        arguments = self.cfg, self.anima, self.cfg.explicit, self.datasets
        known = run_notes(*arguments)
        return [note for note in run_notes(*arguments, self.plan) if note not in known]

    def differences(self) -> list[str]:
        return start_notes.differences(self.start)

    def empty_model(self) -> Anima:
        return empty_model(self.model_facts.params, self.trained_text_encoder)

    @property
    def trained_text_encoder(self) -> str | None:
        """The file or folder of the text encoder, if adapters of it train."""
        return self.model_files.qwen if self.cfg.network.text_encoder_rate else None

    def option_groups(self) -> list[Any]:
        return [*super().option_groups(), self.anima]

    def network_kwargs(self) -> dict[str, Any]:
        return {**super().network_kwargs(), **self.anima.network_kwargs()}

    def choose_attention(self) -> str:
        """And how texts are padded, which says what attention to them there is."""
        is_main, state = self.accelerator.is_main_process, self.resumption.state
        saved, device = state.snapshot["soft"] if state else None, self.accelerator.device
        self.fused = choose_fused(self.anima, saved, device, self.weight_dtype, is_main=is_main)
        place = self.place_of_attention()
        kernel, self.padding = attention_choice.choose(self.anima, saved, place, is_main=is_main)
        return kernel

    def place_of_attention(self) -> attention_choice.Place:
        batch, images = largest_batch(self.catalogue), self.catalogue.images
        letters = [len(image.caption or "") + len(image.sentences or "") for image in images]
        rows = padding_choice.usual_rows(letters, batch[0], MIN_CONTEXT)
        sizes = attention_choice.sizes_of(self.model_facts.params, batch, MIN_CONTEXT, rows)
        device = self.accelerator.device
        needs_rows = padding_choice.why_rows(self.cfg.precision, self.catalogue, device)
        return attention_choice.Place(sizes, self.weight_dtype, device, needs_rows, self.fused)

    def load_target_model(self) -> Anima:
        logger.info("loading the DiT from %s", self.model_files.transformer)
        if self.weight_dtype == torch.float32:
            size = 4 * model_loading.parameter_count(self.model_facts.params) / 1e9
            logger.info("mixed_precision = no keeps the base in float32: %.1f GB", size)
        # weights that are swapped or stored otherwise never lie on the device all at once
        waits = self.memory_modes.blocks_to_swap or self.precision.stored_form
        model = model_loading.load_transformer(
            self.model_files.transformer,
            device="cpu" if waits else self.accelerator.device,
            dtype=self.loaded_dtype,
            llm_adapter_path=self.model_files.llm_adapter,
            disable_mmap=self.cfg.cache.disable_mmap_load_safetensors,
            # what --base_weights are merged into has to be whole
            stored=None if self.cfg.network.base_weights else self.precision,
        )
        model.set_attention_backend(self.attention)
        model.use_one_kernel(self.fused)
        model.folds_text = self.padding == padding_choice.FOLD
        if self.trained_text_encoder:
            model.hold_text_encoder(self.qwen_on(self.accelerator.device).model)
        return model

    @property
    def loaded_dtype(self) -> torch.dtype:
        """Of the DiT as it is loaded."""
        return self.weight_dtype

    def vae_on(self, device: torch.device, dtype: torch.dtype) -> LoadedOnUse:
        return self.encoder(model_loading.load_vae, self.model_files.vae, device, dtype)

    def qwen_on(self, device: torch.device) -> LoadedOnUse:
        load = model_loading.load_qwen
        return self.encoder(load, self.model_files.qwen, device, self.weight_dtype)

    def encoder(
        self, load: Callable[..., nn.Module], path: str, device: torch.device, dtype: torch.dtype
    ) -> LoadedOnUse:
        def loaded() -> nn.Module:
            logger.info("loading %s", path)
            mmap_off = self.cfg.cache.disable_mmap_load_safetensors
            return load(path, device=device, dtype=dtype, disable_mmap=mmap_off)

        return LoadedOnUse(loaded, device)

    @property
    def vae_dtype(self) -> torch.dtype:
        return dtype_of_vae(self.cfg)

    def prepare_strategies(self) -> None:
        """Which folders the tokenizers are in too."""
        self.tokenizer_folders = tokenizer_loading.folders_of(self.anima, self.model_files)
        super().prepare_strategies()

    def get_tokenize_strategy(self) -> AnimaTokenizeStrategy:
        anima, folders, facts = self.anima, self.tokenizer_folders, self.model_facts
        with self.accelerator.local_main_process_first():
            tokenizer_loading.fetch_missing(anima, folders, facts)
        qwen, t5 = tokenizer_loading.load_both(folders, facts)
        return AnimaTokenizeStrategy(
            qwen, t5, qwen_max_length=anima.qwen_max_length, t5_max_length=anima.t5_max_length,
            weighs_words=self.cfg.data.weighted_captions,
        )  # fmt: skip

    def get_text_encoding_strategy(
        self, device: torch.device | None = None
    ) -> AnimaTextEncodingStrategy:
        place, trains = device or self.accelerator.device, self.trained_text_encoder
        return AnimaTextEncodingStrategy(
            self.tokenize_strategy,
            None if trains else self.qwen_on(place),
            empty_caption=self.anima.empty_caption,
        )

    def get_latents_caching_strategy(self) -> AnimaLatentsCachingStrategy:
        identity = "in memory"
        if self.cfg.cache.cache_latents_to_disk:
            identity = f"{self.hash_model(self.model_files.vae)} {self.vae_dtype}"
        return AnimaLatentsCachingStrategy(
            self.vae_on(self.accelerator.device, self.vae_dtype), identity
        )

    def get_decoding_strategy(self, device: torch.device) -> AnimaLatentsCachingStrategy:
        """In float32 on the CPU, where 16 bits save no time."""
        dtype = torch.float32 if device.type == "cpu" else self.vae_dtype
        return AnimaLatentsCachingStrategy(self.vae_on(device, dtype), "for drawing")

    def get_text_encoder_outputs_caching_strategy(self) -> AnimaTextEncoderOutputsCachingStrategy:
        identity = "in memory"
        if self.cfg.cache.cache_text_encoder_outputs_to_disk:
            files = (self.model_files.qwen, self.tokenizer_folders.qwen, self.tokenizer_folders.t5)
            reading = (*self.tokenize_strategy.reading, self.anima.empty_caption, self.weight_dtype)
            parts = (*(self.hash_model(file) for file in files), *reading)
            identity = " ".join(map(str, parts))
        adapter = self.model_facts.params.llm_adapter
        return AnimaTextEncoderOutputsCachingStrategy(
            self.tokenize_strategy,
            self.text_strategy,
            identity,
            sizes=(adapter.source_dim, adapter.vocab),
            dtype=self.weight_dtype,
        )

    def memory_counter(self) -> Count:
        texts = self.run_texts().of_epoch(0)
        memory = RunMemory(
            self.acting, replace(self.anima, text_padding=self.padding),
            self.model_facts.params, self.outline,
            tuple(self.network_kwargs().items()), largest_batch(self.catalogue),
            longest_tokens(texts, self.token_counts),
        )  # fmt: skip
        return memory.total

    def token_counts(self, caption: str) -> tuple[int, int]:
        """Qwen's and T5's."""
        tokens = self.tokenize_strategy.tokenize(caption)
        return len(tokens.qwen_ids), len(tokens.t5_ids)

    def finish_texts(self) -> None:
        """Text contexts, where the LLM adapter would make the same in every step; it then waits in RAM."""
        if adapts_text(self.network.paths()):
            return
        assert isinstance(self.base, Anima)
        contexts = TextContexts(self.base, self.token_counts)
        if not isinstance(self.texts, TextWindows):
            self.texts.change = contexts.make_now
            return
        if made := self.texts.hold_changed(contexts):
            put_away(self.base)
            logger.info("%d text contexts are made; the LLM adapter, not trained, is in RAM", made)

    def call_unet(
        self, noisy: NoisyLatents, conditioning: AnimaConditioning | AnimaContext
    ) -> Tensor:
        return predict_velocity(self.model, noisy, conditioning)

    def prompt_context(self, model: nn.Module, outputs: TextOutputs) -> Tensor:
        assert isinstance(model, Anima)
        return prompt_context(model, outputs)

    def prompt_contexts_train(self) -> bool:
        return adapts_text(self.network.paths())

    def model_file_names(self) -> tuple[str, str, str]:
        files = self.model_files
        return Path(files.transformer).name, Path(files.qwen).name, Path(files.vae).name

    def update_metadata(self, entries: dict[str, str]) -> None:
        """Say that this is Anima, which files it was trained on, and how text was read."""
        entries |= run_entries(
            self.model_files, self.anima, self.attention, self.padding, fused=self.fused
        )

    def late_metadata(self) -> dict[str, str]:
        return hash_entries(self.model_files, self.hashes)

    def hash_model(self, path: str | Path) -> str:
        """Of a model's content; remembered beside the pictures where a cache lies there."""
        cache = self.cfg.cache
        on_disk = cache.cache_latents_to_disk or cache.cache_text_encoder_outputs_to_disk
        home = self.catalogue.images[0].path.parent if on_disk else None
        return self.contents.hash_of_model(Path(path), home)

    @property
    def strict_resume(self) -> bool:
        return self.anima.anima_resume_snapshot_strict

    def snapshot(self) -> Snapshot:
        """The reading of text and the base models' contents too, wherever their files are."""
        anima, made, files = self.anima, super().snapshot(), self.hashed_files()
        contents = {
            f"base.{role}": self.hashes.get(role) or content_hash(path)
            for role, path in files.items()
        }
        made.critical.update(
            qwen3_max_token_length=anima.qwen_max_length,
            t5_max_token_length=anima.t5_max_length,
            empty_caption=anima.empty_caption,
            modulation_storage="int8" if self.precision.stored_form else None,
            **contents,
        )
        places = {f"{role}_path": path for role, path in files.items()}
        own = {"attention": self.attention, "fused_kernels": self.fused}
        made.soft.update(text_padding=self.padding, **own, **places)
        return made

    def hashed_files(self) -> dict[str, str]:
        """The base models, by role."""
        adapter = self.model_files.llm_adapter
        return self.model_files.by_role() | ({"llm_adapter": adapter} if adapter else {})

    def prepare_data(self) -> None:
        """The contents of the base models too, which are read when they are first asked for."""
        super().prepare_data()
        is_main = self.accelerator.is_main_process
        self.hashes = FileHashes(self.hashed_files() if is_main else {}, self.hash_model)

    def cache_inputs(self) -> None:
        """Base models are hashed for the metadata meanwhile."""
        self.hashes.start()
        super().cache_inputs()
        self.tokenize_strategy.warn_of_cut_captions()


def make_trainer(
    argv: Sequence[str], trainer: type[AnimaNetworkTrainer] = AnimaNetworkTrainer
) -> AnimaNetworkTrainer:
    """The trainer for a command line, not yet started; messages are set up and notes are given."""
    train, datasets, anima, notes = load_run(argv, trainer.entry)
    log = train.logging
    setup_logging(log.console_log_level, log.console_log_file, log.console_log_simple)
    log_lines(logger, notes, logging.WARNING)
    return trainer(train, datasets, anima)


def main(trainer: type[AnimaNetworkTrainer] = AnimaNetworkTrainer) -> int:
    argv = sys.argv[1:]
    if doctor.is_asked(argv):
        text, code = doctor.report(argv, load_run, trainer)
        doctor.show(text)
        return code
    make_trainer(argv, trainer).train()
    return 0


if __name__ == "__main__":
    run_main(stop_signals.heeding(main))
