"""ai-toolkit: the first process of its YAML (or JSON) job."""

from __future__ import annotations

from typing import Any

from library.errors import ConfigError, Problem
from tools.importers.draft import KEPT, UNSET, Draft, Leaf
from tools.importers.machine import Document, Nearby, Source
from tools.importers.rules import (
    Rule,
    choice,
    idle,
    loosely,
    lost,
    many,
    number,
    path_to,
    sizes,
    switch,
    text,
    whole,
)
from tools.importers.shared import WHOLE_MODEL, literal, settle_shared

SAVED = {
    "float16": "fp16",
    "fp16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "float32": "float",
    "fp32": "float",
}
TRAINED = {**SAVED, "float32": "no", "fp32": "no"}
LOSSES = {"mse": "l2", "mae": "l1"}
PROGRAM = idle("by it the program is run, not the training")
OTHER_LOSS = lost("the loss has no such part here", 1, "balanced")
SMALL = lost("the small form of the frozen weights is int8_base here", "qfloat8", "float8")
PICTURES = lost("pictures are not used so here", 1, 0.0)
PROMPT_OPTIONS = {"width": "--w", "height": "--h", "sample_steps": "--s", "guidance_scale": "--l"}


def model(value: Any) -> str:
    if "anima" not in text(value).lower():
        raise ValueError("expected the model of this trainer")
    return value


def extension(value: Any) -> str:
    """With its dot."""
    return f".{text(value).lstrip('.')}"


def on(target: str) -> Rule:
    return Rule(target, loosely(switch))


UNUSED_PICTURES = (
    "flip_y mask_min_value control_path inpaint_path scale invert_mask clip_image_path "
    "unconditional_path poi random_scale alpha_mask prior_reg num_frames "
    "shrink_video_to_frames do_i2v fps square_crop standardize_images augments augmentations "
    "extra_values"
)
UNUSED_LOSSES = (
    "content_or_style diff_output_preservation diff_output_preservation_multiplier "
    "diff_output_preservation_class blank_prompt_preservation "
    "blank_prompt_preservation_multiplier do_differential_guidance "
    "differential_guidance_scale snr_gamma min_snr_gamma linear_timesteps linear_timesteps2 "
    "prior_divergence correct_pred_norm"
)
RUN_KEYS = (
    "noise_scheduler skip_first_sample disable_sampling unload_text_encoder "
    "switch_boundary_every bypass_guidance_embedding force_first_sample"
)
OTHER_PREVIEWS = lost(
    "pictures are drawn as ComfyUI draws them: see sample_sampler", "flowmatch", True, 1
)
RULES = {
    "job": idle("the kind of job is told by the network"),
    "type": PROGRAM,
    "name": Rule("special.name", text),
    "training_folder": Rule("special.folder", text),
    "trigger_word": Rule("general.trigger_word", text),
    "other_processes": lost("the first process is imported"),
    "network.type": Rule("special.algo", choice({"lora": "lora", "lokr": "lokr"})),
    "network.linear": Rule("train.network_dim", loosely(whole)),
    "network.linear_alpha": Rule("train.network_alpha", loosely(number)),
    "network.dropout": Rule("train.network_dropout", number),
    "network.lokr_full_rank": on("network.lokr_full_matrix"),
    "network.lokr_factor": Rule("network.lokr_factor", loosely(whole)),
    **many("network.conv network.conv_alpha", lambda n: lost("the model has no convolution to train")),
    "network.pretrained_lora_path": path_to("train.network_weights"),
    "network.network_kwargs": lost("targets are told by network_args: target_modules, exclude_patterns"),
    "network.transformer_only": PROGRAM,
    "save.dtype": Rule("train.save_precision", choice(SAVED)),
    "save.save_every": Rule("train.save_every_n_steps", loosely(whole)),
    "save.max_step_saves_to_keep": Rule("special.keep", loosely(whole)),
    "save.save_format": lost("files are safetensors", "safetensors", "diffusers"),
    **many("save.push_to_hub save.hf_repo_id save.hf_private", lambda n: lost("see huggingface_repo_id")),
    "datasets[].folder_path": path_to("subsets.image_dir"),
    "datasets[].dataset_path": path_to("subsets.image_dir"),
    "datasets[].caption_ext": Rule("subsets.caption_extension", extension),
    "datasets[].resolution": Rule("of_subset.resolutions", sizes),
    "datasets[].buckets": on("of_subset.enable_bucket"),
    "datasets[].bucket_tolerance": Rule("of_subset.bucket_reso_steps", loosely(whole)),
    "datasets[].network_weight": Rule("of_subset.network_multiplier", number),
    "datasets[].num_repeats": Rule("subsets.num_repeats", loosely(whole)),
    "datasets[].caption_dropout_rate": Rule("subsets.caption_dropout_rate", number),
    "datasets[].shuffle_tokens": on("subsets.shuffle_caption"),
    "datasets[].keep_tokens": Rule("subsets.keep_tokens", loosely(whole)),
    "datasets[].token_dropout_rate": Rule("subsets.caption_tag_dropout_rate", number),
    "datasets[].flip_x": on("subsets.flip_aug"),
    "datasets[].random_crop": on("subsets.random_crop"),
    "datasets[].mask_path": path_to("subsets.mask_path"),
    "datasets[].default_caption": Rule("subsets.class_tokens", text),
    "datasets[].trigger_word": Rule("subsets.trigger_word", text),
    "datasets[].loss_multiplier": Rule("subsets.loss_multiplier", number),
    "datasets[].is_reg": on("subsets.is_reg"),
    "datasets[].cache_latents": on("train.cache_latents"),
    "datasets[].cache_latents_to_disk": on("train.cache_latents_to_disk"),
    **many(
        UNUSED_PICTURES, lambda name: PICTURES, "datasets[]."
    ),
    "train.batch_size": Rule("special.batch_size", loosely(whole)),
    "train.steps": Rule("train.max_train_steps", loosely(whole)),
    "train.lr": Rule("train.learning_rate", loosely(number)),
    "train.optimizer": Rule("special.optimizer_type", text),
    **many("train.gradient_accumulation train.gradient_accumulation_steps",
           lambda name: Rule("train.gradient_accumulation_steps", loosely(whole))),
    "train.gradient_checkpointing": on("train.gradient_checkpointing"),
    "train.dtype": Rule("train.mixed_precision", choice(TRAINED)),
    "train.max_grad_norm": Rule("train.max_grad_norm", number),
    "train.seed": Rule("train.seed", whole),
    "train.lr_scheduler": Rule("special.schedule", text),
    "train.lr_scheduler_params": lost("see lr_warmup_steps and the options beside it"),
    "train.loss_type": Rule("train.loss_type", choice(LOSSES)),
    "train.timestep_type": Rule("special.timesteps", text),
    "train.min_denoising_steps": Rule("train.min_timestep", loosely(whole), asks_not=(0,)),
    "train.max_denoising_steps": Rule("train.max_timestep", loosely(whole), asks_not=(999, 1000)),
    "train.noise_offset": Rule("train.noise_offset", number, asks_not=(0,)),
    "train.reg_weight": Rule("train.prior_loss_weight", number),
    "train.cache_text_embeddings": on("train.cache_text_encoder_outputs"),
    "train.ema_config.use_ema": on("special.ema"),
    "train.ema_config.ema_decay": Rule("special.ema_decay", number),
    "train.train_unet": lost("it always trains", True),
    "train.train_text_encoder": lost("the text encoder does not train with that program's files here"),
    **many(
        UNUSED_LOSSES, lambda name: OTHER_LOSS, "train."
    ),
    **many(
        RUN_KEYS, lambda name: PROGRAM, "train."
    ),
    "model.name_or_path": Rule("special.base", text),
    "model.vae_path": path_to("train.vae"),
    "model.te_name_or_path": path_to("train.qwen3"),
    "model.extras_name_or_path": path_to("train.qwen3"),
    "model.arch": Rule("special.model", model),
    "model.model_kwargs.train_text_conditioner": on("network.train_llm_adapter"),
    **many(
        "model.quantize model.qtype model.quantize_te model.qtype_te model.low_vram "
        "model.layer_offloading model.layer_offloading_transformer_percent "
        "model.layer_offloading_text_encoder_percent model.is_flux model.model_paths "
        "model.accuracy_recovery_adapter model.assistant_lora_path",
        lambda name: SMALL,
    ),
    "sample.sample_every": Rule("train.sample_every_n_steps", loosely(whole)),
    **many(
        "prompts samples neg width height seed sample_steps guidance_scale",
        lambda name: Rule(f"special.{name}"), "sample.",
    ),
    **many("sampler walk_seed num_frames fps", lambda name: OTHER_PREVIEWS, "sample."),
    "logging.log_every": Rule("train.log_every_n_steps", loosely(whole)),
    "logging.use_wandb": on("special.wandb"),
    "logging.project_name": Rule("train.log_tracker_name", text),
    "logging.run_name": Rule("train.wandb_run_name", text),
    **many("logging.verbose logging.use_ui_logger device performance_log_every sqlite_db_path "
           "meta.name meta.version slider", lambda name: PROGRAM),
}  # fmt: skip


def prepare(document: Document, nearby: Nearby) -> Document:
    """The first process with the job's name. Raises ConfigError where there is none."""
    config = document.get("config")
    processes = config.get("process") if isinstance(config, dict) else None
    if not isinstance(processes, list) or not processes or not isinstance(processes[0], dict):
        raise ConfigError("has no config.process: expected a list of processes.")
    assert isinstance(config, dict), "its process was found"
    outer = {key: value for key, value in document.items() if key != "config"}
    outer |= {key: value for key, value in config.items() if key != "process"}
    others = [f"process {n}" for n in range(1, len(processes))]
    return {**outer, **processes[0], **({"other_processes": others} if others else {})}


def other(leaf: Leaf) -> Rule | None:
    """The arguments of the optimizer."""
    prefix = "train.optimizer_params."
    key = leaf.name.removeprefix(prefix)
    is_argument = leaf.name.startswith(prefix) and key.isidentifier()
    return Rule(f"optimizer.{key}", literal) if is_argument else None


def settle(draft: Draft) -> None:
    """What depends on several keys, and what is trained there unasked."""
    if found := draft.take("model"):
        draft.find(KEPT, found.leaf)
    if not draft.has("algo"):
        draft.problems.append(Problem(WHOLE_MODEL, "network.type"))
    if base := draft.take("base"):
        if base.value.endswith(".safetensors"):
            draft.put(base.leaf, "train.pretrained_model_name_or_path", base.value)
        else:
            message = "name the three files: pretrained_model_name_or_path, vae, qwen3"
            draft.lose(base.leaf, message)
    if batch := draft.take("batch_size"):
        draft.put(batch.leaf, "train.train_batch_size", batch.value)
    settle_files(draft)
    settle_noise(draft)
    settle_prompts(draft)
    if draft.value("algo") == "lokr":
        draft.add("network.lokr_full_matrix", True, "the default there")
    draft.add("general.enable_bucket", True, "buckets are made there unless told otherwise")
    settle_shared(draft, unet_only=True)


def settle_files(draft: Draft) -> None:
    """training_folder/name is the folder; a number of files to keep is a number of steps here."""
    name, folder = draft.take("name"), draft.take("folder")
    if name:
        draft.put(name.leaf, "train.output_name", name.value)
    if folder:
        parts = [folder.value.replace("\\", "/").rstrip("/"), *([name.value] if name else [])]
        draft.put(folder.leaf, "train.output_dir", "/".join(parts))
    every = draft.train.get("save_every_n_steps")
    if keep := draft.take("keep"):
        if every:
            draft.put(
                keep.leaf, "train.save_last_n_steps", keep.value * every, "a number of files there"
            )
        else:
            draft.lose(keep.leaf, "save_every is not set")
    ema, decay = draft.take("ema"), draft.take("ema_decay")
    is_on = bool(ema and ema.value)
    if ema:
        draft.find("converted" if is_on else UNSET, ema.leaf, "ema_decay" if is_on else "")
    if decay and is_on:
        draft.put(decay.leaf, "train.ema_decay", decay.value)
    elif decay:
        draft.find(UNSET, decay.leaf, why="use_ema is off")
    if wandb := draft.take("wandb"):
        draft.put(wandb.leaf, "train.log_with", "wandb" if wandb.value else "tensorboard")


def settle_noise(draft: Draft) -> None:
    """How sigma is drawn, and the schedule."""
    if schedule := draft.take("schedule"):
        draft.put(schedule.leaf, "train.lr_scheduler", schedule.value)
    timesteps = draft.take("timesteps")
    word = timesteps.value if timesteps else "weighted"
    if timesteps and word == "shift":
        written = {"train.timestep_sampling": "shift", "train.discrete_flow_shift": 3.0}
        draft.put(timesteps.leaf, written)
    elif timesteps and word in ("sigmoid", "linear"):
        value = "uniform" if word == "linear" else word
        draft.put(timesteps.leaf, "train.timestep_sampling", value)
    elif timesteps:
        draft.lose(timesteps.leaf, "no exact counterpart; timestep_sampling stays sigmoid")
    else:
        draft.notes.append("timestep_type is weighted there unless given: no exact counterpart.")


def settle_prompts(draft: Draft) -> None:
    """Prompts with their size, seed, steps and guidance, a line each."""
    found = {name: draft.take(f"sample.{name}") for name in (
        "prompts", "samples", "neg", "seed", *PROMPT_OPTIONS)}  # fmt: skip
    ending = [
        f"{PROMPT_OPTIONS[name]} {waiting.value}"
        for name, waiting in found.items()
        if name in PROMPT_OPTIONS and waiting
    ]
    ending += [f"--d {seed.value}"] if (seed := found["seed"]) else []
    ending += [f"--n {neg.value}"] if (neg := found["neg"]) else []
    lines = []
    for listed in filter(None, (found["prompts"], found["samples"])):
        words = listed.value if isinstance(listed.value, list) else [listed.value]
        prompts = [str(w.get("prompt", "") if isinstance(w, dict) else w) for w in words]
        lines += [" ".join([" ".join(prompt.split()), *ending]) for prompt in prompts if prompt]
    for waiting in filter(None, found.values()):
        if lines:
            draft.write(
                waiting.leaf, "sample_prompts", "sample_prompts.txt", "\n".join(lines) + "\n"
            )
        else:
            draft.find(UNSET, waiting.leaf, why="there are no prompts")


def knows(document: Any) -> bool:
    """Whether a document is a job with a list of processes."""
    config = document.get("config") if isinstance(document, dict) else None
    return isinstance(config, dict) and isinstance(config.get("process"), list)


SOURCE = Source("ai-toolkit", RULES, settle, prepare, other)
