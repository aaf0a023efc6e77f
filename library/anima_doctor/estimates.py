"""Disk space and memory that a run on Anima will need: real sizes, and activations counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from library.anima_backend.modelling.params import DiTParams
from library.anima_doctor import machine
from library.anima_doctor import page as run_report
from library.anima_doctor.page import Page, SpaceNeed, size_text
from library.anima_doctor.run_memory import (
    CAPTIONS_TOKENIZED,
    RunMemory,
    largest_batch,
    longest_tokens,
    qwen_parameters,
)
from library.anima_runtime.config_adapter import AnimaConfig
from library.anima_runtime.model_facts import ModelFiles
from library.caching import latents_files
from library.caching.text_cache import text_path
from library.data.captions import sentence_variants, variants
from library.memory.planning import choose_modes
from library.saving.checkpoints import files_of_run
from library.saving.exporting import bytes_of_save
from library.strategy_anima import AnimaTokenizeStrategy
from networks.trained import Trained

if TYPE_CHECKING:
    from library.data.data_types import ImageInfo
    from train_network import NetworkTrainer

REQUESTS_COUNTED = 60_000  # samples whose captions are made; what lies beyond is extrapolated
LONGEST_SHOWN = 3
PINNED = "block inputs and swapped weights"
HEADER_BYTES = 300  # of a cache file, about


@dataclass(frozen=True)
class CaptionFacts:
    """The different captions that a run will use.

    is_exact: all were made and counted; else `count` is extrapolated
    held:     how many are held at once: --text_cache_variants, or those of one epoch
    size:     bytes of the encoder outputs held at once; new: to be written when they go to disk
    folder:   where one of them would be stored
    longest:  the most tokens of Qwen, and of T5, in one of the first epoch
    """

    count: int
    is_exact: bool
    held: int
    size: float
    new: float
    folder: Path
    longest: tuple[int, int]

    @property
    def how(self) -> str:
        at_once = f", up to {self.held} at once" if self.held < self.count else ""
        return f"{'' if self.is_exact else 'about '}{self.count} different captions{at_once}"


@dataclass
class Estimates:
    """What a run will need.

    trainer:    up to its catalogue and its plan; params: of its DiT
    tokenizers: both, by kind (qwen, t5)
    """

    trainer: NetworkTrainer
    anima: AnimaConfig
    params: DiTParams
    network: Trained
    tokenizers: Mapping[str, Any]

    def describe(self, page: Page) -> None:
        """Captions, memory and disk. Raises DatasetError when a disk has not enough room."""
        page.heading("Captions", "标注文本")
        page.table(self.caption_rows())
        page.heading("Memory, expected", "预计内存")
        self.describe_memory(page)
        page.heading("Disk space", "磁盘空间")
        run_report.disk(page, self.disk_needs())

    @property
    def images(self) -> Sequence[ImageInfo]:
        return self.trainer.catalogue.images

    @cached_property
    def tokenize(self) -> AnimaTokenizeStrategy:
        """Captions to ids, uncut."""
        return AnimaTokenizeStrategy(self.tokenizers["qwen"], self.tokenizers["t5"])

    def lengths(self, caption: str) -> tuple[int, int]:
        """(Qwen tokens, T5 tokens) that are kept of a caption."""
        tokens, anima = self.tokenize.tokenize(caption), self.anima
        qwen, t5 = len(tokens.qwen_ids), len(tokens.t5_ids)
        return min(qwen, anima.qwen_max_length or qwen), min(t5, anima.t5_max_length or t5)

    def caption_rows(self) -> Iterator[tuple[str, str]]:
        """How many the run will use, the limits, and the longest files."""
        anima = self.anima
        yield "in the whole run", self.captions.how
        limits = anima.qwen_max_length or "none", anima.t5_max_length or "none"
        yield "token limits", "Qwen {}, T5 {}".format(*limits)
        written = [
            (text, image.path.name)
            for image in self.images
            for text in (
                *variants(image.caption or "", image.subset),
                *sentence_variants(image.sentences or "", image.subset),
            )
        ]
        written.sort(key=lambda pair: len(pair[0]), reverse=True)
        counted = []
        for text, name in written[:CAPTIONS_TOKENIZED]:
            tokens = self.tokenize.tokenize(text)
            counted.append((len(tokens.t5_ids), len(tokens.qwen_ids), name))
        for t5, qwen, name in sorted(counted, reverse=True)[:LONGEST_SHOWN]:
            yield "longest", f"Qwen {qwen}, T5 {t5} tokens: {name}"

    @cached_property
    def captions(self) -> CaptionFacts:
        """Counted over as many epochs as time allows; sizes from a sample, evenly spaced."""
        trainer, epochs = self.trainer, self.trainer.plan.epochs
        samples = max(1, trainer.catalogue.num_samples)
        counted = max(min(2, epochs), min(epochs, REQUESTS_COUNTED // samples))
        texts = trainer.run_texts()
        found = texts.of_epoch(0)
        of_first, longest = len(found), longest_tokens(found, self.lengths)
        for epoch in range(1, counted):
            found |= texts.of_epoch(epoch)
        count = len(found)
        if counted < epochs:  # the captions of an epoch that the first one has not
            count += (count - of_first) * (epochs - counted) // (counted - 1)
        held = min(count, max(of_first, trainer.cfg.cache.text_cache_variants))
        first_window = list(found.items())[:held]
        spaced = first_window[:: max(1, len(first_window) // CAPTIONS_TOKENIZED)]
        width = self.params.llm_adapter.source_dim * trainer.weight_dtype.itemsize
        sizes, new = 0, 0
        for caption, folder in spaced:
            qwen, t5 = self.lengths(caption)
            size = qwen * width + 2 * 8 * t5 + HEADER_BYTES
            sizes += size
            new += size * (not text_path(caption, folder).exists())
        scale = held / len(spaced)
        if held < count:  # the windows after the first have a file that goes with the process
            new += sizes
        folder = spaced[0][1]
        return CaptionFacts(
            count, counted == epochs, held, sizes * scale, new * scale, folder, longest
        )

    def latents_bytes(self, *, only_new: bool) -> int:
        """Of the latents of all pictures and flips, or of those without a cache file."""
        strategy = self.trainer.get_latents_caching_strategy()
        total = 0
        for job in latents_files.make_jobs(self.trainer.catalogue.everything(), strategy, None):
            width, height = job.image.plan.bucket
            cells = (width // strategy.downscale) * (height // strategy.downscale)
            size = strategy.channels * cells * torch.float32.itemsize + HEADER_BYTES
            total += sum(
                size for file in job.files.values() if not only_new or not file.path.exists()
            )
        return total

    def disk_needs(self) -> list[SpaceNeed]:
        """Caches that are missing on disk, adapter files and states."""
        cfg = self.trainer.cfg
        needs = []
        if cfg.cache.cache_latents_to_disk:
            size = self.latents_bytes(only_new=True)
            note = f"those of {size_text(self.latents_bytes(only_new=False))} without a file"
            needs.append(SpaceNeed("latents", self.images[0].path.parent, size, note))
        if cfg.cache.cache_text_encoder_outputs_to_disk:
            facts = self.captions
            note = f"{facts.how}, without files so far; estimated from a sample"
            needs.append(SpaceNeed("text outputs", facts.folder, facts.new, note))
        trainer = self.trainer
        folder = trainer.checkpoints.folder
        averaged = bool(cfg.average.ema_decay)
        files = bytes_of_save(cfg.save, self.network) * (1 + averaged)
        kinds = (
            ("model files" if cfg.whole else "adapter files", files, "each with its average" if averaged else "each"),
            ("states", self.state_bytes(), "each"),
        )
        counts = files_of_run(trainer.checkpoints, trainer.plan, trainer.state.step)
        for (what, each, words), kept in zip(kinds, counts):
            note = f"{size_text(each)} {words}, {kept.most} at once, {kept.at_end} at the end"
            needs.append(SpaceNeed(what, folder, each * kept.most, note))
        return [need for need in needs if need.size or need.what != "states"]

    def state_bytes(self) -> float:
        """Of one state: the adapters as they are trained, and their optimizer."""
        trained = sum(parameter.numel() for parameter in self.network.get_trainable_params())
        state, _ = run_report.optimizer_state(self.trainer.cfg, self.network)
        averaged = trained * torch.float32.itemsize if self.trainer.cfg.average.ema_decay else 0
        return trained * self.memory.trained_dtype.itemsize + state + averaged

    @cached_property
    def memory(self) -> RunMemory:
        trainer, batch = self.trainer, largest_batch(self.trainer.catalogue)
        # as the family's trainer has chosen, if the stage that chooses ended well
        padding = getattr(trainer, "padding", self.anima.text_padding)
        return RunMemory(
            trainer.cfg, replace(self.anima, text_padding=padding), self.params, self.network,
            tuple(trainer.network_kwargs().items()), batch, self.captions.longest,
        )  # fmt: skip

    def describe_memory(self, page: Page) -> None:
        loop = self.trainer.cfg.loop
        if loop.vram_target:
            device, blocks = self.trainer.accelerator.device, self.params.num_blocks
            choice = choose_modes(self.trainer.cfg, device, blocks, self.memory.total)
            loop = choice.loop
            for line in choice.describe():
                page.line(f"  {line}")
        rows = self.memory.rows(loop)
        total = sum(size for _, size, _ in rows)
        rows.append(("in all", total, "without CUDA's own needs and fragmentation"))
        page.table((what, size_text(size), how) for what, size, how in rows)
        cache = self.trainer.cfg.cache
        host: dict[str, float] = {}
        if loop.offloads or loop.blocks_to_swap:
            host[PINNED] = self.memory.in_host(loop)
        if cache.cache_latents and not cache.cache_latents_to_disk:
            host["latents"] = self.latents_bytes(only_new=False)
        if cache.cache_text_encoder_outputs:
            if not cache.cache_text_encoder_outputs_to_disk:
                host["text outputs"] = self.captions.size
            if self.captions.held < self.captions.count:
                files = ModelFiles.of(self.trainer.cfg, self.anima)
                waiting = qwen_parameters(files.qwen)
                host["Qwen, waiting"] = waiting * self.trainer.weight_dtype.itemsize
        kept = ", ".join(f"{what} {size_text(size)}" for what, size in host.items() if size)
        page.line(f"  in the host's memory as well: {kept or 'no caches'}")
        if warning := machine.pinned_here(host.get(PINNED, 0)):
            page.line(f"  {warning}")
        if torch.cuda.is_available():
            free, _ = torch.cuda.mem_get_info()
            if total > free:
                page.line(
                    f"  The GPU has {size_text(free)} free: expect it to run out. 显存可能不足。"
                )
