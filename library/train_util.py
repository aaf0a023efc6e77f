"""Preparing a run: the accelerator, the seed, the arithmetic of steps and epochs.

The name is kept because sd-scripts users look here; nothing else moves in.
"""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import torch

from library.caching.latents_cache import Share
from library.data.ahead import Ahead
from library.data.batch_loader import BatchLoader
from library.data.bucket_sampler import BucketBatchSampler
from library.data.data_types import Batch, RunPosition
from library.data.datasets import TrainDataset
from library.errors import ConfigError
from library.settings.flags.data import DataOptions
from library.settings.flags.distributed import DistributedOptions
from library.settings.flags.flow import FlowOptions
from library.settings.run_config import TrainConfig
from library.training import processes
from library.training.flow_matching import NoiseSettings, Noising, SigmaSampling
from library.training.processes import wait_for_all
from library.utils import position_seed

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.utils import KwargsHandler

    from library.data.catalogue import Catalogue

logger = logging.getLogger(__name__)

SHARDING_VARIABLES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


def prepare_accelerator(cfg: TrainConfig) -> Accelerator:
    """The run's accelerator.

    Autocast stays off: models and adapters choose their dtypes themselves, which costs no casts that
    nobody asked for. Mixed precision still reaches accelerate, since fp16 needs its gradient scaler.
    The loop owns accumulation, so accelerate's own must be 1 whatever the environment says.
    """
    from accelerate import Accelerator
    from accelerate.utils import parse_flag_from_env

    wanted = cfg.precision.mixed_precision
    _warn_of_launcher(wanted)
    _refuse_sharding()
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if not parse_flag_from_env("ACCELERATE_USE_CPU"):
        check_cards(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count())
    accelerator = Accelerator(
        gradient_accumulation_steps=1,
        mixed_precision=wanted,
        dynamo_backend="no",
        kwargs_handlers=_accelerate_settings(cfg.distributed),
        cpu=started > 1 and not torch.accelerator.is_available(),  # else each would train alone
    )
    accelerator.gradient_accumulation_steps = 1
    if started != accelerator.num_processes:
        raise ConfigError(
            f"the launcher started {started} processes, and {accelerator.num_processes} of them "
            "found each other. Start them with accelerate launch --multi_gpu, or with torchrun."
        )
    minutes = cfg.distributed.ddp_timeout
    processes.begin(accelerator, timedelta(minutes=minutes) if minutes else None)
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)  # one process tells what all of them do
    if wanted == "fp16" and accelerator.device.type != "cuda":
        raise ConfigError(
            f"mixed_precision = fp16 needs a CUDA device; this run would use "
            f"{accelerator.device.type}. Use bf16 or no."
        )
    return accelerator


def _warn_of_launcher(wanted: str) -> None:
    """What accelerate launch asks for in vain. wanted: the run's precision"""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if asked not in (None, "", "no", wanted):  # "no" is also what the launcher says when not asked
        logger.warning("accelerate launch asks for mixed precision %s; mixed_precision = %s is used.",
                       asked, wanted)  # fmt: skip
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if compiler.lower() != "no":
        logger.warning("accelerate launch asks for dynamo backend %s, which has no effect: compile "
                       "compiles each block.", compiler)  # fmt: skip


def check_cards(processes: int, cards: int) -> None:
    """Where there is CUDA each process of a machine needs a card: it ends in a long trace of the driver's."""
    if 0 < cards < processes:
        raise ConfigError(
            f"the launcher started {processes} processes on this machine, which has {cards} CUDA "
            f"device{'s' if cards > 1 else ''}, and each needs its own. Start {cards}: --num_processes "
            "of accelerate launch, --nproc_per_node of torchrun."
        )


def _accelerate_settings(options: DistributedOptions) -> list[KwargsHandler]:
    from accelerate.utils import (
        AutocastKwargs,
        DistributedDataParallelKwargs,
        GradScalerKwargs,
        InitProcessGroupKwargs,
    )

    handlers = [
        AutocastKwargs(enabled=False),
        GradScalerKwargs(),
        DistributedDataParallelKwargs(
            gradient_as_bucket_view=options.ddp_gradient_as_bucket_view,
            static_graph=options.ddp_static_graph,
        ),
    ]
    if options.ddp_timeout:
        handlers.append(InitProcessGroupKwargs(timeout=timedelta(minutes=options.ddp_timeout)))
    return handlers


def _refuse_sharding() -> None:
    for variable, name in SHARDING_VARIABLES.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise ConfigError(
                f"accelerate is set up for {name}, which divides what is trained among processes. Here "
                "every process holds the whole. Use plain --multi_gpu, and gradient_checkpointing or "
                "vram_target where memory is short."
            )


def share_of_caching(accelerator: Accelerator, to_disk: bool, catalogue: Catalogue) -> Share:
    """Of all processes; on disk, where these are on machines that do not see each other's files, of
    those on this machine."""
    wait = partial(wait_for_all, accelerator)
    together = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    if to_disk and together < accelerator.num_processes:
        folders = {image.path.parent for image in catalogue.images}
        if not processes.have_one_disk(accelerator, folders):
            return Share(accelerator.local_process_index, together, wait)
    return Share(accelerator.process_index, accelerator.num_processes, wait)


def prepare_torch(cfg: TrainConfig) -> None:
    """Apply the process-wide torch settings that the flags ask for."""
    if cfg.precision.cuda_allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    if cfg.precision.cuda_cudnn_benchmark:
        torch.backends.cudnn.benchmark = True
    if cfg.precision.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Filled with NaN, for a kernel each time, memory shows who reads what nobody wrote: a matter of tests
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def choose_seed(seed: int | None) -> int:
    """`seed`, or one drawn now by the first process and logged, so that the run can be repeated."""
    if seed is not None:
        return seed
    from accelerate.utils import broadcast_object_list

    seed = broadcast_object_list([random.SystemRandom().randrange(2**31)])[0]
    logger.info("seed not given: using %d", seed)
    return seed


def seed_dropout(seed: int, rank: int, step: int, micro_step: int) -> None:
    """Seed the global RNG from the position: the one that checkpointing rewinds, so dropout's."""
    torch.manual_seed(position_seed(seed, "dropout", rank, step, micro_step))


def make_noising(flow: FlowOptions) -> Noising:
    """The path's settings from the flags; timesteps of 0 to 1000 become sigma here, and only here."""
    sampling = SigmaSampling(
        method=flow.timestep_sampling,
        sigmoid_scale=flow.sigmoid_scale,
        shift=flow.discrete_flow_shift,
        weighting_scheme=flow.weighting_scheme,
        logit_mean=flow.logit_mean,
        logit_std=flow.logit_std,
        mode_scale=flow.mode_scale,
        min_sigma=(flow.min_timestep or 0) / 1000,
        max_sigma=(1000 if flow.max_timestep is None else flow.max_timestep) / 1000,
    )
    noise = NoiseSettings(
        offset=flow.noise_offset or 0.0,
        random_offset=flow.noise_offset_random_strength,
        perturbation=flow.ip_noise_gamma or 0.0,
        random_perturbation=flow.ip_noise_gamma_random_strength,
    )
    return Noising(sampling, noise)


def make_loader(
    dataset: TrainDataset,
    sampler: BucketBatchSampler,
    data: DataOptions,
    ahead: Ahead | None = None,
) -> BatchLoader:
    """Batches in the sampler's order. Cached latents are only read: one thread is ahead by one batch."""
    threads = min(data.max_data_loader_n_workers, os.cpu_count() or 1)
    if dataset.latents is not None:
        threads = min(threads, 1)
    return BatchLoader(dataset, sampler, threads=threads, pin=torch.cuda.is_available(), ahead=ahead)


def windows(loader: Iterable[Batch], length: int) -> Generator[list[Batch], None, None]:
    """The micro-batches of each update; the last window of an epoch may be short."""
    window: list[Batch] = []
    for batch in loader:
        window.append(batch)
        if len(window) == length:
            yield window
            window = []
    if window:
        yield window


@dataclass(frozen=True)
class StepPlan:
    """How long the run is. A short window at the end of an epoch is an update of its own.

    last_batches: how many batches of the last epoch are trained on
    """

    batches_per_epoch: int
    steps_per_epoch: int
    total_steps: int
    epochs: int
    last_batches: int

    @staticmethod
    def make(batches_per_epoch: int, accumulation: int, cfg: TrainConfig) -> StepPlan:
        """From this rank's micro-batches per epoch; max_train_epochs wins over max_train_steps."""
        steps_per_epoch = math.ceil(batches_per_epoch / accumulation)
        if cfg.loop.max_train_epochs is not None:
            total = cfg.loop.max_train_epochs * steps_per_epoch
        else:
            total = cfg.loop.max_train_steps
        epochs = math.ceil(total / steps_per_epoch)
        last_steps = total - (epochs - 1) * steps_per_epoch
        last_batches = min(batches_per_epoch, last_steps * accumulation)
        return StepPlan(batches_per_epoch, steps_per_epoch, total, epochs, last_batches)

    def starting_at(self, position: RunPosition, cfg: TrainConfig) -> StepPlan:
        """The same length for a run that begins at `position`; so many epochs or steps are left.

        Differs from this plan where the position was reached with other batches per epoch. Raises
        ConfigError when the run would have ended before.
        """
        done = math.ceil(position.batch_in_epoch / cfg.loop.gradient_accumulation_steps)
        total = self.total_steps
        if cfg.loop.max_train_epochs is not None:
            total = position.step + (self.epochs - position.epoch) * self.steps_per_epoch - done
        if total < position.step:
            raise ConfigError(
                f"the run begins at step {position.step} (epoch {position.epoch + 1}) and would end at "
                f"step {self.total_steps} (epoch {self.epochs}). Raise max_train_steps or "
                f"max_train_epochs."
            )
        left = math.ceil((done + total - position.step) / self.steps_per_epoch)
        return replace(self, total_steps=total, epochs=position.epoch + max(left, 1))

    def describe(self, cfg: TrainConfig, accelerator: Accelerator) -> list[str]:
        """Lines for the log: what is about to run."""
        length = f"{self.batches_per_epoch} batches, {self.steps_per_epoch} steps"
        device = f"{accelerator.num_processes} x {accelerator.device}"
        accumulation = cfg.loop.gradient_accumulation_steps
        return [
            f"epochs: {self.epochs} of {length}; steps in all: {self.total_steps}",
            f"accumulation: {accumulation}; precision: {cfg.precision.mixed_precision}; on {device}",
        ]
