"""What an exported file says of its making: sd-scripts' ss_* keys and Stability's modelspec.* keys.

Values are strings, since safetensors holds nothing else. Base models are hashed in a thread while the
inputs are prepared; the first save waits for it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import mimetypes
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.captions import split_tags, variants
from library.catalogue import Catalogue
from library.data_types import TrainState
from library.errors import ConfigError, as_utf8
from library.run_config import MetadataOptions, TrainConfig
from library.utils import sha256_of_file

if TYPE_CHECKING:
    from library.train_util import StepPlan

MINIMUM_KEYS = (
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
)
SESSION_KEYS = ("ss_session_id", "ss_training_started_at", "modelspec.date")


def text(value: object) -> str:
    """A metadata value as sd-scripts writes it: str(), with None and True as Python spells them.

    What the file's UTF-8 cannot hold is escaped.
    """
    return as_utf8(value if isinstance(value, str) else str(value))


def json_shown(value: object) -> str:
    """JSON that any reader can show: names that are not UTF-8 stand in it as they are shown."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return as_utf8(text, backslash=r"\\")


class FileHashes:
    """sha256 of large files, computed beside the run; a run that ends does not wait for it."""

    def __init__(self, paths: Mapping[str, str | None]) -> None:
        self.files = {r: path for r, path in paths.items() if path and os.path.isfile(path)}
        self.pending: dict[str, Future[str]] = {role: Future() for role in self.files}
        threading.Thread(target=self.compute, name="hash", daemon=True).start()

    def compute(self) -> None:
        for role, path in self.files.items():
            try:
                self.pending[role].set_result(sha256_of_file(path))
            except Exception as error:  # noqa: BLE001  whoever asks gets it
                self.pending[role].set_exception(error)

    def get(self, role: str) -> str | None:
        """The hexadecimal digest, waiting for it if need be; None for a folder or no file."""
        return self.pending[role].result() if role in self.pending else None


def legacy_hash(path: str | Path) -> str:
    """The 8 digits by which older tools know a checkpoint: sha256 of 64 KiB from 1 MiB on."""
    with open(path, "rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def run_metadata(cfg: TrainConfig, catalogue: Catalogue, run: Mapping[str, Any]) -> dict[str, str]:
    """The ss_* entries known at the start; `run` adds what only the trainer knows (without ss_)."""
    data, loop, loss, flow = cfg.data, cfg.loop, cfg.loss, cfg.flow
    entries: dict[str, Any] = {
        "output_name": cfg.save.output_name,
        "learning_rate": cfg.optimizer.learning_rate,
        "unet_lr": cfg.network.unet_lr,
        "text_encoder_lr": cfg.network.text_encoder_lr,
        "max_grad_norm": cfg.optimizer.max_grad_norm,
        "lr_scheduler": cfg.schedule.lr_scheduler,
        "lr_warmup_steps": cfg.schedule.lr_warmup_steps,
        "gradient_checkpointing": loop.gradient_checkpointing,
        "gradient_accumulation_steps": loop.gradient_accumulation_steps,
        "mixed_precision": cfg.precision.mixed_precision,
        "full_bf16": cfg.precision.full_bf16,
        "full_fp16": cfg.precision.full_fp16,
        "fp8_base": cfg.precision.fp8_base,
        "v2": False,
        "cache_latents": cfg.cache.cache_latents,
        "noise_offset": flow.noise_offset,
        "ip_noise_gamma": flow.ip_noise_gamma,
        "timestep_sampling": flow.timestep_sampling,
        "sigmoid_scale": flow.sigmoid_scale,
        "discrete_flow_shift": flow.discrete_flow_shift,
        "weighting_scheme": flow.weighting_scheme,
        "logit_mean": flow.logit_mean,
        "logit_std": flow.logit_std,
        "mode_scale": flow.mode_scale,
        "loss_type": loss.loss_type,
        "huber_schedule": loss.huber_schedule,
        "huber_c": loss.huber_c,
        "huber_scale": loss.huber_scale,
        "prior_loss_weight": loss.prior_loss_weight,
        "max_validation_steps": cfg.validation.max_validation_steps,
        "training_comment": cfg.metadata.training_comment,
        "network_module": cfg.network.network_module,
        "network_dropout": cfg.network.network_dropout,
        "caption_dropout_rate": data.caption_dropout_rate,
        "caption_tag_dropout_rate": data.caption_tag_dropout_rate,
        "train_batch_size": data.train_batch_size,
        **dataset_entries(catalogue),
        **run,
    }
    return {f"ss_{name}": text(value) for name, value in entries.items()}


def dataset_entries(catalogue: Catalogue) -> dict[str, Any]:
    """Pictures, buckets and tags: ss_datasets, ss_tag_frequency, ss_bucket_info, ss_dataset_dirs."""
    datasets, frequency, dirs, reg_dirs = [], {}, {}, {}
    for index, dataset in enumerate(catalogue.group.datasets):
        images = [image for image in catalogue.images if image.dataset_index == index]
        buckets = Counter(image.plan.bucket for image in images)
        bucket_info = {
            str(number): {"resolution": list(bucket), "count": count}
            for number, (bucket, count) in enumerate(sorted(buckets.items()))
        }
        settings = asdict(dataset)
        for settings_of_subset in settings["subsets"]:  # no paths of the user's disk
            for key in ("image_dir", "metadata_file", "mask_path", "conditioning_data_dir"):
                path = settings_of_subset[key]
                settings_of_subset[key] = path and Path(path).name
        datasets.append({**settings, "bucket_info": {"buckets": bucket_info}})
        for subset in dataset.subsets:
            inside = [image for image in images if image.subset is subset]
            name = Path(subset.place).name
            counts = {"n_repeats": subset.num_repeats, "img_count": len(inside)}
            (reg_dirs if subset.is_reg else dirs)[name] = counts
            tags = Counter(
                tag
                for image in inside
                for line in variants(image.caption or "", subset)
                for tag in split_tags(line, subset.caption_separator)
            )
            frequency[name] = dict(tags)
    images = catalogue.images
    return {
        "num_train_images": sum(image.repeats for image in images if not image.subset.is_reg),
        "num_reg_images": sum(image.repeats for image in images if image.subset.is_reg),
        "num_validation_images": len(catalogue.held_out),
        "datasets": json_shown(datasets),
        "tag_frequency": json_shown(frequency),
        "dataset_dirs": json_shown(dirs),
        "reg_dataset_dirs": json_shown(reg_dirs),
    }


def modelspec(
    options: MetadataOptions, *, title: str, resolution: tuple[int, int]
) -> dict[str, str]:
    """The modelspec.* entries the user and the data give (Stability's model metadata, 1.0.1).

    Architecture and implementation are the family's to add.
    """
    entries = {
        "sai_model_spec": "1.0.1",
        "title": options.metadata_title or title,
        "resolution": f"{resolution[0]}x{resolution[1]}",
        "date": datetime.now(timezone.utc).replace(microsecond=0).isoformat(),
        "author": options.metadata_author,
        "description": options.metadata_description,
        "license": options.metadata_license,
        "tags": options.metadata_tags,
        "usage_hint": options.metadata_usage_hint,
        "trigger_phrase": options.metadata_trigger_phrase,
        "merged_from": options.metadata_merged_from,
        "preprocessor": options.metadata_preprocessor,
        "is_negative_embedding": options.metadata_is_negative_embedding,
        "thumbnail": thumbnail(options.metadata_thumbnail),
    }
    return {
        f"modelspec.{name}": text(value) for name, value in entries.items() if value is not None
    }


def thumbnail(value: str | None) -> str | None:
    """A data URL as given, or a picture file turned into one."""
    if value is None or value.startswith("data:"):
        return value
    kind = mimetypes.guess_type(value)[0] or ""
    if not kind.startswith("image/") or not os.path.isfile(value):
        raise ConfigError(f"metadata_thumbnail = {value}: expected a picture file or a data: URL.")
    return f"data:{kind};base64,{base64.b64encode(Path(value).read_bytes()).decode()}"


class RunMetadata:
    """The metadata of a run's files: what is known at its start, and how far it has come."""

    def __init__(self, entries: Mapping[str, str], minimal: bool) -> None:
        """entries: from run_metadata, modelspec and the family; minimal: --no_metadata."""
        self.entries = dict(entries)
        self.minimal = minimal

    def at(self, state: TrainState) -> dict[str, str]:
        """The metadata of a file written now."""
        if self.minimal:
            return minimum(self.entries)
        return {
            **self.entries,
            "ss_steps": text(state.step),
            "ss_epoch": text(state.epoch + 1),
            "ss_training_finished_at": timestamp(),
        }


def of_session(entries: Mapping[str, str]) -> dict[str, str]:
    """What tells one run from another of the same settings; a resumed run keeps it."""
    return {key: entries[key] for key in SESSION_KEYS if key in entries}


def minimum(metadata: Mapping[str, str]) -> dict[str, str]:
    """What --no_metadata leaves: the entries without which other tools cannot use the file."""
    return {key: metadata[key] for key in MINIMUM_KEYS if key in metadata}


def timestamp() -> str:
    """Seconds since 1970, as sd-scripts writes start and end of a run."""
    return str(time.time())


def start_entries(
    cfg: TrainConfig,
    catalogue: Catalogue,
    plan: StepPlan,
    network: Any,
    optimizer: object,
    seed: int,
) -> dict[str, str]:
    """What is known of a run before its first step."""
    kind = type(optimizer)
    run = {
        "session_id": uuid.uuid4().int % 2**32,
        "training_started_at": timestamp(),
        "num_epochs": plan.epochs,
        "num_batches_per_epoch": plan.batches_per_epoch,
        "max_train_steps": plan.total_steps,
        "network_dim": network.dim,
        "network_alpha": network.alpha,
        "network_args": json.dumps(network.network_args),
        "seed": seed,
        "optimizer": f"{kind.__module__}.{kind.__name__}",
    }
    resolution = catalogue.group.datasets[0].resolution
    title = cfg.save.output_name or "last"
    return {
        **run_metadata(cfg, catalogue, run),
        **modelspec(cfg.metadata, title=title, resolution=resolution),
    }
