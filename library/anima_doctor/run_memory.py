"""What a run on Anima has on the device while it trains, in any memory mode: counted, nothing loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from library.anima_backend.modelling.params import DiTParams
from library.anima_doctor import anima_step
from library.anima_doctor.page import optimizer_state
from library.anima_runtime import fused_choice, model_loading, model_tensors
from library.anima_runtime.config_adapter import AnimaConfig
from library.anima_runtime.model_facts import ModelFiles, dtype_of_vae
from library.anima_runtime.text_contexts import adapts_text
from library.data.catalogue import Catalogue
from library.device_utils import precision_dtype
from library.memory.modes import describe_modes
from library.memory.step_count import StepCount
from library.memory.visits import SEATS
from library.settings.flags.loop import LoopOptions
from library.settings.run_config import TrainConfig
from networks.trained import Trained

CAPTIONS_TOKENIZED = 300  # of a run, as a sample


@dataclass(frozen=True)
class RunMemory:
    """Of the run's largest batch with its longest captions.

    network:   what trains, without memory; arguments: of the adapters' module
    batch:     pictures, and their width and height
    tokens:    (Qwen's, T5's) of a caption
    """

    cfg: TrainConfig
    anima: AnimaConfig
    params: DiTParams
    network: Trained
    arguments: tuple[tuple[str, object], ...]
    batch: tuple[int, int, int]
    tokens: tuple[int, int]

    @property
    def weight_dtype(self) -> torch.dtype:
        return precision_dtype(self.cfg.precision.mixed_precision)

    @property
    def trained_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.cfg.precision.full_bf16 else torch.float32

    @property
    def text_encoder(self) -> str | None:
        """Its file or folder, where adapters of it train."""
        return self.anima.qwen if self.cfg.network.text_encoder_rate else None

    def step(self, loop: LoopOptions) -> StepCount:
        """One step in the memory modes of `loop`; any optimizer leaves the same room."""
        cfg, (batch, width, height) = self.cfg, self.batch
        settings = anima_step.AnimaStep(
            params=self.params,
            network=cfg.network,
            arguments=self.arguments,
            loss=cfg.loss,
            dtype=self.weight_dtype,
            trained_dtype=self.trained_dtype,
            size=(height // 8, width // 8),
            batch=batch,
            tokens=self.tokens,
            memory=anima_step.Saving(loop, cfg.precision),
            fused=fused_choice.are_likely(self.anima, self.weight_dtype),
            accumulates=cfg.loop.gradient_accumulation_steps > 1,
            full=self.full,
            folds_text=self.anima.folds_text,
            text_encoder=self.text_encoder,
            caches_text=cfg.cache.cache_text_encoder_outputs,
        )
        return anima_step.count(settings)

    @property
    def full(self) -> anima_step.Full | None:
        """How the model itself trains; None where adapters do."""
        if not self.cfg.whole:
            return None
        precision, fused = self.cfg.precision, self.cfg.optimizer.fused_backward_pass
        single = fused or (precision.full_bf16 and precision.stochastic_rounding)
        rates = tuple(self.anima.component_rates().items())
        parted = self.cfg.updates_in_parts
        return anima_step.Full(rates=rates, single=single, fused=fused, parted=parted)

    def total(self, loop: LoopOptions) -> int:
        """Bytes of all rows."""
        return round(sum(size for _, size, _ in self.rows(loop)))

    def rows(self, loop: LoopOptions) -> list[tuple[str, float, str]]:
        """(what, bytes, how) of all that is on the device when the most is in use."""
        step = self.step(loop)
        if self.full:
            return [
                *self.whole_rows(step, loop),
                ("activations", step.activations, self.how_counted(loop)),
            ]
        trained = sum(parameter.numel() for parameter in self.network.get_trainable_params())
        item = self.trained_dtype.itemsize
        state, optimizer = optimizer_state(self.cfg, self.network)
        return [
            (self.what_is_frozen(), step.weights, self.how_stored(loop)),
            *self.encoder_rows(),
            ("adapters", trained * item, f"{trained:,} trained parameters, {item} bytes each"),
            ("gradients", trained * item, "the same"),
            ("optimizer state", state, optimizer),
            *self.average_rows(trained),
            ("activations", step.activations, self.how_counted(loop)),
        ]

    def whole_rows(self, step: StepCount, loop: LoopOptions) -> list[tuple[str, float, str]]:
        """Of a model that trains itself, and what is beside it on the device."""
        here, away = self.here_and_away(step)
        trained = sum(parameter.numel() for parameter in here)
        has_masters = self.trained_dtype != self.weight_dtype
        weights = step.weights + (0 if has_masters else step.adapters)
        how = f"{trained:,} trained parameters"
        rows = [("DiT and LLM adapter", weights, self.how_stored(loop)), *self.encoder_rows()]
        if has_masters:
            rows.append(("float32 masters", step.adapters, f"{how}, {self.trained_dtype.itemsize} bytes each"))
        goes = "fused_backward_pass: each goes at once" if self.full and self.full.fused else how
        state, optimizer = optimizer_state(self.cfg, self.network, here)
        rows += [("gradients", step.gradients, goes), ("optimizer state", state, optimizer)]
        if away:
            at_once = f"{SEATS} of {len(away)} weights that wait in RAM, with what is updated of them"
            rows.append(("updates", self.passing(away), at_once))
        return [*rows, *self.average_rows(trained)]

    def here_and_away(self, step: StepCount) -> tuple[list[Tensor], list[Tensor]]:
        """What trains and is on the device, and what waits in RAM."""
        named = self.network.tensors().items() if step.away else ()
        away = {name: tensor for name, tensor in named if name in step.away}
        ids = {id(tensor) for tensor in away.values()}
        return [p for p in self.network.get_trainable_params() if id(p) not in ids], list(away.values())

    def of_one(self, parameter: Tensor) -> float:
        """Bytes of what is updated of a weight that waits in RAM: what is held, states, and its gradient."""
        gradient = 0 if self.full and self.full.fused else self.weight_dtype.itemsize
        state, _ = optimizer_state(self.cfg, self.network, [parameter])
        return state + parameter.numel() * (self.trained_dtype.itemsize + gradient)

    def passing(self, away: list[Tensor]) -> float:
        """Bytes on the device of those that come and go: seats, averages' too, and what is on its way back."""
        average = 2 * torch.float32.itemsize if self.cfg.average.ema_decay else 0
        largest = max(away, key=torch.Tensor.numel)
        back = self.weight_dtype.itemsize
        return SEATS * (self.of_one(largest) + largest.numel() * (average + back))

    def in_host(self, loop: LoopOptions) -> float:
        """Bytes in RAM of what is on the device otherwise: block inputs, weights and what belongs to them."""
        step = self.step(loop)
        _, away = self.here_and_away(step)
        average = torch.float32.itemsize if self.cfg.average.ema_decay else 0
        held = self.trained_dtype.itemsize  # counted in the step
        beside = (self.of_one(each) + each.numel() * (average - held) for each in away)
        return step.in_host + sum(beside)

    def average_rows(self, trained: int) -> list[tuple[str, float, str]]:
        size = trained * torch.float32.itemsize
        how = "of the trained parameters, float32 (ema_decay)"
        return [("average (EMA)", size, how)] if self.cfg.average.ema_decay else []

    def encoder_rows(self) -> list[tuple[str, float, str]]:
        """Of the encoders that stay beside the DiT."""
        cache, files = self.cfg.cache, ModelFiles.of(self.cfg, self.anima)
        kept: list[tuple[str, int, torch.dtype]] = []
        if not cache.cache_latents:
            kept.append(("VAE", vae_parameters(files.vae), dtype_of_vae(self.cfg)))
        if not cache.cache_text_encoder_outputs and not self.text_encoder:
            kept.append(("Qwen", qwen_parameters(files.qwen), self.weight_dtype))
        how = "parameters; stays, since its outputs are not cached"
        return [(name, count * dtype.itemsize, f"{count:,} {how}") for name, count, dtype in kept]

    def what_is_frozen(self) -> str:
        return "DiT, LLM adapter, Qwen" if self.text_encoder else "DiT and LLM adapter"

    def how_stored(self, loop: LoopOptions) -> str:
        weights = model_loading.parameter_count(self.params)
        weights += qwen_parameters(self.text_encoder) if self.text_encoder else 0
        precise = f"{self.cfg.precision.mixed_precision} ({self.weight_dtype})"
        away = "; of swapped blocks what passes through" if loop.blocks_to_swap else ""
        away += "; the LLM adapter, which no step needs, in RAM" if self.rests else ""
        form = self.cfg.precision.stored_form
        stored = f", matrices in {form}" if form else ""
        return f"{weights:,} parameters, mixed_precision = {precise}{stored}{away}"

    @property
    def rests(self) -> bool:
        """Whether the LLM adapter is in the host's memory, since texts' contexts were made before."""
        return self.cfg.cache.cache_text_encoder_outputs and not adapts_text(self.network.paths())

    def how_counted(self, loop: LoopOptions) -> str:
        batch, width, height = self.batch
        tokens = batch * width * height // (8 * self.params.patch) ** 2
        shape = f"batch {batch}, {tokens} tokens, {self.params.num_blocks} blocks"
        return f"counted, not measured: {shape}, {describe_modes(loop)}{self.how_compiled}"

    @property
    def how_compiled(self) -> str:
        precision = self.cfg.precision
        if not precision.compile:
            return ""
        others = precision.compile_records or precision.compile_backend != "inductor"
        how = ", as inductor would in its default mode" if others else ""
        return f", compiled{how} (traced, which is most of this check's time)"


def largest_batch(catalogue: Catalogue) -> tuple[int, int, int]:
    """Pictures, and their width and height, of the batch with the most tokens."""
    found = []
    for (number, (width, height)), indices in catalogue.buckets().items():
        samples = sum(catalogue.images[i].repeats for i in indices)
        batch = min(samples, catalogue.group.datasets[number].batch_size)
        found.append((batch, width, height))
    return max(found, key=prod)


def longest_tokens(
    captions: Iterable[str], lengths: Callable[[str], tuple[int, int]]
) -> tuple[int, int]:
    """The most tokens of Qwen, and of T5, in one of the captions with the most letters."""
    longest = sorted(captions, key=len, reverse=True)[:CAPTIONS_TOKENIZED]
    qwen, t5 = zip(*map(lengths, longest), strict=True)
    return max(qwen), max(t5)


def vae_parameters(path: str) -> int:
    shapes, _ = model_tensors.shapes_and_dtypes(model_loading.vae_file(path), model_loading.VAE)
    return sum(map(prod, shapes.values()))


def qwen_parameters(path: str) -> int:
    return sum(map(prod, model_loading.inspect_qwen(path).values()))
