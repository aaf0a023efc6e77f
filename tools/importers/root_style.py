"""The earlier trainer's single configuration file as a table: each key, its type, where it goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from library.errors import Problem
from library.settings.flags.optimizer import OptimizerOptions
from library.training.optimizers import is_schedule_free
from tools.importers.draft import Draft, Leaf
from tools.importers.machine import Source
from tools.importers.rules import Rule, lost, number, size, switch, text, whole


def switch_or_text(value: Any) -> bool:
    """Also the texts "true" and "false", which the earlier trainer took here."""
    words = {"true": True, "false": False}
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    return switch(value)


def repeats(value: Any) -> int:
    """Blank or 0 is once."""
    if isinstance(value, str) and not value.strip():
        return 1
    return whole(value) or 1


def targets(value: Any) -> str:
    """A text, or a list of texts as network_args has lists."""
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return ",".join(value)
    return text(value)


def network_type(value: Any) -> str:
    modules = {"lora": "networks.lora_anima", "lokr": "networks.lokr_anima"}
    name = text(value).strip().lower()
    if name in modules:
        return modules[name]
    raise ValueError(f"{value!r} is unknown. Choose one of {', '.join(modules)}")


RULES = {
    "model.transformer_path": Rule("train.anima_transformer", text, is_path=True),
    "model.vae_path": Rule("train.vae", text, is_path=True),
    "model.text_encoder_path": Rule("train.qwen", text, is_path=True),
    "model.t5_tokenizer_dir": Rule("special.t5_dir", text, is_path=True),
    "model.t5_tokenizer_path": Rule("special.t5_path", text, is_path=True),
    "lora.network_type": Rule("train.network_module", network_type),
    "lora.lora_rank": Rule("train.network_dim", whole),
    "lora.lora_alpha": Rule("train.network_alpha", number),
    "lora.lora_dropout": Rule("train.network_dropout", number),
    "lora.lora_targets": Rule("network.target_modules", targets),
    "lora.lokr_factor": Rule("network.lokr_factor", whole),
    "lora.lokr_full_matrix": Rule("network.lokr_full_matrix", switch_or_text),
    "lora.lokr_decompose_both": Rule("network.lokr_decompose_both", switch_or_text),
    "lora.lokr_rank_dropout": Rule("network.lokr_rank_dropout", number),
    "lora.lokr_module_dropout": Rule("network.lokr_module_dropout", number),
    "lora.lora_name": Rule("special.lora_name", text),
    "output.output_dir": Rule("train.output_dir", text, is_path=True),
    "output.output_name": Rule("train.output_name", text),
    "output.save_every": Rule("train.save_every_n_steps", whole),
    "output.save_state": Rule("train.save_state", switch),
    "training.max_steps": Rule("special.max_steps", whole),
    "training.epochs": Rule("special.epochs", whole),
    "training.grad_accum": Rule("train.gradient_accumulation_steps", whole),
    "training.learning_rate": Rule("train.learning_rate", number),
    "training.mixed_precision": Rule("train.mixed_precision", text),
    "training.seed": Rule("train.seed", whole),
    "training.resume": Rule("train.resume", text, is_path=True),
    "training.grad_checkpoint": Rule("train.gradient_checkpointing", switch),
    "training.num_workers": Rule("train.max_data_loader_n_workers", whole),
    "training.persistent_data_loader_workers": Rule("train.persistent_data_loader_workers", switch),
    "training.xformers": Rule("train.xformers", switch),
    "training.seq_len": Rule("train.anima_seq_len", whole),
    "training.noise_offset": Rule("train.anima_noise_offset", number),
    "training.caption_tag_dropout_rate": Rule("general.caption_tag_dropout_rate", number),
    "training.lr_scheduler": Rule("special.lr_scheduler", text),
    "training.lr_min_ratio": Rule("special.lr_min_ratio", number),
    "training.lr_warmup_steps": Rule("special.lr_warmup_steps", whole),
    "training.lr_warmup_ratio": Rule("special.lr_warmup_ratio", number),
    "training.lr_scheduler_num_cycles": Rule("train.lr_scheduler_num_cycles", number),
    "training.batch_size": Rule("datasets.batch_size", whole),
    "optimizer.type": Rule("train.optimizer_type", text),
    "optimizer.weight_decay": Rule("optimizer.weight_decay", number),
    "optimizer.eps": Rule("optimizer.eps", number),
    "optimizer.beta1": Rule("special.beta1", number),
    "optimizer.beta2": Rule("special.beta2", number),
    "dataset.data_dir": Rule("subsets.image_dir", text, is_path=True),
    "dataset.repeats": Rule("subsets.num_repeats", repeats, blank=True),
    "dataset.resolution": Rule("datasets.resolution", size),
    "dataset.enable_bucket": Rule("datasets.enable_bucket", switch),
    "dataset.min_reso": Rule("datasets.min_bucket_reso", whole),
    "dataset.max_reso": Rule("datasets.max_bucket_reso", whole),
    "dataset.reso_step": Rule("datasets.bucket_reso_steps", whole),
    "dataset.shuffle_caption": Rule("general.shuffle_caption", switch),
    "dataset.keep_tokens": Rule("general.keep_tokens", whole),
    "dataset.keep_tokens_separator": Rule("general.keep_tokens_separator", text),
    "dataset.caption_extension": Rule("general.caption_extension", text),
    "dataset.flip_augment": Rule("general.flip_aug", switch),
    "dataset.cache_latents": Rule("train.cache_latents", switch),
}
REQUIRED = {
    "model.transformer_path": "the DiT's file",
    "model.vae_path": "the VAE's file",
    "model.text_encoder_path": "the Qwen3-0.6B file or folder",
    "dataset.data_dir": "the folder with the pictures",
    "dataset.resolution": "for example 1024",
    "output.output_dir": "the folder for the trained files",
}
UNSUPPORTED = {
    "output.save_state_every": "save_state = true writes a state with every saved file",
    "training.auto_install": "pip install -r requirements.txt",
    "training.train_parts": "network_args: target_modules, exclude_patterns",
    "training.text_cache_size": "cache_text_encoder_outputs = true",
    "training.log_every": "log_every_n_steps",
    "training.max_token_length": "anima_seq_len",
    "dataset.cache_dir": "caches lie in _cache beside the pictures",
    "dataset.max_ar": "max_ar in dataset.toml, which leaves wider pictures out",
}
UNSUPPORTED_SECTIONS = {
    "monitor": "the anima_monitor_... options",
    "wandb": 'log_with = "wandb", wandb_run_name',
}
SECTIONS = ("model", "dataset", "training", "optimizer", "lora", "output")


ALL_RULES = RULES | {name: lost(f"use {instead}") for name, instead in UNSUPPORTED.items()}


def resolved(path: str, folders: Sequence[Path]) -> str:
    """A path that holds from anywhere, with / on every system."""
    windows = len(path) > 2 and path[1] == ":" and path[2] in "\\/"
    if windows:  # absolute already, though perhaps not on this system
        return path.replace("\\", "/")
    return (folders[0] / Path(path).expanduser()).resolve().as_posix()


def settle(draft: Draft) -> None:
    """What depends on several keys, and what has to be there."""
    for name, what in REQUIRED.items():
        table, _, key = RULES[name].target.partition(".")
        told = any(problem.where == name for problem in draft.problems)
        if key not in draft.table(table) and not told:
            draft.problems.append(Problem(f"is missing: {what}.", name))
    first_of(draft, ("t5_dir", "t5_path"), "train.t5_tokenizer_dir")
    if "t5_tokenizer_dir" not in draft.train:
        message = "both missing: the folder of the T5 tokenizer. Set one."
        where = "model.t5_tokenizer_dir, model.t5_tokenizer_path"
        draft.problems.append(Problem(message, where))
    if "anima_transformer" in draft.train:
        draft.train["pretrained_model_name_or_path"] = draft.train["anima_transformer"]
    if (given := draft.take("lora_name")) and "output_name" in draft.train:
        draft.lose(given.leaf, "output.output_name is set")
    elif given:
        draft.put(given.leaf, "train.output_name", given.value)
    settle_length(draft)
    datasets = draft.table("datasets")
    if {"min_bucket_reso", "max_bucket_reso", "bucket_reso_steps"} & datasets.keys():
        datasets.setdefault("enable_bucket", True)
    settle_optimizer(draft)


def first_of(draft: Draft, names: Sequence[str], target: str) -> None:
    """The first of the keys that was given, into one place."""
    for waiting in filter(None, [draft.take(name) for name in names]):
        if target.partition(".")[2] in draft.train:
            draft.lose(waiting.leaf, f"{target.partition('.')[2]} is set already")
        else:
            draft.put(waiting.leaf, target, waiting.value)


def settle_length(draft: Draft) -> None:
    """Steps, where there are any; else epochs."""
    steps, epochs = draft.take("max_steps"), draft.take("epochs")
    if steps and steps.value > 0:
        draft.put(steps.leaf, "train.max_train_steps", steps.value)
    if epochs and "max_train_steps" not in draft.train:
        draft.put(epochs.leaf, "train.max_train_epochs", epochs.value)


def settle_optimizer(draft: Draft) -> None:
    """The betas, and the schedule as far as the optimizer allows one."""
    first, second = draft.take("beta1"), draft.take("beta2")
    if first and second:
        betas = f"({first.value!r},{second.value!r})"
        draft.put(first.leaf, "optimizer.betas", betas)
        draft.put(second.leaf, "optimizer.betas", betas)
    elif first or second:
        message = "optimizer.beta1 and optimizer.beta2 go together. Set both or neither."
        draft.problems.append(Problem(message, "optimizer"))
    schedule, ratio = draft.take("lr_scheduler"), draft.take("lr_min_ratio")
    if is_schedule_free(OptimizerOptions(optimizer_type=draft.train.get("optimizer_type", ""))):
        no_schedule(draft, schedule.value if schedule else None, ratio.value if ratio else 0)
        return
    name = schedule.value if schedule else None
    if schedule and name == "cosine" and ratio and ratio.value > 0:
        draft.put(schedule.leaf, "train.lr_scheduler", "cosine_with_min_lr")
        draft.put(ratio.leaf, "train.lr_scheduler_min_lr_ratio", ratio.value)
    elif schedule:
        draft.put(schedule.leaf, "train.lr_scheduler", name)
    if ratio and ratio.value > 0 and name != "cosine":
        message = 'use lr_scheduler = "cosine_with_min_lr"; other schedules go to zero or stay'
        draft.lose(Leaf("", f"training.lr_min_ratio with {name}", ratio.value), message)
    first_of(draft, ("lr_warmup_steps", "lr_warmup_ratio"), "train.lr_warmup_steps")


def no_schedule(draft: Draft, schedule: str | None, ratio: float) -> None:
    """An optimizer that schedules itself: what was asked for beside it is told."""
    warmup = [draft.take(name) for name in ("lr_warmup_steps", "lr_warmup_ratio")]
    given = next((each.value for each in warmup if each), None)
    if schedule not in (None, "constant") or given or ratio > 0:
        message = (
            f"{draft.train['optimizer_type']} schedules itself and takes none; "
            'lr_scheduler = "constant" is written'
        )
        draft.lose(Leaf("", "training.lr_scheduler, lr_min_ratio and warm-up", schedule), message)
    draft.train["lr_scheduler"] = "constant"


SOURCE = Source("the earlier trainer", ALL_RULES, settle, paths=resolved)
