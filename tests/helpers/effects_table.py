"""For every flag: how it shows that it acts, and beside what it does nothing.

A new flag that is effective needs a line here, a new key of the dataset file one in effects_of_keys.py;
tests/settings/test_effects_table.py runs them.
"""

from tests.helpers.effects_cases import ADAFACTOR, Case, fetched, huber, noise, schedule, shown
from tests.helpers.tiny import golden

RATE = Case(3e-4, "network", idle=({"optimizer_type": "Adafactor"},))
PIECEWISE = {
    "lr_scheduler": "piecewise_constant", "lr_scheduler_args": ["step_rules='1:5,0.1'"]
}  # fmt: skip
AS_FILE = {"network_weights": str(golden("adapter_lora.safetensors")), "dim_from_weights": True}
EPOCHS = {"save_every_n_epochs": 1}
EVERY_STEPS = {"save_every_n_steps": 2}
SILENT = {"log_with": "none"}
UNSERVED = {"auto_start_tensorboard": False}
SERVED = {"auto_start_tensorboard": True}
NO_METADATA = {"no_metadata": True}
METADATA = "test_training.test_metadata_is_complete_and_true"
SETTINGS = "test_training_options.test_it_trains_and_exports"
HALF = {"mixed_precision": "bf16"}
STORED = "test_memory_modes.test_stored_weights_train_and_go_on_to_the_same_bytes"
CACHED = "test_training.test_training_from_caches_equals_training_without"
SERVER = "test_trackers.test_the_server_answers_and_stops_with_the_run"
LOGS = "test_trackers.test_tracker_settings_come_from_a_file"
PROCESS = "test_effective_flags.test_settings_of_the_process_reach_torch"
COMPILER = "test_compiling.test_settings_reach_the_compiler"
EAGER_COMPILE = {"compile": True, "compile_backend": "eager"}
A_RUN = "test_effective_flags.test_a_run_is_as_its_flags_say"
MEMORY = "test_memory_modes.test_a_mode_changes_no_bit_and_reaches_the_model"
PICTURES = "test_previews.test_pictures_are_drawn_when_they_are_due_and_once_for_each_step"
UPLOADS = "test_uploads.test_a_run_uploads_what_it_saves_and_tries_again_what_failed"
SHARED = "test_processes.test_settings_of_ddp_reach_torch"

FLAGS: dict[str, Case] = {
    "config_file": shown("test_config_file.test_sections_are_flattened_and_their_names_mean_nothing"),
    "preset": shown("test_presets.test_a_preset_is_the_base_and_all_else_wins"),
    "output_config": shown("test_config_file.test_a_written_config_reads_back_the_same"),
    "dataset_config": shown(
        "test_config_file.test_flags_fill_what_the_dataset_file_leaves_open"
    ),
    "check_only": shown("test_doctor.test_the_trainer_gives_the_same_report_with_check_only"),
    "pretrained_model_name_or_path": shown(
        "test_config_adapter.test_either_name_of_the_dit_sets_both"
    ),
    "vae": shown("test_config_adapter.test_what_is_needed_is_named_at_once"),
    "max_data_loader_n_workers": shown(
        "test_effective_flags.test_settings_of_the_loader_reach_it", 2, {"cache_latents": True}
    ),
    "train_data_dir": shown(
        "test_training_datasets.test_folders_named_by_flags_train", "folder", {}
    ),
    "reg_data_dir": shown("test_training_datasets.test_folders_named_by_flags_train", "folder", {}),
    "in_json": shown("test_dataset_language.test_a_json_named_by_a_flag_has_its_pictures_in_train_data_dir", "a.json", {}),
    "cache_latents": shown(CACHED),
    "cache_latents_to_disk": shown(CACHED),
    "vae_batch_size": shown(
        "test_effective_flags.test_settings_of_caches_reach_them", 4, {"cache_latents": False}
    ),
    "skip_cache_check": shown(
        "test_effective_flags.test_settings_of_caches_reach_them", True, {"cache_latents": True}
    ),
    "cache_text_encoder_outputs": shown(CACHED),
    "cache_text_encoder_outputs_to_disk": shown(CACHED),
    "text_cache_variants": shown(
        "test_texts_of_runs.test_training_from_the_cache_equals_training_without", 10,
        {"cache_text_encoder_outputs": False},
    ),
    "text_encoder_batch_size": shown(
        "test_text_contexts.test_a_run_that_encodes_several_captions_at_once_goes_on_to_the_same_bytes", 4,
        {"cache_text_encoder_outputs": False},
    ),
    "no_half_vae": shown("test_cache_tools.test_only_what_a_cause_concerns_is_made_anew"),
    "disable_mmap_load_safetensors": shown(
        "test_model_loading.test_a_file_read_into_memory_holds_the_same_and_is_let_go"
    ),
    "weighted_captions": shown("test_weighted_captions.test_a_run_weighs_the_words_of_its_captions"),
    "network_module": Case("networks.lokr_anima", "network"),
    "network_dim": Case(7, "network", idle=(AS_FILE,)),
    "network_alpha": Case(3.0, "network", idle=(AS_FILE,)),
    "network_dropout": Case(0.25, "network"),
    "network_args": Case(["rank_dropout=0.3"], "network"),
    "network_weights": shown("test_training.test_training_continues_from_network_weights"),
    "dim_from_weights": shown("test_network_files.test_ranks_come_from_the_file"),
    "base_weights": shown("test_base_weights.test_base_weights_merge_every_form_that_comfyui_applies"),
    "base_weights_multiplier": shown(
        "test_base_weights.test_base_weights_merge_every_form_that_comfyui_applies"
    ),
    "scale_weight_norms": shown("test_norm_limit.test_a_run_keeps_the_limit_and_logs_it"),
    "unet_lr": Case(5e-3, "updates", idle=(ADAFACTOR,)),
    "text_encoder_lr": shown(
        "test_text_encoder.test_every_linear_of_its_layers_learns_and_is_named_as_comfyui_names_it", 1e-4,
        {"network_train_unet_only": True}, ADAFACTOR,
    ),
    "network_train_unet_only": shown(
        "test_text_encoder.test_it_does_not_train_where_it_is_told_not_to_or_no_rate_is_given"
    ),
    "optimizer_type": Case("Lion", "updates"),
    "use_8bit_adam": shown(SETTINGS),
    "use_lion_optimizer": Case(True, "updates"),
    "learning_rate": Case(5e-3, "updates", idle=({"unet_lr": 1e-3}, ADAFACTOR)),
    "fused_backward_pass": shown("test_whole_model.test_a_fused_backward_pass_changes_no_bit_nor_do_blocks_that_wait_in_ram", True, {}),
    "max_grad_norm": shown(A_RUN),
    "optimizer_args": Case(["betas=0.5,0.6"], "updates", {"learning_rate": 1e-2}),
    "lr_scheduler": Case("cosine", "updates", {"learning_rate": 1e-2}, idle=(
        {"lr_scheduler_type": "ConstantLR"}, {"optimizer_type": "Adafactor"},
    )),
    "lr_scheduler_type": Case("LinearLR", "updates", {"learning_rate": 1e-2}, idle=(ADAFACTOR,)),
    "lr_scheduler_args": Case(
        ["lr_end=1e-3"], "updates", {"learning_rate": 1e-2, "lr_scheduler": "polynomial"},
        idle=({"optimizer_type": "Adafactor"},),
    ),
    "lr_warmup_steps": schedule(5, "linear", PIECEWISE),
    "lr_decay_steps": schedule(
        5, "warmup_stable_decay", "cosine", "linear", "inverse_sqrt", lr_decay_steps=3
    ),
    "lr_scheduler_num_cycles": schedule(
        3, "cosine_with_restarts", "cosine", "linear", "constant", "constant_with_warmup"
    ),
    "lr_scheduler_power": schedule(2.0, "polynomial", "cosine", "cosine_with_restarts"),
    "lr_scheduler_timescale": schedule(
        50, "inverse_sqrt", "cosine", "polynomial", lr_warmup_steps=2
    ),
    "lr_scheduler_min_lr_ratio": schedule(
        0.3, "warmup_stable_decay", "cosine", "linear", lr_decay_steps=6
    ),
    "max_train_steps": Case(77, "length", idle=({"max_train_epochs": 3},)),
    "max_train_epochs": Case(3, "length"),
    "gradient_accumulation_steps": Case(3, "length"),
    "seed": shown("test_training.test_the_same_seed_gives_the_same_file_and_another_seed_another"),
    "gradient_checkpointing": shown(
        "test_training.test_gradient_checkpointing_changes_nothing_but_memory"
    ),
    "cpu_offload_checkpointing": shown(
        "test_training.test_gradient_checkpointing_changes_nothing_but_memory"
    ),
    "unsloth_offload_checkpointing": shown(A_RUN),
    "checkpoint_every_n": shown(MEMORY, 2, {"gradient_checkpointing": False}),
    "recompute": shown(MEMORY, "cheap", {"gradient_checkpointing": True}, {"compile": True}),
    "blocks_to_swap": shown(MEMORY, 4),
    "vram_target": shown("test_memory_modes.test_a_card_is_planned_for_and_said_by_run_and_doctor"),
    "mixed_precision": shown(SETTINGS),
    "fp8_base": Case(True, "", HALF, STORED),
    "fp8_base_unet": Case(True, "", HALF, STORED, idle=({**HALF, "fp8_base": True},)),
    "int8_base": Case(True, "", HALF, STORED),
    "nf4_base": Case(True, "", HALF, STORED),
    "int8_compute": Case("always", "", {**HALF, "int8_base": True}, STORED, idle=(HALF,)),
    "full_bf16": shown(SETTINGS),
    "stochastic_rounding": shown("test_single_updates.test_small_updates_are_not_lost_on_average", True, {}),
    "cuda_allow_tf32": shown(PROCESS),
    "cuda_cudnn_benchmark": shown(PROCESS),
    "deterministic": shown(PROCESS),
    "compile": shown("test_compile.test_a_compiled_run_trains_the_same_within_rounding"),
    "compile_optional": shown("test_compiling.test_what_is_missing_is_said_or_done_without", True, {}),
    "compile_backend": shown(COMPILER, "eager", {}),
    "compile_mode": shown(COMPILER, "max-autotune", {}, EAGER_COMPILE),
    "compile_dynamic": shown("test_compiling.test_one_graph_for_all_sizes_where_there_are_several", "true", {}),
    "compile_fullgraph": shown(COMPILER, True, {}),
    "compile_cache_size_limit": shown(COMPILER, 5, {}),
    "activation_memory_budget": shown("test_compiled.test_a_budget_keeps_less_and_changes_no_gradient", 0.5, {}, EAGER_COMPILE),
    "cuda_graphs": shown("test_replay.test_gradients_are_the_same_bits"),
    "timestep_sampling": noise("uniform"),
    "sigmoid_scale": noise(2.0, {"timestep_sampling": "uniform"}, {"timestep_sampling": "sigma"}),
    "discrete_flow_shift": noise(
        3.0, {"timestep_sampling": "sigmoid"}, {"timestep_sampling": "flux_shift"},
        {"timestep_sampling": "uniform"}, timestep_sampling="shift",
    ),
    "weighting_scheme": noise(
        "logit_normal", {"timestep_sampling": "sigmoid"}, {"timestep_sampling": "shift"},
        timestep_sampling="sigma",
    ),
    "logit_mean": noise(
        0.5, {}, {"timestep_sampling": "sigma"}, {"weighting_scheme": "cosmap"},
        timestep_sampling="sigma", weighting_scheme="logit_normal",
    ),
    "logit_std": noise(
        0.5, {}, {"timestep_sampling": "sigma", "weighting_scheme": "mode"},
        timestep_sampling="sigma", weighting_scheme="logit_normal",
    ),
    "mode_scale": noise(
        0.5, {}, {"timestep_sampling": "sigma", "weighting_scheme": "logit_normal"},
        timestep_sampling="sigma", weighting_scheme="mode",
    ),
    "min_timestep": noise(300),
    "max_timestep": noise(700),
    "noise_offset": noise(0.1),
    "noise_offset_random_strength": noise(True, {}, {"noise_offset": 0}, noise_offset=0.1),
    "ip_noise_gamma": noise(0.1),
    "ip_noise_gamma_random_strength": noise(True, {}, ip_noise_gamma=0.1),
    "show_timesteps": shown("test_drawn_sigmas.test_the_trainer_shows_its_draw_and_trains_nothing"),
    "show_timesteps_resolution": shown(
        "test_drawn_sigmas.test_the_trainer_shows_its_draw_and_trains_nothing", "1024",
        {"timestep_sampling": "flux_shift"}, {"show_timesteps": "console"},
    ),
    "show_timesteps_offset": shown(
        "test_drawn_sigmas.test_the_trainer_shows_its_draw_and_trains_nothing", 0.5,
        {"timestep_sampling": "sigmoid"}, {"show_timesteps": "console", "timestep_sampling": "uniform"},
    ),
    "loss_type": Case("l1", "loss"),
    "huber_schedule": huber("constant"),
    "huber_c": huber(0.4),
    "huber_scale": huber(2.0),
    "multiscale_loss_weight": shown(
        "test_losses.test_large_pictures_count_at_half_size_too", 0.5, {}
    ),
    "prior_loss_weight": shown(
        "test_training_datasets.test_weights_of_subset_and_regularisation_scale_the_loss", 0.5, {},
        {"prior_preservation_weight": 1.0, "prior_preservation_prompts": "builtin"},
    ),
    "prior_preservation_weight": shown(
        "test_prior.test_regularisation_pictures_learn_the_bases_own_prediction", 1.0, {}
    ),
    "prior_preservation_prompts": shown(
        "test_prior.test_prompts_keep_what_the_base_predicts_for_them", "builtin", {}
    ),
    "masked_loss": shown(
        "test_dataset_language.test_masks_need_the_flag_only_when_sd_scripts_asks_for_it", True, {}
    ),
    "output_dir": Case("elsewhere", "saves"),
    "output_name": Case("name", "saves"),
    "save_precision": shown(A_RUN),
    "save_every_n_epochs": Case(
        2, "saves", idle=({"save_n_epoch_ratio": 2}, {"max_train_epochs": 1})
    ),
    "save_every_n_steps": Case(4, "saves", idle=({"max_train_steps": 3},)),
    "save_n_epoch_ratio": Case(2, "saves"),
    "save_last_n_epochs": Case(1, "saves", EPOCHS, idle=({}, EVERY_STEPS)),
    "save_last_n_steps": Case(4, "saves", EVERY_STEPS, idle=({}, EPOCHS)),
    "save_model_as": shown("test_effects.test_files_that_can_run_code_are_refused"),
    "export_format": shown("test_exporting.test_a_run_writes_both_forms_and_removes_both"),
    "export_rank": shown("test_exporting.test_a_lokr_becomes_the_best_lora_of_the_rank", 8, {}),
    "verify_export": shown("test_exporting.test_files_are_compared_unless_that_is_off"),
    "no_metadata": shown("test_training.test_no_metadata_leaves_what_other_tools_need"),
    "huggingface_repo_id": shown(UPLOADS),
    "huggingface_repo_type": shown("test_uploads.test_a_repository_is_as_its_options_say", "dataset", {}),
    "huggingface_path_in_repo": shown(UPLOADS, "loras", {}),
    "huggingface_token": shown(UPLOADS, "hf_x", {}),
    "huggingface_repo_visibility": shown("test_uploads.test_a_repository_is_as_its_options_say", "public", {}),
    "async_upload": shown(UPLOADS, True, {}),
    "ema_decay": shown("test_which_file.test_a_run_saves_the_average_of_its_weights"),
    "ema_start_step": shown(
        "test_which_file.test_a_run_saves_the_average_of_its_weights", 2, {},
        {"ema_decay": 0.9, "max_train_steps": 1},
    ),
    "save_state": Case(True, "saves"),
    "save_state_on_train_end": Case(True, "saves"),
    "save_last_n_epochs_state": Case(
        1, "saves", {**EPOCHS, "save_state": True}, idle=(EPOCHS, {"save_state": True})
    ),
    "save_last_n_steps_state": Case(
        4, "saves", {**EVERY_STEPS, "save_state": True}, idle=(EVERY_STEPS, {"save_state": True})
    ),
    "resume": shown("test_resuming.test_from_every_state_a_run_ends_in_the_same_bytes"),
    "save_state_to_huggingface": shown(UPLOADS, True, {}),
    "resume_from_huggingface": shown(UPLOADS, True, {}),
    "resume_allow": shown("test_resume_snapshot.test_what_is_allowed_by_name_is_told_and_taken", ["seed"], {}),
    "resume_ignore_optimizer_mismatch": shown(
        "test_resume_snapshot.test_another_optimizer_is_allowed_by_its_own_flag", True, {}
    ),
    "initial_epoch": Case(3, "start", idle=({"initial_step": 4},)),
    "initial_step": Case(4, "start"),
    "skip_until_initial_step": Case(
        True, "start", {"initial_step": 4, "gradient_accumulation_steps": 2}, idle=({}, {"resume": "s"})
    ),
    "sample_prompts": shown(PICTURES),
    "sample_every_n_steps": shown(PICTURES, 5, {}, {"sample_prompts": "p.txt", "max_train_steps": 3}),
    "sample_every_n_epochs": shown(PICTURES, 2, {}, {"sample_prompts": "p.txt", "max_train_epochs": 1}),
    "sample_at_first": shown(PICTURES, True, {}, {"sample_prompts": "p.txt", "resume": "s"}),
    "sample_sampler": shown("test_previews.test_a_picture_says_how_it_was_drawn", "heun", {}),
    "sample_on_cpu_vae": shown("test_previews.test_settings_of_the_decoder_reach_it", True, {}),
    "vae_chunk_size": shown("test_previews.test_settings_of_the_decoder_reach_it", 2, {}),
    "validate_every_n_steps": shown(
        "test_training_datasets.test_validation_is_logged_by_quarter_of_sigma", 5, {},
        {"validation_split": 0.5, "max_train_steps": 3},
    ),
    "validate_every_n_epochs": shown(
        "test_effective_flags.test_validation_is_due_and_as_long_as_asked", 2, {},
        {"validation_split": 0.5, "max_train_epochs": 1},
    ),
    "max_validation_steps": shown(
        "test_effective_flags.test_validation_is_due_and_as_long_as_asked", 3, {}
    ),
    "evaluate_every_n_steps": shown(
        "test_which_file.test_a_run_is_evaluated_when_asked_and_at_its_end", 5, {},
        {"validation_split": 0.5, "max_train_steps": 3},
    ),
    "evaluate_every_n_epochs": shown(
        "test_evaluation.test_it_is_due_and_looks_at_as_many_pictures_as_asked", 2, {},
        {"validation_split": 0.5, "max_train_epochs": 1},
    ),
    "evaluation_pictures": shown(
        "test_evaluation.test_it_is_due_and_looks_at_as_many_pictures_as_asked", 3, {},
        {"evaluate_every_n_steps": 1},
    ),
    "drift_prompts": shown(
        "test_which_file.test_a_run_is_evaluated_when_asked_and_at_its_end", "builtin", {}
    ),
    "logging_dir": shown("test_trackers.test_the_root_is_the_first_of_three", "logs", SILENT),
    "live": shown("test_report.test_a_live_page_follows_a_run_and_its_button_saves"),
    "report": shown("test_report.test_a_run_leaves_a_report_unless_told_not_to"),
    "log_with": shown("test_trackers.test_none_writes_nothing_and_so_do_processes_but_the_first"),
    "log_prefix": shown("test_trackers.test_the_run_folder_is_named_by_prefix_and_time", "a", SILENT),
    "log_every_n_steps": shown("test_step_reads.test_no_step_reads_the_device_between_log_points"),
    "log_tracker_name": shown(
        "test_trackers.test_numbers_reach_the_event_files_and_the_json_lines", "a", SILENT
    ),
    "log_tracker_config": shown(LOGS, "a.toml", SILENT),
    "log_config": shown(
        "test_trackers.test_settings_are_written_only_when_asked_for_and_without_secrets", True, SILENT
    ),
    "wandb_run_name": shown(
        "test_trackers.test_wandb_receives_the_numbers_offline", "a", {"log_with": "tensorboard"}
    ),
    "wandb_api_key": shown(
        "test_trackers.test_settings_are_written_only_when_asked_for_and_without_secrets", "a",
        {"log_with": "tensorboard"},
    ),
    "auto_start_tensorboard": shown(SERVER, True, SILENT),
    "tensorboard_host": shown(SERVER, "0.0.0.0", {**SERVED, **SILENT}, UNSERVED),
    "tensorboard_port": shown(SERVER, 7000, {**SERVED, **SILENT}, UNSERVED),
    "tensorboard_logdir": shown(SERVER, "logs", {**SERVED, **SILENT}, UNSERVED),
    "console_log_level": shown("test_effective_flags.test_messages_look_as_asked"),
    "console_log_file": shown("test_effective_flags.test_messages_look_as_asked"),
    "console_log_simple": shown("test_effective_flags.test_messages_look_as_asked"),
    "monitor_memory": shown("test_monitor.test_without_memory_monitoring_nothing_is_read"),
    "monitor_alert_policy": shown("test_monitor.test_only_policy_raise_asks_for_the_end"),
    "monitor_memory_warn_ratio": shown(
        "test_monitored_runs.test_a_run_near_the_limit_of_its_memory_is_told_and_ended", 0.5,
        {"monitor_memory": False},
    ),
    "monitor_loss_spike_ratio": shown("test_monitor.test_the_spike_ratio_is_the_users"),
    "training_comment": shown(METADATA, "a", NO_METADATA),
    **{
        f"metadata_{name}": shown(A_RUN)
        for name in (
            "title", "author", "description", "license", "tags", "usage_hint", "thumbnail",
            "merged_from", "trigger_phrase", "preprocessor", "is_negative_embedding",
        )
    },
    "ddp_timeout": shown(SHARED, 5, {}),
    "ddp_gradient_as_bucket_view": shown(SHARED, True, {}),
    "ddp_static_graph": shown(SHARED, True, {}),
    "anima_transformer": shown("test_config_adapter.test_either_name_of_the_dit_sets_both"),
    "qwen": shown("test_config_adapter.test_the_official_names_are_aliases"),
    "llm_adapter_path": shown(
        "test_model_loading.test_the_llm_adapter_may_come_from_a_file_of_its_own"
    ),
    "qwen_tokenizer_dir": shown(
        "test_tokenizer_assets.test_folders_not_given_are_looked_for_beside_the_models"
    ),
    "t5_tokenizer_dir": shown("test_config_adapter.test_the_official_names_are_aliases"),
    "anima_seq_len": Case(
        99, "text", idle=({"qwen3_max_token_length": 50, "t5_max_token_length": 60},)
    ),
    "qwen3_max_token_length": Case(99, "text"),
    "t5_max_token_length": Case(99, "text"),
    "empty_caption": Case("zeros", "text"),
    "anima_attention_backend": Case("xformers", "text"),
    "attn_mode": Case("xformers", "text"),
    "text_padding": Case("fold", "text"),
    "xformers": Case(True, "text"),
    "xfomers": Case(True, "text"),
    "sdpa": shown(
        "test_config_adapter.test_a_false_alias_never_switches_another_off", True, {"xformers": True}
    ),
    "fused_kernels": shown("test_one_kernel.test_those_asked_for_are_used_else_the_states"),
    "anima_timestep_sampling": noise("uniform"),
    "anima_sigmoid_scale": noise(2.0),
    "anima_flow_shift": noise(3.0),
    "anima_noise_offset": noise(0.1),
    "train_norm": Case(False, "network"),
    "norm_export": Case("omit_trained", "network"),
    "llm_adapter_lr": RATE,
    "self_attn_lr": RATE,
    "cross_attn_lr": RATE,
    "mlp_lr": RATE,
    "mod_lr": Case(
        3e-4, "network", {"network_args": ["include_patterns=.*adaln_modulation.*"]},
        idle=({"optimizer_type": "Adafactor", "network_args": ["include_patterns=.*adaln_modulation.*"]},),
    ),
    "qwen_tokenizer_repo_id": fetched("a/b"),
    "auto_download_t5_tokenizer": Case(False, "sources"),
    "t5_tokenizer_repo_id": fetched("a/b"),
    "t5_tokenizer_subfolder": fetched("a"),
    "t5_tokenizer_modelscope_fallback": Case(False, "sources"),
    "t5_tokenizer_modelscope_repo_id": fetched("a/b", {"t5_tokenizer_modelscope_fallback": False}),
    "t5_tokenizer_modelscope_revision": fetched("a", {"t5_tokenizer_modelscope_fallback": False}),
    "t5_tokenizer_modelscope_subfolder": fetched("a", {"t5_tokenizer_modelscope_fallback": False}),
    "download_timeout": fetched(5.0),
    "anima_resume_snapshot_strict": shown(
        "test_resume_snapshot.test_soft_and_changeable_differences_are_told_and_strict_makes_them_errors", True, {}
    ),
}  # fmt: skip
