"""diffusion-pipe's keys: how each is read, and where it goes. Its forks' own ones too."""

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
)  # fmt: skip

SAVED = {"float32": "float", "float16": "fp16", "bfloat16": "bf16"}
TRAINED = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}
MANY_CARDS = lost("one process a card holds the whole model here")
NO_EVALUATION = lost("validation_split holds pictures of the trained folders out here")
OF_EVALUATION = idle("it belongs to eval_datasets")
TEXT_ENCODER = idle("the text encoder is put away once texts are cached")
KINDS = {"locon": "lora", "diag_oft": "diag-oft"}
VIDEO = lost("only pictures are trained here")
BUCKETS = lost("buckets are made of min_bucket_reso, max_bucket_reso and bucket_reso_steps here")
ASPECTS = lost("there wider pictures are cropped to it, and here min_ar and max_ar leave them out")


def batch(value: Any) -> int | dict[int, int]:
    """One number, or one for each resolution: [[512, 4], [1024, 1]]."""
    if not isinstance(value, list):
        return loosely(whole)(value)
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise ValueError("expected a number, or pairs of a resolution and a number")
    return {whole(edge): whole(count) for edge, count in value}


def kind(value: Any) -> str:
    """The kind of adapter by LyCORIS's name for it."""
    name = text(value).strip().lower()
    return KINDS.get(name, name)


def small_form(value: Any) -> str | None:
    """float8 alone is smaller than what computes."""
    name = text(value).strip().lower()
    return "fp8_base" if name.startswith("float8") else None


def weights(value: Any) -> dict[str, float]:
    """Shares of forms of a caption, by the name of each here."""
    forms = {
        "tags": "tags",
        "nl": "sentences",
        "tags_nl": "tags_sentences",
        "nl_tags": "sentences_tags",
    }
    if not isinstance(value, dict) or not set(value) <= set(forms):
        raise ValueError(f"expected a table of {', '.join(forms)}")
    return {forms[name]: number(share) for name, share in value.items()}


def shuffles(value: Any) -> bool:
    """Whether tags are shuffled: a number of orders there, anew each time here."""
    return whole(value) > 0


def delimiter(value: Any) -> str:
    """What parts tags, without the spaces around it."""
    return text(value).strip() or " "


def frozen(value: Any) -> int:
    """A part that does not train has the rate 0."""
    if switch(value):
        raise ValueError("expected false")
    return 0


def dataset_rules(prefix: str, dataset: str, captions: str) -> dict[str, Rule]:
    """Keys that stand at the top of the dataset file and in each directory, and their tables here."""
    found = {
        "resolutions": Rule(f"{dataset}.resolutions", sizes),
        "enable_ar_bucket": Rule(f"{dataset}.enable_bucket", loosely(switch)),
        "shuffle_tags": Rule(f"{captions}.shuffle_caption", switch),
        "cache_shuffle_num": Rule(
            f"{captions}.shuffle_caption",
            shuffles,
            why="each time anew, not some orders",
            asks_not=(0,),
        ),
        "cache_shuffle_delimiter": Rule(f"{captions}.caption_separator", delimiter),
        "skip_empty_caption": Rule(f"{captions}.skip_empty_caption", switch),
        **many("min_ar max_ar", lambda name: ASPECTS),
        **many("ar_buckets num_ar_buckets size_buckets", lambda name: BUCKETS),
        "frame_buckets": lost(VIDEO.why, [1]),
    }
    return {f"{prefix}{name}": rule for name, rule in found.items()}


RULES = {
    "output_dir": path_to("train.output_dir"),
    "epochs": Rule("train.max_train_epochs", whole),
    "max_steps": Rule("train.max_train_steps", whole),
    "micro_batch_size_per_gpu": Rule("special.batches", batch),
    "image_micro_batch_size_per_gpu": Rule("special.image_batches", batch),
    "gradient_accumulation_steps": Rule("train.gradient_accumulation_steps", whole),
    "gradient_clipping": Rule("train.max_grad_norm", number),
    "warmup_steps": Rule("special.warmup", whole),
    "lr_scheduler": Rule("special.schedule", choice({n: n for n in ("constant", "linear", "cosine")})),
    "blocks_to_swap": Rule("train.blocks_to_swap", whole),
    "pseudo_huber_c": Rule("special.huber", number),
    "save_every_n_epochs": Rule("train.save_every_n_epochs", whole),
    "save_every_n_steps": Rule("train.save_every_n_steps", whole),
    "save_every_n_examples": lost("save_every_n_steps counts updates"),
    **many("checkpoint_every_n_epochs checkpoint_every_n_minutes", lambda n: Rule("special.states")),
    "activation_checkpointing": Rule("special.checkpointing"),
    "save_dtype": Rule("train.save_precision", choice(SAVED)),
    "caching_batch_size": Rule("train.vae_batch_size", whole),
    "compile": Rule("train.compile", switch),
    "seed": Rule("train.seed", whole),
    "steps_per_print": Rule("train.log_every_n_steps", whole),
    "uncond_fraction": Rule("general.caption_dropout_rate", number),
    **many(
        "caption_dropout_percent model.caption_dropout_percent",
        lambda n: Rule("general.caption_dropout_rate", number, asks_not=(0,)),
    ),
    "model.tag_dropout_percent": Rule("general.caption_tag_dropout_rate", number, asks_not=(0,)),
    "model.shuffle_tags": Rule("general.shuffle_caption", switch),
    "model.shuffle_keep_first_n": Rule("general.keep_tokens", whole),
    "model.tag_delimiter": Rule("general.caption_separator", delimiter),
    "model.caption_mode": Rule("special.mode", choice({n: n for n in ("tags", "nl", "mixed")})),
    "model.mixed_weights": Rule("special.mixed", weights),
    "model.nl_shuffle_sentences": lost("sentences are never shuffled here"),
    "model.nl_keep_first_sentence": idle("it belongs to nl_shuffle_sentences"),
    "model.protected_tags_file": lost("keep_tokens keeps the first tags, and no others by name"),
    **many(
        "model.attribution_patterns model.attribution_position model.attribution_dropout_immune "
        "model.attribution_dedupe_on_combine",
        lambda n: lost("keep_tokens keeps the first tags; what they say is not looked at", True, "fixed"),
    ),
    **many("model.debug_caption_processing model.debug_caption_interval",
           lambda n: idle("tools/preview_buckets.py shows captions as they are trained")),
    "model.cache_text_embeddings": Rule("train.cache_text_encoder_outputs", switch),
    **many("train_llm_adapter model.train_llm_adapter", lambda n: Rule("network.train_llm_adapter", switch)),
    "model.train_adaln": Rule("special.adaln", switch),
    **many("model.train_self_attn model.train_cross_attn model.train_mlp",
           lambda n: Rule(f"train.{n.removeprefix('model.train_')}_lr", frozen, asks_not=(True,))),
    **many("model.qwen_nf4 model.qwen_fp8", lambda name: TEXT_ENCODER),
    "model.type": Rule("special.model", text),
    "model.transformer_path": path_to("train.pretrained_model_name_or_path"),
    "model.vae_path": path_to("train.vae"),
    **many("model.llm_path model.qwen_path model.qwen_state_dict_path", lambda name: path_to("train.qwen3")),
    "model.dtype": Rule("train.mixed_precision", choice(TRAINED)),
    "model.transformer_dtype": Rule("special.form", small_form),
    "model.timestep_sample_method": Rule("special.draw", choice({"logit_normal": "sigmoid", "uniform": "uniform"})),
    "model.sigmoid_scale": Rule("train.sigmoid_scale", number),
    "model.shift": Rule("special.shift", number),
    "model.flux_shift": Rule("special.flux_shift", switch),
    **many(
        "model.self_attn_lr model.cross_attn_lr model.mlp_lr model.mod_lr model.llm_adapter_lr",
        lambda name: Rule(f"train.{name.partition('.')[2]}", number),
    ),
    "adapter.type": Rule("special.algo", kind),
    "adapter.rank": Rule("special.rank", loosely(whole)),
    "adapter.alpha": Rule("special.alpha", loosely(number)),
    "adapter.dropout": Rule("train.network_dropout", number),
    "adapter.decompose_factor": Rule("network.lokr_factor", whole),
    "adapter.dtype": Rule("special.factors", choice(TRAINED)),
    "adapter.init_from_existing": path_to("train.network_weights"),
    "adapter.fuse_adapters": lost("that program merges files into another model alone; base_weights does it here"),
    "optimizer.type": Rule("special.optimizer", text),
    "optimizer.lr": Rule("train.learning_rate", number),
    "optimizer.stabilize": lost("the optimizer here has no such option"),
    "monitoring.enable_wandb": Rule("special.wandb", switch),
    "monitoring.wandb_api_key": Rule("train.wandb_api_key", text, secret=True),
    "monitoring.wandb_tracker_name": Rule("train.log_tracker_name", text),
    "monitoring.wandb_run_name": Rule("train.wandb_run_name", text),
    **many("pipeline_stages partition_method partition_split", lambda name: lost(MANY_CARDS.why, 1, "parameters")),
    "eval_datasets": NO_EVALUATION,
    **many(
        "eval_every_n_epochs eval_every_n_steps eval_every_n_examples eval_before_first_step "
        "eval_micro_batch_size_per_gpu eval_gradient_accumulation_steps disable_block_swap_for_eval "
        "image_eval_micro_batch_size_per_gpu", lambda name: OF_EVALUATION,
    ),
    "video_clip_mode": idle("only pictures are trained here"),
    "force_constant_lr": Rule("special.forced_rate", number),
    "reentrant_activation_checkpointing": lost("blocks are recomputed in one way here"),
    "map_num_proc": idle("caching uses the cores that there are"),
    "x_axis_examples": lost("logs count steps"),
    "upload_hf_from_epoch": lost("every saved file is uploaded, from the first"),
    "huggingface_repo": Rule("train.huggingface_repo_id", text),
    **dataset_rules("dataset.", "datasets", "general"),
    **dataset_rules("dataset.directory[].", "of_subset", "subsets"),
    "dataset.uncond_fraction": Rule("general.caption_dropout_rate", number),
    "dataset.directory[].path": path_to("subsets.image_dir"),
    "dataset.directory[].num_repeats": Rule("subsets.num_repeats", whole),
    "dataset.directory[].mask_path": path_to("subsets.mask_path"),
    "dataset.directory[].caption_prefix": Rule("subsets.caption_prefix", text),
}  # fmt: skip
