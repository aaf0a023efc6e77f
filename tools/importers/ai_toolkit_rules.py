"""ai-toolkit's keys: how each is read, and where it goes."""

from __future__ import annotations

from typing import Any

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
KINDS = {"lora": "lora", "locon": "lora", "lokr": "lokr", "dora": "dora"}
SMALL_FORMS = {
    **dict.fromkeys(("qfloat8", "float8"), "fp8_base"),
    **dict.fromkeys(("qint8", "int8", "uint8"), "int8_base"),
    **dict.fromkeys(("qint4", "int4", "uint4", "nf4"), "nf4_base"),
}
PROGRAM = idle("by it the program is run, not the training")
TEXT_ENCODER = idle("the text encoder is put away once texts are cached")
OTHER_LOSS = lost("the loss has no such part here", 1, "balanced")
PICTURES = lost("pictures are not used so here", 1, 0.0)
OF_OTHERS = lost("it is a file for another model", "", 0)
SCHEDULE = lost("lr_scheduler has no such setting here: see lr_scheduler_args")
UNUSED_PICTURES = (
    "flip_y mask_min_value control_path inpaint_path scale invert_mask clip_image_path "
    "unconditional_path poi random_scale num_frames "
    "shrink_video_to_frames do_i2v fps square_crop standardize_images augments augmentations "
    "extra_values"
)
UNUSED_LOSSES = (
    "content_or_style do_differential_guidance differential_guidance_scale snr_gamma min_snr_gamma "
    "linear_timesteps linear_timesteps2 prior_divergence correct_pred_norm"
)
RUN_KEYS = (
    "noise_scheduler skip_first_sample disable_sampling unload_text_encoder "
    "switch_boundary_every bypass_guidance_embedding force_first_sample"
)
OTHER_PREVIEWS = lost(
    "pictures are drawn as ComfyUI draws them: see sample_sampler", "flowmatch", True, 1
)


def model(value: Any) -> str:
    if "anima" not in text(value).lower():
        raise ValueError("expected the model of this trainer")
    return value


def extension(value: Any) -> str:
    """With its dot."""
    return f".{text(value).lstrip('.')}"


def on(target: str) -> Rule:
    return Rule(target, loosely(switch))


RULES = {
    "job": idle("the kind of job is told by the network"),
    "type": PROGRAM,
    "name": Rule("special.name", text),
    "training_folder": Rule("special.folder", text),
    "trigger_word": Rule("general.trigger_word", text),
    "other_processes": lost("the first process is imported"),
    "network.type": Rule("special.algo", choice(KINDS)),
    **many("network.linear network.rank", lambda n: Rule("train.network_dim", loosely(whole))),
    **many("network.linear_alpha network.alpha", lambda n: Rule("train.network_alpha", loosely(number))),
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
    "save.push_to_hub": on("special.push"),
    "save.hf_repo_id": Rule("special.repository", text),
    "save.hf_private": on("special.private"),
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
    "datasets[].alpha_mask": on("subsets.alpha_mask"),
    "datasets[].default_caption": Rule("subsets.class_tokens", text),
    "datasets[].trigger_word": Rule("subsets.trigger_word", text),
    "datasets[].loss_multiplier": Rule("subsets.loss_multiplier", number),
    "datasets[].is_reg": on("subsets.is_reg"),
    "datasets[].prior_reg": lost("is_reg = true with prior_preservation_weight learns the base's prediction"),
    "datasets[].cache_latents": on("train.cache_latents"),
    "datasets[].cache_latents_to_disk": on("train.cache_latents_to_disk"),
    **many(UNUSED_PICTURES, lambda name: PICTURES, "datasets[]."),
    "train.batch_size": Rule("special.batch_size", loosely(whole)),
    "train.steps": Rule("train.max_train_steps", loosely(whole)),
    "train.lr": Rule("train.learning_rate", loosely(number)),
    "train.unet_lr": Rule("special.unet_lr", loosely(number)),
    "train.text_encoder_lr": Rule("special.text_rate", loosely(number)),
    "train.train_text_encoder": on("special.trains_text"),
    "train.optimizer": Rule("special.optimizer_type", text),
    **many("train.gradient_accumulation train.gradient_accumulation_steps",
           lambda name: Rule("train.gradient_accumulation_steps", loosely(whole))),
    "train.gradient_checkpointing": on("train.gradient_checkpointing"),
    "train.dtype": Rule("train.mixed_precision", choice(TRAINED)),
    "train.max_grad_norm": Rule("train.max_grad_norm", number),
    "train.seed": Rule("train.seed", whole),
    "train.lr_scheduler": Rule("special.schedule", text),
    **many("warmup_steps num_warmup_steps", lambda name: Rule("train.lr_warmup_steps", loosely(whole)),
           "train.lr_scheduler_params."),
    "train.lr_scheduler_params.eta_min": Rule("special.floor", loosely(number)),
    **many("T_mult T_max T_0 total_iters num_cycles", lambda name: SCHEDULE, "train.lr_scheduler_params."),
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
    "train.diff_output_preservation": on("special.keeps_class"),
    "train.diff_output_preservation_multiplier": Rule("special.class_weight", loosely(number)),
    "train.diff_output_preservation_class": Rule("special.class_name", text),
    **many("train.blank_prompt_preservation train.blank_prompt_preservation_multiplier", lambda name: lost(
        "the base's prediction is kept for prompts that are not empty: see prior_preservation_prompts", 1)),
    **many(UNUSED_LOSSES, lambda name: OTHER_LOSS, "train."),
    **many(RUN_KEYS, lambda name: PROGRAM, "train."),
    "model.name_or_path": Rule("special.base", text),
    "model.vae_path": path_to("train.vae"),
    **many("model.te_name_or_path model.extras_name_or_path model.text_encoder_path",
           lambda name: path_to("train.qwen3")),
    "model.arch": Rule("special.model", model),
    "model.model_kwargs.train_text_conditioner": on("network.train_llm_adapter"),
    "model.quantize": on("special.small"),
    "model.qtype": Rule("special.form", text),
    **many("model.quantize_te model.qtype_te model.layer_offloading_text_encoder_percent",
           lambda name: TEXT_ENCODER),
    "model.low_vram": idle("one large model is in memory at a time here"),
    "model.layer_offloading": on("special.offloads"),
    "model.layer_offloading_transformer_percent": Rule("special.offloaded", loosely(number)),
    **many("model.compile model.block_compile", lambda name: on("train.compile")),
    "model.compile_fullgraph": on("train.compile_fullgraph"),
    **many("model.is_flux model.model_paths model.accuracy_recovery_adapter model.assistant_lora_path",
           lambda name: OF_OTHERS),
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
