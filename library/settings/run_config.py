"""The configuration of a run: the groups of flags that every family has, and what is wrong between them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

from library.errors import Problem
from library.settings.flags.average import AverageOptions
from library.settings.flags.cache import CacheOptions
from library.settings.flags.data import FOLDERS, DataOptions
from library.settings.flags.distributed import DistributedOptions
from library.settings.flags.evaluation import EvaluationOptions
from library.settings.flags.files import ConfigOptions
from library.settings.flags.flow import FlowOptions
from library.settings.flags.logging import LoggingOptions
from library.settings.flags.loop import LoopOptions
from library.settings.flags.loss import LossOptions
from library.settings.flags.metadata import MetadataOptions
from library.settings.flags.monitor import MonitorOptions
from library.settings.flags.network import NetworkOptions
from library.settings.flags.optimizer import OptimizerOptions
from library.settings.flags.page import PageOptions
from library.settings.flags.paths import ModelPaths
from library.settings.flags.precision import PrecisionOptions
from library.settings.flags.preview import PreviewOptions
from library.settings.flags.resume import ResumeOptions
from library.settings.flags.save import SaveOptions
from library.settings.flags.schedule import ScheduleOptions
from library.settings.flags.shown_draw import ShownDrawOptions
from library.settings.flags.validation import ValidationOptions
from library.settings.optimizer_names import optimizer_name, takes_single_updates
from library.settings.options import flags_of, idle_flags

GROUPS: dict[str, type] = {
    "files": ConfigOptions,
    "paths": ModelPaths,
    "data": DataOptions,
    "cache": CacheOptions,
    "network": NetworkOptions,
    "optimizer": OptimizerOptions,
    "schedule": ScheduleOptions,
    "loop": LoopOptions,
    "precision": PrecisionOptions,
    "flow": FlowOptions,
    "shown_draw": ShownDrawOptions,
    "loss": LossOptions,
    "save": SaveOptions,
    "average": AverageOptions,
    "resume": ResumeOptions,
    "preview": PreviewOptions,
    "validation": ValidationOptions,
    "evaluation": EvaluationOptions,
    "logging": LoggingOptions,
    "page": PageOptions,
    "monitor": MonitorOptions,
    "metadata": MetadataOptions,
    "distributed": DistributedOptions,
}
"""By the name of their field; a family has its own in place of one whose flags it names."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The shared configuration of a run, one group each.

    explicit: the options that the user set, those of the family included, be it to the default
    whole:    the model itself is trained, not adapters
    """

    files: ConfigOptions
    paths: ModelPaths
    data: DataOptions
    cache: CacheOptions
    network: NetworkOptions
    optimizer: OptimizerOptions
    schedule: ScheduleOptions
    loop: LoopOptions
    precision: PrecisionOptions
    flow: FlowOptions
    shown_draw: ShownDrawOptions
    loss: LossOptions
    save: SaveOptions
    average: AverageOptions
    resume: ResumeOptions
    preview: PreviewOptions
    validation: ValidationOptions
    evaluation: EvaluationOptions
    logging: LoggingOptions
    page: PageOptions
    monitor: MonitorOptions
    metadata: MetadataOptions
    distributed: DistributedOptions
    explicit: frozenset[str] = frozenset()
    whole: bool = False

    def groups(self) -> list[Any]:
        return [getattr(self, name) for name in GROUPS]

    def flat(self) -> dict[str, Any]:
        """Every option by name."""
        return {f.name: getattr(group, f.name) for group in self.groups() for f in fields(group)}

    def check(self) -> list[Problem]:
        """What is wrong between groups."""
        return [
            *self.distributed_problems(), *self.dataset_problems(), *self.compile_problems(),
            *self.recording_problems(), *self.single_problems(), *self.text_encoder_problems(),
        ]  # fmt: skip

    def text_encoder_problems(self) -> list[Problem]:
        if not (self.network.text_encoder_rate and self.cache.cache_text_encoder_outputs):
            return []
        message = (
            "trains the text encoder, and cache_text_encoder_outputs encodes every caption once, as the "
            "encoder is before training. Remove one of the two, or set network_train_unet_only."
        )
        return [Problem(message, "text_encoder_lr")]

    def dataset_problems(self) -> list[Problem]:
        if self.files.dataset_config or any(getattr(self.data, name) for name in FOLDERS):
            return []
        message = "is needed: a TOML file that describes the pictures (or --train_data_dir)."
        return [Problem(message, "dataset_config")]

    def single_problems(self) -> list[Problem]:
        """What updates of one weight after another do not go with."""
        fused = self.whole and self.optimizer.fused_backward_pass
        swapped = self.whole and self.loop.blocks_to_swap
        rounds = self.precision.full_bf16 and self.precision.stochastic_rounding
        asked = {
            "fused_backward_pass = true": fused,
            "stochastic_rounding = true": rounds,
            f"blocks_to_swap = {self.loop.blocks_to_swap}": swapped,
        }
        found, name = [], optimizer_name(self.optimizer)
        if any(asked.values()) and not takes_single_updates(self.optimizer):
            what = next(option for option, is_so in asked.items() if is_so)
            without = what.partition(" ")[0]
            message = f"updates one weight after another. Use AdamW or Adafactor, or leave out {without}."
            found.append(Problem(message, f"{what} with optimizer_type = {name}"))
        found += self.fused_problems() if fused else []
        return found + (self.swap_problems() if swapped else [])

    @property
    def may_swap(self) -> bool:
        """Whether blocks can wait in RAM, where the model itself trains with what trains of them."""
        return not self.whole or (takes_single_updates(self.optimizer) and not self.swap_problems())

    @property
    def updates_in_parts(self) -> bool:
        """Whether the masters of a model that trains are updated a part at a time, where it has any."""
        updates_alone = self.precision.full_bf16 or self.optimizer.fused_backward_pass
        scales = self.precision.mixed_precision == "fp16"  # its scaler makes one update a step
        return self.whole and takes_single_updates(self.optimizer) and not (updates_alone or scales)

    def swap_problems(self) -> list[Problem]:
        """What weights that train and wait in RAM do not go with."""
        because = {
            "mixed_precision = fp16": self.precision.mixed_precision == "fp16"
            and "its gradient scaler looks at all gradients at once, and these wait in RAM. Use bf16.",
            "several processes": self.situation().processes > 1
            and "exchange gradients on the device, where these do not stay. Train with one, or leave it out.",
        }
        return does_not_go_with("blocks_to_swap where the model itself trains", because)

    def fused_problems(self) -> list[Problem]:
        accumulation, limit = self.loop.gradient_accumulation_steps, self.optimizer.max_grad_norm
        because = {
            f"gradient_accumulation_steps = {accumulation}": accumulation > 1
            and "a weight would be updated by the first micro-step's gradient. Use 1.",
            f"max_grad_norm = {limit:g}": limit
            and "the norm of all gradients is known after the last update only. Set it to 0.",
            "mixed_precision = fp16": self.precision.mixed_precision == "fp16"
            and "its gradient scaler looks at all gradients before an update. Use bf16.",
            "several processes": self.situation().processes > 1
            and "exchange gradients when all are there. Train with one, or leave it out.",
        }
        return does_not_go_with("fused_backward_pass", because)

    def compile_problems(self) -> list[Problem]:
        """What compiled blocks do not go with: a count of other compilers', and CUDA graphs what moves."""
        if not self.precision.compile:
            return []
        found, recording = [], self.precision.compile_records
        if self.loop.vram_target and (recording or self.precision.compile_backend != "inductor"):
            message = (
                "counts what inductor's blocks keep, in the modes that record no CUDA graphs. Choose "
                "gradient_checkpointing or blocks_to_swap yourself, or leave it to inductor's default mode."
            )
            found.append(Problem(message, f"vram_target = {self.loop.vram_target}"))
        if recording and (self.loop.blocks_to_swap or self.loop.checkpoints):
            message = (
                "records CUDA graphs, which cannot be with blocks_to_swap or gradient_checkpointing. Use "
                "compile_backend inductor, and compile_mode default or max-autotune-no-cudagraphs."
            )
            found.append(Problem(message, recording))
        return found

    def recording_problems(self) -> list[Problem]:
        """What a recorded step does not go with: it starts the same kernels on the same memory."""
        if not self.precision.cuda_graphs:
            return []
        precision, loop = self.precision, self.loop
        reasons = {
            "blocks_to_swap: weights that come and go": bool(loop.blocks_to_swap),
            "cpu_offload_checkpointing: inputs that come and go": loop.offloads,
            "vram_target, which changes what a step keeps": bool(loop.vram_target),
            f"{precision.compile_records}, which records as well": bool(precision.compile_records),
            "several processes": self.situation().processes > 1,
        }
        found = [reason for reason, is_so in reasons.items() if is_so]
        if not found:
            return []
        message = f"cannot be with {'; with '.join(found)}. Leave out one of the two."
        return [Problem(message, "cuda_graphs = true")]

    def distributed_problems(self) -> list[Problem]:
        """torch ends with an internal error where micro-steps without exchange meet a static graph."""
        several = self.situation().processes > 1
        if not (several and self.distributed.ddp_static_graph) or (
            self.loop.gradient_accumulation_steps == 1
        ):
            return []
        message = "torch cannot use it with gradient_accumulation_steps above 1. Leave it out."
        return [Problem(message, "ddp_static_graph = true")]

    def situation(
        self, family: Any = None, datasets: Any = None, plan: Any = None
    ) -> SimpleNamespace:
        """What conditions of effect look at: every option by name, and what else is known.

        family:    the options of the model family
        datasets:  their configurations, None when they are not known
        plan:      how long the run is, None when it is not known
        processes: that train together
        whole:     the model itself is trained
        """
        processes = os.environ.get("WORLD_SIZE", "1")
        return SimpleNamespace(
            **self.flat(),
            **(vars(family) if family else {}),
            family=family,
            datasets=datasets,
            plan=plan,
            whole=self.whole,
            processes=int(processes) if processes.isdecimal() else 1,
        )

    def idle(self) -> set[str]:
        """The options that the others leave without effect."""
        flags = [flag_ for group in self.groups() for flag_ in flags_of(type(group))]
        return set(idle_flags(flags, self.situation()))


def does_not_go_with(option: str, because: Mapping[str, object]) -> list[Problem]:
    """A problem for each setting that has a reason."""
    return [
        Problem(f"does not go with {option}: {reason}", what)
        for what, reason in because.items()
        if reason
    ]
