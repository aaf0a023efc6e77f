"""The ss_* entries of an exported file, by sd-scripts' names: one table of what each says.

Values are what acted: those of datasets and subsets come from the dataset file where it says otherwise
than the flags. An entry that needs one value for the whole run is left out where there are several;
ss_datasets has those of each dataset and subset.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from library.data.catalogue import Catalogue
from library.errors import as_utf8
from library.saving.metadata_datasets import (
    bucket_info,
    dataset_dirs,
    describe_datasets,
    tag_frequency,
)
from networks.network import AdapterNetwork
from networks.whole_model import WholeModel

if TYPE_CHECKING:
    from library.settings.run_config import TrainConfig
    from library.train_util import StepPlan
    from networks.trained import Trained


BLOCK = re.compile(r"(.*?)\bblocks\.(\d+)\.")
NUMBER = re.compile(r"\b(blocks|layers)\.\d+\.")


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run before its first step.

    network:   what is trained
    optimizer: as describe_optimizer gives it
    """

    cfg: TrainConfig
    catalogue: Catalogue
    plan: StepPlan
    network: Trained
    optimizer: str
    seed: int
    processes: int


OPTIONS = {
    "output_name": "save.output_name",
    "save_precision": "save.save_precision",
    "training_comment": "metadata.training_comment",
    "learning_rate": "optimizer.learning_rate",
    "max_grad_norm": "optimizer.max_grad_norm",
    "unet_lr": "network.unet_lr",
    "text_encoder_lr": "network.text_encoder_rate",
    "network_module": "network.network_module",
    "network_dropout": "network.network_dropout",
    "scale_weight_norms": "network.scale_weight_norms",
    "base_weights_multiplier": "network.base_weights_multiplier",
    "lr_scheduler": "schedule.lr_scheduler",
    "lr_scheduler_type": "schedule.lr_scheduler_type",
    "lr_scheduler_args": "schedule.lr_scheduler_args",
    "lr_scheduler_num_cycles": "schedule.lr_scheduler_num_cycles",
    "lr_scheduler_power": "schedule.lr_scheduler_power",
    "lr_scheduler_timescale": "schedule.lr_scheduler_timescale",
    "lr_scheduler_min_lr_ratio": "schedule.lr_scheduler_min_lr_ratio",
    "lr_warmup_steps": "schedule.lr_warmup_steps",
    "lr_decay_steps": "schedule.lr_decay_steps",
    "gradient_checkpointing": "loop.gradient_checkpointing",
    "gradient_accumulation_steps": "loop.gradient_accumulation_steps",
    "mixed_precision": "precision.mixed_precision",
    "full_bf16": "precision.full_bf16",
    "full_fp16": "precision.full_fp16",
    "fp8_base": "precision.fp8_base",
    "cache_latents": "cache.cache_latents",
    "no_half_vae": "cache.no_half_vae",
    "timestep_sampling": "flow.timestep_sampling",
    "sigmoid_scale": "flow.sigmoid_scale",
    "discrete_flow_shift": "flow.discrete_flow_shift",
    "weighting_scheme": "flow.weighting_scheme",
    "logit_mean": "flow.logit_mean",
    "logit_std": "flow.logit_std",
    "mode_scale": "flow.mode_scale",
    "min_timestep": "flow.min_timestep",
    "max_timestep": "flow.max_timestep",
    "noise_offset": "flow.noise_offset",
    "noise_offset_random_strength": "flow.noise_offset_random_strength",
    "ip_noise_gamma": "flow.ip_noise_gamma",
    "ip_noise_gamma_random_strength": "flow.ip_noise_gamma_random_strength",
    "loss_type": "loss.loss_type",
    "huber_schedule": "loss.huber_schedule",
    "huber_c": "loss.huber_c",
    "huber_scale": "loss.huber_scale",
    "prior_loss_weight": "loss.prior_loss_weight",
    "masked_loss": "loss.masked_loss",
    "validate_every_n_steps": "validation.validate_every_n_steps",
    "validate_every_n_epochs": "validation.validate_every_n_epochs",
    "max_validation_steps": "validation.max_validation_steps",
}
"""Always written, from an option: entry -> group.option."""

WHERE_SET = {
    "fp8_base_unet": "precision.fp8_base_unet",
    "stochastic_rounding": "precision.stochastic_rounding",
    "fused_backward_pass": "optimizer.fused_backward_pass",
    "int8_base": "precision.int8_base",
    "nf4_base": "precision.nf4_base",
    "int8_compute": "precision.int8_compute",
    "multiscale_loss_weight": "loss.multiscale_loss_weight",
    "prior_preservation_weight": "loss.prior_preservation_weight",
    "weighted_captions": "data.weighted_captions",
}
"""Written where the option is set."""

FACTS: dict[str, Callable[[RunFacts], object]] = {
    "session_id": lambda run: uuid.uuid4().int % 2**32,
    "training_started_at": lambda run: timestamp(),
    "v2": lambda run: False,
    "seed": attrgetter("seed"),
    "num_epochs": attrgetter("plan.epochs"),
    "num_batches_per_epoch": attrgetter("plan.batches_per_epoch"),
    "max_train_steps": attrgetter("plan.total_steps"),
    "optimizer": attrgetter("optimizer"),
    "network_weights": lambda run: file_name(run.cfg.network.network_weights),
    "base_weights": lambda run: names(run.cfg.network.base_weights),
    "prior_preservation_prompts": lambda run: file_name(run.cfg.loss.prior_preservation_prompts),
    "num_train_images": lambda run: samples(run, is_reg=False),
    "num_reg_images": lambda run: samples(run, is_reg=True),
    "num_validation_images": lambda run: len(run.catalogue.held_out),
    "datasets": lambda run: json_shown(describe_datasets(run.catalogue)),
    "tag_frequency": lambda run: json_shown(tag_frequency(run.catalogue)),
    "dataset_dirs": lambda run: json_shown(dataset_dirs(run.catalogue, is_reg=False)),
    "reg_dataset_dirs": lambda run: json_shown(dataset_dirs(run.catalogue, is_reg=True)),
    "bucket_info": lambda run: json_shown(bucket_info(run.catalogue.images)),
}
"""Always written, from the run."""

OF_ADAPTERS: dict[str, Callable[[AdapterNetwork], object]] = {
    "network_dim": attrgetter("dim"),
    "network_alpha": attrgetter("alpha"),
    "network_args": lambda network: json.dumps(network.network_args),
    "num_blocks": lambda network: len(blocks_of(network)),
    "adapted_parts": lambda network: json.dumps(adapted_parts(p.path for p in network.exported())),
}
"""Written of adapters, from them."""

OF_MODELS: dict[str, Callable[[WholeModel], object]] = {
    "trained_parts": lambda model: json.dumps(model.counts()),
    "component_rates": lambda model: json.dumps(dict(model.subject.rates)),
}
"""Written of a model that was trained itself, from it."""

NOT_OF_MODELS = {
    *("network_module", "network_dropout", "network_weights", "scale_weight_norms"),
    *("unet_lr", "text_encoder_lr"),
}
"""Those of the options that say something of adapters alone."""

OF_DATASETS = {
    "batch_size_per_device": "batch_size",
    "resolution": "resolution",
    "enable_bucket": "enable_bucket",
    "bucket_no_upscale": "bucket_no_upscale",
    "min_bucket_reso": "min_bucket_reso",
    "max_bucket_reso": "max_bucket_reso",
    "validation_split": "validation_split",
    "validation_seed": "validation_seed",
}
"""Written where all datasets have one value: entry -> field of a dataset."""

OF_SUBSETS = {
    name: name
    for name in (
        *("shuffle_caption", "keep_tokens", "caption_dropout_rate", "caption_tag_dropout_rate"),
        *("caption_dropout_every_n_epochs", "color_aug", "flip_aug", "random_crop"),
        *("face_crop_aug_range", "resize_interpolation"),
    )
}
"""Written where all subsets have one value: entry -> field of a subset."""

TOTAL = "total_batch_size"
"""Written with batch_size_per_device: pictures of one update."""

MINIMUM = ("base_model_version", "v2", "network_module", "network_dim", "network_alpha",
           "network_args")  # fmt: skip
"""What --no_metadata leaves, beside modelspec.*: other tools cannot use a file without it."""


def entries_of(run: RunFacts) -> dict[str, str]:
    """The ss_* entries that are known before the first step."""
    values: dict[str, object] = {
        name: attrgetter(option)(run.cfg) for name, option in OPTIONS.items()
    }
    set_here = {name: attrgetter(option)(run.cfg) for name, option in WHERE_SET.items()}
    values |= {name: value for name, value in set_here.items() if value}
    values |= {name: value(run) for name, value in FACTS.items()}
    if isinstance(run.network, AdapterNetwork):
        values |= {name: value(run.network) for name, value in OF_ADAPTERS.items()}
    if isinstance(run.network, WholeModel):
        values |= {name: value(run.network) for name, value in OF_MODELS.items()}
        values = {name: value for name, value in values.items() if name not in NOT_OF_MODELS}
    datasets = run.catalogue.group.datasets
    values |= common(OF_DATASETS, datasets)
    values |= common(OF_SUBSETS, [subset for dataset in datasets for subset in dataset.subsets])
    if isinstance(size := values.get("batch_size_per_device"), int):
        accumulation = run.cfg.loop.gradient_accumulation_steps
        values[TOTAL] = size * run.processes * accumulation
    return {f"ss_{name}": text(value) for name, value in values.items()}


def common(entries: dict[str, str], owners: Iterable[object]) -> dict[str, object]:
    """The fields that have one value in all owners, by entry."""
    owners, found = list(owners), {}
    for name, field in entries.items():
        first, *others = [getattr(owner, field) for owner in owners]
        if all(other == first for other in others):
            found[name] = first
    return found


def samples(run: RunFacts, *, is_reg: bool) -> int:
    """Pictures x repeats."""
    return sum(image.repeats for image in run.catalogue.images if image.subset.is_reg is is_reg)


def blocks_of(network: AdapterNetwork) -> set[str]:
    """The numbers of the model's own blocks; those inside its parts do not count."""
    found = (BLOCK.match(path) for path in network.settings.paths)
    return {match[2] for match in found if match and not match[1]}


def adapted_parts(paths: Iterable[str]) -> dict[str, int]:
    """How many modules there are of each name; of blocks the number is left out.

    E.g. {"blocks.*.mlp.layer1": 28}.
    """
    return dict(sorted(Counter(NUMBER.sub(r"\1.*.", path) for path in paths).items()))


def names(files: Iterable[str] | None) -> str | None:
    """Names of files without their folders, as JSON; None when there are none."""
    return json_shown([file_name(file) for file in files]) if files else None


def file_name(path: str | None) -> str | None:
    """No paths of the user's disk."""
    return path and os.path.basename(os.path.abspath(path))


def text(value: object) -> str:
    """A metadata value as sd-scripts writes it: str(), with None and True as Python spells them.

    What the file's UTF-8 cannot hold is escaped.
    """
    return as_utf8(value if isinstance(value, str) else str(value))


def json_shown(value: object) -> str:
    """JSON that any reader can show: names that are not UTF-8 stand in it as they are shown."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return as_utf8(shown, backslash=r"\\")


def timestamp() -> str:
    """Seconds since 1970, as sd-scripts writes start and end of a run."""
    return str(time.time())
