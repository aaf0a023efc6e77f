"""The settings that must agree between a state and the run that goes on from it.

critical:   changes what is learned; a difference is an error unless it is allowed by name
soft:       changes bits, speed or places; a difference is told
changeable: learning rates and the length of the run; a difference is applied and told
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from library.errors import Problem
from library.settings.options import all_flags, flags_of
from library.settings.run_config import GROUPS
from library.training.optimizers import class_path
from library.utils import log_lines, name_bytes, nearest_name, sha256_of_file

if TYPE_CHECKING:
    from library.settings.flags.resume import ResumeOptions
    from library.settings.run_config import TrainConfig
    from networks.trained import Trained

logger = logging.getLogger(__name__)

OPTIMIZER_FIELDS = ("optimizer_type", "optimizer_args", "parameter_groups")
PATH_ENDINGS = ("_dir", "_file", "_path")
KINDS = ("critical", "soft", "changeable")
LONGEST_SHOWN = 60
DEFAULTS = {
    name: flag.default
    for name, flag in all_flags(GROUPS.values()).items()
    if flag.default is not None
} | {"int8_compute": False, "modulation_storage": None}
"""What an option was that a state does not name: there was none, or it had no effect."""


@dataclass(frozen=True)
class Snapshot:
    """Fields by kind, with values as JSON has them. Names are those of the flags where there is one."""

    critical: dict[str, Any] = field(default_factory=dict)
    soft: dict[str, Any] = field(default_factory=dict)
    changeable: dict[str, Any] = field(default_factory=dict)

    def document(self, schema: str) -> dict[str, Any]:
        """What is written to resume_snapshot.json."""
        made = datetime.now(timezone.utc).replace(microsecond=0).isoformat()
        kinds = {kind: getattr(self, kind) for kind in KINDS}
        return json.loads(json.dumps({"schema": schema, "made": made, **kinds}, default=str))


def run_fields(
    cfg: TrainConfig, catalogue: Any, network: Trained, *, seed: int, processes: int
) -> Snapshot:
    """What every family's snapshot holds. network: may be without memory, on the meta device."""
    arguments = dict(network.options())
    idle = cfg.idle()
    rates = {name: arguments.pop(name) for name in list(arguments) if name.endswith("_lr")}
    critical = {
        **network_fields(cfg, network, arguments),
        **optimizer_fields(cfg, network),
        **flags(cfg.schedule, idle),
        "gradient_accumulation_steps": cfg.loop.gradient_accumulation_steps,
        "num_processes": processes,
        "seed": seed,
        "mixed_precision": cfg.precision.mixed_precision,
        "full_bf16": cfg.precision.full_bf16,
        "stochastic_rounding": cfg.precision.full_bf16 and cfg.precision.stochastic_rounding,
        "fp8_base": cfg.precision.fp8_base,
        "fp8_base_unet": cfg.precision.fp8_base_unet and not cfg.precision.fp8_base,
        "int8_base": cfg.precision.int8_base,
        "nf4_base": cfg.precision.nf4_base,
        "int8_compute": cfg.precision.stored_form == "int8_rotated",
        "no_half_vae": cfg.cache.no_half_vae,
        "weighted_captions": cfg.data.weighted_captions,
        **flags(cfg.flow, idle),
        **flags(cfg.loss, idle),
        "prior_preservation_prompts": list(cfg.loss.prior_prompts) or None,
        **dataset_fields(catalogue),
    }
    changeable = {
        "learning_rate": cfg.optimizer.learning_rate,
        "unet_lr": cfg.network.unet_lr,
        **rates,
        "ema_decay": cfg.average.ema_decay,
        "ema_start_step": cfg.average.ema_start_step,
        "max_train_steps": cfg.loop.max_train_steps,
        "max_train_epochs": cfg.loop.max_train_epochs,
    }
    return Snapshot(critical, soft_fields(cfg), changeable)


def soft_fields(cfg: TrainConfig) -> dict[str, Any]:
    return {
        "fused_backward_pass": cfg.whole and cfg.optimizer.fused_backward_pass,
        "gradient_checkpointing": cfg.loop.gradient_checkpointing,
        "cpu_offload_checkpointing": cfg.loop.cpu_offload_checkpointing,
        "checkpoint_every_n": cfg.loop.checkpoint_every_n,
        "recompute": cfg.loop.recompute,
        "blocks_to_swap": cfg.loop.blocks_to_swap,
        "vram_target": cfg.loop.vram_target,
        "cache_latents": cfg.cache.cache_latents,
        "cache_text_encoder_outputs": cfg.cache.cache_text_encoder_outputs,
        "text_encoder_batch_size": cfg.cache.captions_at_once,
        "deterministic": cfg.precision.deterministic,
        "cuda_allow_tf32": cfg.precision.cuda_allow_tf32,
        "cuda_cudnn_benchmark": cfg.precision.cuda_cudnn_benchmark,
        "compile": cfg.precision.compile,
        "compile_backend": cfg.precision.compile_backend,
        "compile_mode": cfg.precision.compile_mode,
        "compile_dynamic": cfg.precision.compile_dynamic,
        "cuda_graphs": cfg.precision.cuda_graphs,
        "activation_memory_budget": cfg.precision.activation_memory_budget,
        "save_precision": cfg.save.save_precision,
        "output_dir": cfg.save.output_dir,
        "output_name": cfg.save.output_name,
        "dataset_config": cfg.files.dataset_config,
        "network_weights": cfg.network.network_weights,
        **machine_fields(),
    }


def flags(group: Any, idle: set[str]) -> dict[str, Any]:
    """A group's options by name, without those that have no effect, or none beside the others."""
    without = idle | {flag.dest for flag in flags_of(type(group)) if flag.ignored or flag.refused}
    return {f.name: getattr(group, f.name) for f in fields(group) if f.name not in without}


def network_fields(
    cfg: TrainConfig, network: Trained, arguments: Mapping[str, str]
) -> dict[str, Any]:
    """What is trained: its kind, where it is and how large, and what is merged under it."""
    options = cfg.network
    strengths = chain(options.base_weights_multiplier or (), repeat(1.0))
    merged = zip(options.base_weights or (), strengths)
    of_adapters = {
        "network_module": options.network_module,
        **network.sizes(),
        "network_dropout": options.network_dropout,
    }
    return {
        **(of_adapters if options.network_module else {}),
        **{
            f"network_args.{k}": v
            for k, v in arguments.items()
            if k not in ("norm_export", "verbose")
        },
        "targets": network.described(),
        "base_weights": [[sha256_of_file(file)[:16], strength] for file, strength in merged],
    }


def optimizer_fields(cfg: TrainConfig, network: Trained) -> dict[str, Any]:
    _, groups = network.prepare_optimizer_params(
        None, cfg.network.unet_lr, cfg.optimizer.learning_rate
    )
    return {
        "optimizer_type": class_path(cfg.optimizer),
        "optimizer_args": sorted(cfg.optimizer.optimizer_args or ()),
        "max_grad_norm": cfg.optimizer.max_grad_norm,
        "parameter_groups": groups,
    }


def dataset_fields(catalogue: Any) -> dict[str, Any]:
    """The pictures, and the settings of datasets and subsets that are not at their default."""
    found: dict[str, Any] = {
        "dataset.pictures": len(catalogue.images),
        "dataset.samples": catalogue.num_samples,
        "dataset.fingerprint": catalogue.fingerprint(),
    }
    for number, dataset in enumerate(catalogue.group.datasets):
        place = f"dataset.{number}"
        found |= {f"{place}.{k}": v for k, v in changed(dataset).items() if k != "subsets"}
        for index, subset in enumerate(dataset.subsets):
            found |= {f"{place}.subset.{index}.{k}": v for k, v in changed(subset).items()}
    return found


def changed(settings: Any) -> dict[str, Any]:
    """The fields that are not at their default; places on the disk are left out."""
    return {
        f.name: getattr(settings, f.name)
        for f in fields(settings)
        if getattr(settings, f.name) != f.default and not f.name.endswith(PATH_ENDINGS)
    }


def machine_fields() -> dict[str, str]:
    """What decides the last bits of a result."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {"torch": torch.__version__, "device": device}


def content_hash(path: str | Path) -> str:
    """The sha256 of a file, or of the names and contents of a folder's files."""
    path = Path(path)
    if not path.is_dir():
        return sha256_of_file(path)
    parts = [f"{f.name} {sha256_of_file(f)}" for f in sorted(path.iterdir()) if f.is_file()]
    return hashlib.sha256(name_bytes("\n".join(parts))).hexdigest()


def compare(
    saved: Mapping[str, Any], own: Mapping[str, Any], options: ResumeOptions, *, strict: bool
) -> list[Problem]:
    """What keeps the run from going on from the state, all at once; the rest is logged.

    saved, own: documents of Snapshot
    """
    differences = {kind: differences_of(saved, own, kind) for kind in KINDS}
    allowed, problems = read_allowed(options.resume_allow or (), saved, own)
    if options.resume_ignore_optimizer_mismatch:
        allowed += OPTIMIZER_FIELDS
    forbidden = {}
    for kind, found in differences.items():
        for name, text in found.items():
            if is_allowed(name, allowed):
                logger.warning("%s: %s; allowed.", name, text)
            elif kind == "critical" or strict:
                forbidden[name] = text
            else:
                ending = "applied from here on" if kind == "changeable" else "taken as it is now"
                logger.info("%s: %s; %s.", name, text, ending)
    if "num_processes" in differences["critical"] and "num_processes" in allowed:
        log_lines(logger, describe_processes(saved, own), logging.WARNING)
    return problems + [Problem(f"{text}.", name) for name, text in forbidden.items()]


def differences_of(saved: Mapping[str, Any], own: Mapping[str, Any], kind: str) -> dict[str, str]:
    """name -> both values, of the fields that differ. A kind is the present program's choice."""
    before = {name: value for each in KINDS for name, value in dict(saved.get(each, {})).items()}
    now = dict(own[kind])
    names = list(now)
    if kind == "critical":  # a dataset's setting that is back at its default has no field now
        others = {name for each in KINDS for name in own[each]}
        names += [name for name in before if name not in others and name.startswith("dataset.")]
        before = {name: DEFAULTS[name] for name in now if name in DEFAULTS} | before
    found = {}
    for name in names:
        if name not in before and not name.startswith("dataset."):
            continue  # written by a version that did not know the field
        was, is_now = (
            shown(values[name]) if name in values else "the default" for values in (before, now)
        )
        if before.get(name) != now.get(name):
            found[name] = f"{was} in the state, {is_now} now"
    return found


def shown(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def read_allowed(
    given: Sequence[str], saved: Mapping[str, Any], own: Mapping[str, Any]
) -> tuple[tuple[str, ...], list[Problem]]:
    """The names of --resume_allow, separated by commas or blanks; problems for unknown ones."""
    names = tuple(name.strip() for text in given for name in text.split(",") if name.strip())
    known = {name for document in (saved, own) for kind in KINDS for name in document.get(kind, {})}
    problems = []
    for name in names:
        if not any(is_allowed(each, (name,)) for each in known):
            near = nearest_name(name, known)
            hint = f"Did you mean {near}?" if near else f"There are: {', '.join(sorted(known))}."
            problems.append(Problem(f"no such field. {hint}", f"resume_allow {name}"))
    return names, problems


def is_allowed(name: str, allowed: Sequence[str]) -> bool:
    """Whether a field is named, or what it is a part of: `dataset` allows dataset.0.batch_size."""
    return any(name == each or name.startswith(f"{each}.") for each in allowed)


def heading(folder: Path, problems: Sequence[Problem]) -> str:
    """What the differences are of, and what can be done about them."""
    names = [p.where for p in problems if not p.where.startswith("resume_allow ")]
    text = f"{folder}, which does not fit this run. Set them as they were, or allow them knowingly"
    text = f"{text}: --resume_allow {','.join(names)}" if names else f"{folder} and this run"
    if set(names) & set(OPTIMIZER_FIELDS):
        text += " (--resume_ignore_optimizer_mismatch: with a fresh optimizer)"
    return text


def describe_processes(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """What another number of processes changes."""
    before, now = (document["critical"]["num_processes"] for document in (saved, own))
    times = f"a step is {now / before:g} times as many pictures, an epoch {before / now:g} times as"
    return [
        f"{before} processes before, {now} now: {times} many steps; the rates stay as they are.",
        "The epoch goes on after the same pictures, but for a batch per process; dropout is another.",
    ]
