"""What other trainers of this model call an option, and where it stands here.

A table, not logic. Nearest letters mislead where the meaning is known: `text_encoder_file` is `qwen`,
not `text_encoder_lr`. A name without counterpart has no suggestion.
"""

from __future__ import annotations

FLAGS = {
    # models
    "dit_path": "pretrained_model_name_or_path",
    "dit": "pretrained_model_name_or_path",
    "transformer_path": "pretrained_model_name_or_path",
    "diffusion_model": "pretrained_model_name_or_path",
    "unet_path": "pretrained_model_name_or_path",
    "model_path": "pretrained_model_name_or_path",
    "base_model": "pretrained_model_name_or_path",
    "pretrained_model": "pretrained_model_name_or_path",
    "qwen3_path": "qwen3",
    "qwen_path": "qwen3",
    "qwen3_model": "qwen3",
    "qwen3_model_path": "qwen3",
    "llm_path": "qwen3",
    "text_encoder": "qwen3",
    "text_encoder_file": "qwen3",
    "text_encoder_path": "qwen3",
    "vae_path": "vae",
    "vae_file": "vae",
    "vae_model": "vae",
    "t5_tokenizer": "t5_tokenizer_path",
    # length of the run
    "epoch": "max_train_epochs",
    "epochs": "max_train_epochs",
    "max_epochs": "max_train_epochs",
    "max_epoch": "max_train_epochs",
    "num_epochs": "max_train_epochs",
    "steps": "max_train_steps",
    "max_steps": "max_train_steps",
    "grad_accum": "gradient_accumulation_steps",
    "gradient_accumulation": "gradient_accumulation_steps",
    "grad_checkpointing": "gradient_checkpointing",
    "gradient_ckpt": "gradient_checkpointing",
    "activation_checkpointing": "gradient_checkpointing",
    "micro_batch_size_per_gpu": "train_batch_size",
    "caching_batch_size": "vae_batch_size",
    # optimizer and schedule
    "lr": "learning_rate",
    "unet_learning_rate": "unet_lr",
    "optimizer": "optimizer_type",
    "optimizer_name": "optimizer_type",
    "scheduler": "lr_scheduler",
    "warmup_steps": "lr_warmup_steps",
    "warmup": "lr_warmup_steps",
    "lr_warmup": "lr_warmup_steps",
    "warmup_ratio": "lr_warmup_steps",
    "lr_warmup_ratio": "lr_warmup_steps",
    "gradient_clipping": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "clip_grad_norm": "max_grad_norm",
    # adapter
    "lora_rank": "network_dim",
    "rank": "network_dim",
    "linear_dim": "network_dim",
    "lora_dim": "network_dim",
    "network_rank": "network_dim",
    "lora_alpha": "network_alpha",
    "alpha": "network_alpha",
    "linear_alpha": "network_alpha",
    "lora_dropout": "network_dropout",
    "dropout": "network_dropout",
    "unet_only": "network_train_unet_only",
    "caption_dropout": "caption_dropout_rate",
    # noise and precision
    "timestep_type": "timestep_sampling",
    "timestep_sample_method": "timestep_sampling",
    "flow_shift": "discrete_flow_shift",
    "timestep_shift": "discrete_flow_shift",
    "shift": "discrete_flow_shift",
    "train_dtype": "mixed_precision",
    "precision": "mixed_precision",
    "dtype": "mixed_precision",
    "save_dtype": "save_precision",
    # files
    "output_folder": "output_dir",
    "output_path": "output_dir",
    "log_dir": "logging_dir",
    "lora_name": "output_name",
    "save_every_n_epoch": "save_every_n_epochs",
    "checkpoint_every_n_epochs": "save_every_n_epochs",
    "resume_from": "resume",
    "resume_from_checkpoint": "resume",
    "pretrained_lora": "network_weights",
    "dataset": "dataset_config",
    "dataset_config_file": "dataset_config",
}
"""Another name -> the flag."""

DATASET_KEYS = {
    "path": "image_dir",
    "data_dir": "image_dir",
    "folder_path": "image_dir",
    "source_image_dir": "image_dir",
    "repeats": "num_repeats",
    "train_batch_size": "batch_size",
    "dataset_repeats": "num_repeats",
    "caption_ext": "caption_extension",
    "caption_extention": "caption_extension",
    "target_res": "resolutions",
    "flip_x": "flip_aug",
    "flip_augment": "flip_aug",
    "shuffle_tags": "shuffle_caption",
    "shuffle_tokens": "shuffle_caption",
    "min_reso": "min_bucket_reso",
    "max_reso": "max_bucket_reso",
    "reso_step": "bucket_reso_steps",
    "mask_dir": "mask_path",
    "default_caption": "class_tokens",
    "tag_dropout_rate": "caption_tag_dropout_rate",
    "token_dropout_rate": "caption_tag_dropout_rate",
    "uncond_fraction": "caption_dropout_rate",
}
"""Another name of a key of the dataset file -> the key."""

NETWORK_ARGS = {
    "rank_dropout": "rank_dropout",
    "module_dropout": "module_dropout",
    "lokr_rank_dropout": "lokr_rank_dropout",
    "lokr_module_dropout": "lokr_module_dropout",
    "lokr_factor": "lokr_factor",
    "factor": "lokr_factor",
    "lokr_full_matrix": "lokr_full_matrix",
    "full_matrix": "lokr_full_matrix",
    "lokr_decompose_both": "lokr_decompose_both",
    "decompose_both": "lokr_decompose_both",
    "dora_wd": "dora_wd",
    "use_dora": "dora_wd",
    "weight_decompose": "dora_wd",
    "wd_on_out": "wd_on_out",
    "wd_on_output": "wd_on_out",
    "svd_down": "svd_down",
    "pissa": "pissa",
    "use_pissa": "pissa",
    "tlora": "tlora",
    "tlora_min_rank": "tlora_min_rank",
    "tlora_power": "tlora_power",
    "use_timestep_mask": "tlora",
    "min_rank": "tlora_min_rank",
    "alpha_rank_scale": "tlora_power",
    "rslora": "rslora",
    "rs_lora": "rslora",
    "use_rslora": "rslora",
    "constraint": "constraint",
    "boft": "boft",
    "loraplus_lr_ratio": "loraplus_lr_ratio",
    "loraplus_unet_lr_ratio": "loraplus_unet_lr_ratio",
    "loraplus_text_encoder_lr_ratio": "loraplus_text_encoder_lr_ratio",
    "train_llm_adapter": "train_llm_adapter",
    "train_adaln": "train_adaln",
    "target_modules": "target_modules",
    "exclude_patterns": "exclude_patterns",
    "include_patterns": "include_patterns",
    "network_reg_kinds": "network_reg_kinds",
    "network_reg_dims": "network_reg_dims",
    "network_reg_alphas": "network_reg_alphas",
    "network_reg_lrs": "network_reg_lrs",
}
"""What decides the adapter -> its name in network_args."""

OF_OFT = ("constraint", "boft")
"""What only OFT has of them."""

KINDS = ("algo", "lycoris_algo", "use_lokr", "use_loha", "lora_type", "network_type")
"""Other words for the kind of adapter."""

LYCORIS_ONLY = (
    "preset", "conv_dim", "conv_alpha", "conv_rank", "use_tucker",
    "use_cp", "use_scalar", "bypass_mode", "unbalanced_factorization", "block_dims",
    "rank_dropout_scale", "rescaled",
)  # fmt: skip
"""What decides LyCORIS's adapters and has no counterpart here."""

OPTIMIZER_ARGS = {
    "weight_decay": "weight_decay",
    "betas": "betas",
    "optimizer_betas": "betas",
    "eps": "eps",
    "optimizer_eps": "eps",
    "momentum": "momentum",
    "d_coef": "d_coef",
    "d0": "d0",
    "decouple": "decouple",
    "safeguard_warmup": "safeguard_warmup",
    "use_bias_correction": "use_bias_correction",
    "growth_rate": "growth_rate",
    "beta3": "beta3",
    "relative_step": "relative_step",
    "scale_parameter": "scale_parameter",
    "warmup_init": "warmup_init",
    "use_stableadamw": "use_stableadamw",
    "prodigy_d_coef": "d_coef",
    "prodigy_d0": "d0",
    "prodigy_growth_rate": "growth_rate",
}
"""What decides the optimizer -> its name in optimizer_args."""

ONLY_OF = {"prodigy": ("prodigy_d_coef", "prodigy_d0", "prodigy_growth_rate")}
"""Arguments that a program's file has whatever the optimizer is -> part of the optimizer's name."""

VALUES = {
    "float16": ("fp16",),
    "half": ("fp16",),
    "bfloat16": ("bf16",),
    "float32": ("float", "no"),
    "fp32": ("float", "no"),
    "full": ("float", "no"),
    "mse": ("l2",),
    "mae": ("l1",),
    "logit_normal": ("sigmoid",),
    "lognorm": ("sigmoid",),
    "logitnormal": ("sigmoid",),
    "linear": ("uniform",),
    "torch_sdpa": ("torch",),
    "flash_attn": ("flash",),
    "flash_attention_2": ("flash",),
    "blocks": ("default",),
    "yes": ("true",),
    "no": ("false",),
}
"""Another word for a choice -> the choice, the first that the option has."""

_OWN = (
    "model_train_type lora_type lycoris_algo enable_preview positive_prompts negative_prompts "
    "randomly_choice_prompt random_prompt_include_subdirs sample_width sample_height sample_cfg "
    "sample_seed sample_steps sample_scheduler prefer_json_caption caption_mode base_config "
    "save_toml save_toml_location train_mode easy_name tag_occurrence sdxl gpu_ids num_processes "
    "num_machines num_cpu_threads_per_process main_process_port extra_accelerate_launch_args "
    "dynamo_mode dynamo_use_dynamic dynamo_use_fullgraph noise_offset_type noise_type "
    "lr_warmup_type log_prefix_mode run_name_mode cache_dir network_train_text_encoder "
    "vae_reflection logging_name"
)
OWN = frozenset(_OWN.split())
"""Keys by which other programs remember things of their own: nothing here is like them."""

_PYTORCH_OPTIMIZER = (
    "CAME Adan StableAdamW ADOPT AdEMAMix AdaBelief AdaBound AdamP AdaPNM AdaNorm AdaHessian Amos "
    "Apollo AvaGrad DiffGrad FAdam Fromage FTRL Grams GrokFastAdamW Kate LaProp Lamb LARS MADGRAD "
    "MSVAG Nero NovoGrad PAdam PID PNM QHAdam QHM Ranger Ranger21 Ranger25 SCION Shampoo SGDW SGDP "
    "SignSGD SM3 SOAP SophiaH SRMM SWATS Tiger TAM Yogi"
)
CLASSES = {
    **{name.lower(): f"pytorch_optimizer.{name}" for name in _PYTORCH_OPTIMIZER.split()},
    "came": "came_pytorch.CAME",
    "prodigyplusschedulefree": "prodigyplus.ProdigyPlusScheduleFree",
    "prodigyplus": "prodigyplus.ProdigyPlusScheduleFree",
    "adamw_optimi": "optimi.AdamW",
    "adam8bit": "bitsandbytes.optim.Adam8bit",
    "ademamix8bit": "bitsandbytes.optim.AdEMAMix8bit",
    "pagedademamix8bit": "bitsandbytes.optim.PagedAdEMAMix8bit",
    "adagrad8bit": "bitsandbytes.optim.Adagrad8bit",
    "rmsprop8bit": "bitsandbytes.optim.RMSprop8bit",
    "lamb8bit": "bitsandbytes.optim.LAMB8bit",
    "lars8bit": "bitsandbytes.optim.LARS8bit",
}
"""A class that people name without its package, in small letters -> its dotted path."""

PACKAGES = {
    "pytorch_optimizer": "pytorch-optimizer",
    "came_pytorch": "came-pytorch",
    "prodigyplus": "prodigy-plus-schedule-free",
    "optimi": "torch-optimi",
    "lion_pytorch": "lion-pytorch",
    "adabelief_pytorch": "adabelief-pytorch",
    "torch_optimizer": "torch-optimizer",
    "LoraEasyCustomOptimizer": "",
}
"""A package as it is imported -> as pip knows it; "" where pip does not have it."""
