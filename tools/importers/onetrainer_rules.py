"""OneTrainer's keys: how each is read, and where it goes."""

from __future__ import annotations

from typing import Any

from tools.importers.rules import (
    NoCounterpart,
    Rule,
    as_it_is,
    choice,
    idle,
    lost,
    many,
    number,
    path_to,
    scaled,
    size_text,
    switch,
    text,
    whole,
)

SAVED = {"float_32": "float", "float_16": "fp16", "bfloat_16": "bf16"}
TRAINED = {"float_32": "no", "tfloat_32": "no", "float_16": "fp16", "bfloat_16": "bf16"}
METHODS = {"lora": "lora", "fine_tune": "fine_tune"}
SMALL_FORMS: dict[str, dict[str, object]] = {
    "int_8": {"train.int8_base": True},
    "int_w8a16": {"train.int8_base": True},
    "int_w8a8": {"train.int8_base": True, "train.int8_compute": "auto"},
    "float_8": {"train.fp8_base": True},
    "nfloat_4": {"train.nf4_base": True},
}
WHOLE = ("none", "float_32", "bfloat_16", "float_16", "tfloat_32")
SCALERS = ("none", "batch", "gradient_accumulation", "both")
PARTS = {
    "attn1": ("self_attn",),
    "attn2": ("cross_attn",),
    "attn": ("self_attn", "cross_attn"),
    "ff": ("mlp",),
}
BLOCK_PARTS = ("self_attn", "cross_attn", "mlp")
PROGRAM = idle("by it the program is run, not the training")
OTHER_MODEL = idle("it belongs to another model or kind of training")
PICTURES = lost("pictures are not changed so here", 1, 1.0)


def model(value: Any) -> str:
    if "anima" not in text(value).lower():
        raise ValueError("expected the model of this trainer")
    return value


def resolutions(value: Any) -> list[Any]:
    """ "512,768" is two resolutions, "512x768" one size."""
    found = [size_text(each.strip()) for each in str(value).split(",")]
    if any(isinstance(each, list) for each in found):
        return [each if isinstance(each, list) else [each, each] for each in found]
    return found


def repeats(value: Any) -> int:
    """How often a picture counts: whole here."""
    if isinstance(value, str):
        raise NoCounterpart("a number of samples, not of repeats: set num_repeats")
    found = number(value)
    if found < 1 or found != int(found):
        raise NoCounterpart("repeats are whole here: set num_repeats")
    return int(found)


def checkpointing(value: Any) -> str:
    return choice({"on": "on", "off": "off", "cpu_offloaded": "cpu", True: "on", False: "off"})(
        value
    )


def excluded(value: Any) -> str | None:
    """The parts of the blocks that a filter leaves out, as exclude_patterns; None for none."""
    words = [word.strip() for word in text(value).split(",") if word.strip()]
    kept = {part for word in words for part in PARTS.get(word.split(".")[0], ())}
    if any(word.split(".")[0] not in PARTS for word in words):
        raise NoCounterpart("only attn, attn1, attn2 and ff have one here")
    return ",".join(f".*\\.{part}\\..*" for part in BLOCK_PARTS if part not in kept) or None


CHANGED_PICTURES = (
    "enable_crop_jitter enable_fixed_flip enable_random_rotate enable_fixed_rotate "
    "enable_random_brightness enable_fixed_brightness enable_random_contrast "
    "enable_fixed_contrast enable_random_saturation enable_fixed_saturation enable_random_hue "
    "enable_fixed_hue enable_random_circular_mask_shrink enable_random_mask_rotate_crop"
)
RULES = {
    "training_method": Rule("special.training_method", choice(METHODS)),
    "model_type": Rule("special.model", model),
    "base_model_name": Rule("special.base", text),
    "transformer.model_name": path_to("train.pretrained_model_name_or_path"),
    "vae.model_name": path_to("train.vae"),
    "text_encoder.model_name": path_to("train.qwen3"),
    "output_model_destination": Rule("special.destination", text),
    "output_dtype": Rule("train.save_precision", choice(SAVED)),
    "output_model_format": lost("files are safetensors", "SAFETENSORS", "COMFY_LORA", "KOHYA_LORA"),
    "train_dtype": Rule("train.mixed_precision", choice(TRAINED)),
    "weight_dtype": Rule("special.form", text),
    "transformer.weight_dtype": Rule("special.part_form", text),
    "transformer.train": lost("the DiT always trains", True),
    "transformer.learning_rate": Rule("special.part_rate", number),
    "text_encoder.train": Rule("special.trains_text", switch),
    "text_encoder.learning_rate": Rule("special.text_rate", number),
    "learning_rate": Rule("special.rate", number),
    "learning_rate_scheduler": Rule("special.schedule", text),
    "learning_rate_warmup_steps": Rule("special.warmup", number),
    "learning_rate_cycles": Rule("special.cycles", number),
    "learning_rate_min_factor": Rule("special.floor", number),
    "learning_rate_scaler": Rule("special.scaler", choice({name: name for name in SCALERS})),
    "epochs": Rule("train.max_train_epochs", whole),
    "batch_size": Rule("datasets.batch_size", whole),
    "gradient_accumulation_steps": Rule("train.gradient_accumulation_steps", whole),
    "ema": Rule("special.ema", text),
    "ema_decay": Rule("special.ema_decay", number),
    "gradient_checkpointing": Rule("special.checkpointing", checkpointing),
    "transformer.gradient_checkpointing": Rule("special.checkpointing", checkpointing),
    "compile": Rule("train.compile", switch),
    "resolution": Rule("datasets.resolutions", resolutions),
    "aspect_ratio_bucketing": Rule("datasets.enable_bucket", switch),
    **many("latent_caching image_caching", lambda name: Rule("train.cache_latents", switch)),
    "text_caching": Rule("train.cache_text_encoder_outputs", switch),
    "clip_grad_norm": Rule("train.max_grad_norm", number),
    "dropout_probability": Rule("train.network_dropout", number, asks_not=(0,)),
    "text_encoder.dropout_probability": Rule("general.caption_dropout_rate", number, asks_not=(0,)),
    **many("mse_strength mae_strength huber_strength", lambda name: Rule(f"special.{name}", number)),
    "huber_delta": Rule("special.huber_delta", number),
    "log_cosh_strength": lost("the loss is l2, l1, huber or smooth_l1 here"),
    "loss_weight_fn": lost("weighting_scheme weights the loss here", "CONSTANT"),
    "loss_weight_strength": idle("it belongs to loss_weight_fn"),
    "loss_scaler": lost("the loss is a mean over the batch", "NONE"),
    "offset_noise_weight": Rule("train.noise_offset", number, asks_not=(0,)),
    "perturbation_noise_weight": Rule("train.ip_noise_gamma", number, asks_not=(0,)),
    "generalized_offset_noise": lost("noise_offset does not depend on sigma here"),
    "min_noising_strength": Rule("train.min_timestep", scaled(1000), asks_not=(0,)),
    "max_noising_strength": Rule("train.max_timestep", scaled(1000), asks_not=(1,)),
    "timestep_distribution": Rule("special.distribution", text),
    "noising_weight": Rule("special.noising_weight", number),
    "noising_bias": Rule("special.noising_bias", number),
    "timestep_shift": Rule("special.shift", number),
    "dynamic_timestep_shifting": lost("the shift by the size of the picture is timestep_sampling = flux_shift"),
    "layer_filter": Rule("network.exclude_patterns", excluded),
    "layer_filter_regex": lost("patterns of names are told by target_modules, re:..."),
    "peft_type": Rule("special.algo", choice({"lora": "lora", "lokr": "lokr", "loha": "loha", "oft_2": "oft_2"})),
    "lora_rank": Rule("special.lora_rank", whole),
    "lokr_dim": Rule("special.lokr_dim", whole),
    "lora_alpha": Rule("train.network_alpha", number),
    "lora_model_name": path_to("train.network_weights"),
    "lora_decompose": Rule("special.dora", switch),
    "lora_decompose_output_axis": Rule("special.dora_of_outputs", switch),
    "lokr_weight_decompose": Rule("special.lokr_dora", switch),
    "lokr_dora_on_output": Rule("special.lokr_dora_of_outputs", switch),
    "layer_offload_fraction": Rule("special.offloaded", number),
    "lora_weight_dtype": lost("factors are float32 here; full_bf16 = true is the small form", "FLOAT_32"),
    "lokr_decompose_factor": Rule("network.lokr_factor", whole),
    "lokr_decompose_both": Rule("network.lokr_decompose_both", switch),
    "lokr_full_matrix": Rule("network.lokr_full_matrix", switch),
    "optimizer.optimizer": Rule("special.optimizer_type", text),
    "optimizer.beta1": Rule("special.beta1", number),
    "optimizer.beta2": Rule("special.beta2", number),
    "optimizer.eps": Rule("special.eps", number),
    "optimizer.eps2": Rule("special.eps2", number),
    **many("optimizer.clip_threshold optimizer.decay_rate", lambda name: Rule(f"special.{name.partition('.')[2]}", number)),
    "optimizer.fused_back_pass": Rule("special.fused", switch),
    "optimizer.stochastic_rounding": Rule("special.rounding", switch),
    **many("unmasked_probability unmasked_weight normalize_masked_area_loss",
           lambda name: idle("it belongs to masked_training")),
    "masked_prior_preservation_weight": lost("prior_preservation_weight is of whole pictures here"),
    "masked_training": lost(
        "move each <name>-masklabel.png into a folder of masks as <name>.png, and set mask_path"
    ),
    "validation": lost("validation_split holds pictures out here"),
    "save_every": Rule("special.save_every", whole),
    "save_every_unit": Rule("special.save_unit", text),
    "save_filename_prefix": lost("files are called by output_name"),
    "backup_after": Rule("special.states", as_it_is),
    "tensorboard": Rule("special.tensorboard", switch),
    "concept_file_name": idle("its concepts are read"),
    "concepts[].path": path_to("subsets.image_dir"),
    "concepts[].left_out": lost("it is switched off, or for validation, there"),
    "concepts[].include_subdirectories": Rule("subsets.recursive", switch),
    "concepts[].balancing": Rule("subsets.num_repeats", repeats),
    "concepts[].loss_weight": Rule("subsets.loss_multiplier", number),
    "concepts[].type": Rule("subsets.is_reg", choice({"prior_prediction": True, "prior": True, "standard": False})),
    "concepts[].image.enable_random_flip": Rule("subsets.flip_aug", switch),
    "concepts[].image.resolution_override": Rule("of_subset.resolutions", resolutions),
    "concepts[].text.enable_tag_shuffling": Rule("subsets.shuffle_caption", switch),
    "concepts[].text.tag_delimiter": Rule("subsets.caption_separator", text),
    "concepts[].text.keep_tags_count": Rule("subsets.keep_tokens", whole),
    "concepts[].text.tag_dropout_probability": Rule("subsets.caption_tag_dropout_rate", number, asks_not=(0,)),
    "concepts[].text.caption_dropout": Rule("subsets.caption_dropout_rate", number, why="all tags at once there"),
    "concepts[].text.prompt_source": lost("captions are in files called as the pictures", "sample"),
    **many("concepts[].image_variations concepts[].text_variations", lambda name: PICTURES),
    **many(CHANGED_PICTURES, lambda name: PICTURES, "concepts[].image."),
    **many(
        "__version debug_mode debug_dir workspace_dir cache_dir tensorboard_expose "
        "tensorboard_always_on tensorboard_port validate_after validate_after_unit "
        "continue_last_backup prevent_overwrites include_train_config multi_gpu "
        "device_indexes gradient_reduce_precision fused_gradient_reduce async_gradient_reduce "
        "async_gradient_reduce_buffer async_offloading clear_cache_before_training only_cache "
        "caching_threads dataloader_threads prefetch_next_batch train_device temp_device "
        "fallback_train_dtype enable_autocast_cache enable_activation_offloading "
        "enable_async_offloading attention_mechanism "
        "sample_definition_file_name sample_after sample_after_unit sample_skip_first "
        "sample_image_format sample_video_format sample_audio_format samples_to_tensorboard "
        "non_ema_sampling samples backup_after_unit rolling_backup rolling_backup_count "
        "backup_before_save save_skip_first ema_update_step_interval layer_filter_preset "
        "scheduler_params",
        lambda name: PROGRAM,
    ),
    **many(
        "frames vb_loss_strength rescale_noise_scheduler_to_zero_terminal_snr "
        "force_v_prediction force_epsilon_prediction force_circular_padding cep_gamma "
        "text_encoder_layer_skip text_encoder_sequence_length text_encoder_2_layer_skip "
        "text_encoder_2_sequence_length text_encoder_3_layer_skip text_encoder_4_layer_skip "
        "embedding_learning_rate preserve_embedding_norm embedding_weight_dtype "
        "custom_conditioning_image "
        "custom_learning_rate_scheduler bundle_additional_embeddings oft_block_size "
        "oft_block_share dora_oft oft_scaled oft_clipped_norm oft_cans "
        "lora_decompose_norm_epsilon lokr_use_tucker lokr_vec_trick",
        lambda name: OTHER_MODEL,
    ),
}  # fmt: skip
