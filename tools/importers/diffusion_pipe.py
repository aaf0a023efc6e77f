"""diffusion-pipe: its TOML with [model], [adapter] and [optimizer], and the dataset file that it names."""

from __future__ import annotations

from typing import Any

from library.errors import Problem
from tools.importers.draft import KEPT, UNSET, Draft, Leaf, Waiting
from tools.importers.machine import Document, Nearby, Source
from tools.importers.noise import ADALN
from tools.importers.rules import (
    NoCounterpart,
    Rule,
    choice,
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
from tools.importers.shared import WHOLE_MODEL, optimizer_name, settle_shared

FULL_MATRIX = 100_000  # a rank beyond any matrix: the second factor of LoKr as it is
SAVED = {"float32": "float", "float16": "fp16", "bfloat16": "bf16"}
TRAINED = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}
MANY_CARDS = lost("one process a card holds the whole model here")
NO_EVALUATION = lost("evaluation is told by evaluate_every_n_epochs and validation_split here")
VIDEO = lost("only pictures are trained here")
BUCKETS = lost("buckets are made of min_bucket_reso, max_bucket_reso and bucket_reso_steps here")
ASPECTS = lost("there wider pictures are cropped to it, and here min_ar and max_ar leave them out")


def batch(value: Any) -> int:
    """One number; which of several is for which resolution depends on the dataset's file."""
    if isinstance(value, list):
        raise NoCounterpart("write it in dataset.toml, such as batch_size = {512 = 4, 1024 = 1}")
    return loosely(whole)(value)


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
    "micro_batch_size_per_gpu": Rule("datasets.batch_size", batch),
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
    "model.caption_mode": lost("captions are one text a picture", "tags"),
    "model.cache_text_embeddings": Rule("train.cache_text_encoder_outputs", switch),
    "model.train_llm_adapter": Rule("network.train_llm_adapter", switch),
    "model.train_adaln": Rule("special.adaln", switch),
    **many("model.train_self_attn model.train_cross_attn model.train_mlp",
           lambda n: Rule(f"train.{n.removeprefix('model.train_')}_lr", frozen, asks_not=(True,))),
    "model.qwen_nf4": lost("the text encoder is put away once texts are cached"),
    "model.type": Rule("special.model", text),
    "model.transformer_path": path_to("train.pretrained_model_name_or_path"),
    "model.vae_path": path_to("train.vae"),
    **many("model.llm_path model.qwen_path", lambda name: path_to("train.qwen3")),
    "model.dtype": Rule("train.mixed_precision", choice(TRAINED)),
    "model.transformer_dtype": lost("the frozen weights are kept in mixed_precision; int8_base is the small form here"),
    "model.timestep_sample_method": Rule("special.draw", choice({"logit_normal": "sigmoid", "uniform": "uniform"})),
    "model.sigmoid_scale": Rule("train.sigmoid_scale", number),
    "model.shift": Rule("special.shift", number),
    "model.flux_shift": Rule("special.flux_shift", switch),
    **many(
        "model.self_attn_lr model.cross_attn_lr model.mlp_lr model.mod_lr model.llm_adapter_lr",
        lambda name: Rule(f"train.{name.partition('.')[2]}", number),
    ),
    "adapter.type": Rule("special.algo", choice({"lora": "lora", "lokr": "lokr"})),
    "adapter.rank": Rule("special.rank", loosely(whole)),
    "adapter.alpha": lost("alpha is always the rank there"),
    "adapter.dropout": Rule("train.network_dropout", number),
    "adapter.decompose_factor": Rule("network.lokr_factor", whole),
    "adapter.dtype": Rule("special.factors", choice(TRAINED)),
    "adapter.init_from_existing": path_to("train.network_weights"),
    "adapter.fuse_adapters": lost("base_weights merges files into the base: their format is its own"),
    "optimizer.type": Rule("special.optimizer", text),
    "optimizer.lr": Rule("train.learning_rate", number),
    "optimizer.stabilize": lost("the optimizer here has no such option"),
    "monitoring.enable_wandb": Rule("special.wandb", switch),
    "monitoring.wandb_api_key": Rule("train.wandb_api_key", text, secret=True),
    "monitoring.wandb_tracker_name": Rule("train.log_tracker_name", text),
    "monitoring.wandb_run_name": Rule("train.wandb_run_name", text),
    **many("pipeline_stages partition_method partition_split", lambda name: lost(MANY_CARDS.why, 1, "parameters")),
    **many(
        "eval_datasets eval_every_n_epochs eval_every_n_steps eval_every_n_examples eval_before_first_step "
        "eval_micro_batch_size_per_gpu eval_gradient_accumulation_steps disable_block_swap_for_eval "
        "image_eval_micro_batch_size_per_gpu", lambda name: NO_EVALUATION,
    ),
    **many("video_clip_mode image_micro_batch_size_per_gpu", lambda name: VIDEO),
    "force_constant_lr": lost("learning_rate with lr_scheduler = constant is that"),
    "reentrant_activation_checkpointing": lost("blocks are recomputed in one way here"),
    "map_num_proc": lost("caching uses the cores that there are"),
    "x_axis_examples": lost("logs count steps"),
    "upload_hf_from_epoch": lost("uploads are told by huggingface_repo_id"),
    "huggingface_repo": lost("uploads are told by huggingface_repo_id"),
    **dataset_rules("dataset.", "datasets", "general"),
    **dataset_rules("dataset.directory[].", "of_subset", "subsets"),
    "dataset.uncond_fraction": Rule("general.caption_dropout_rate", number),
    "dataset.directory[].path": path_to("subsets.image_dir"),
    "dataset.directory[].num_repeats": Rule("subsets.num_repeats", whole),
    "dataset.directory[].mask_path": path_to("subsets.mask_path"),
    "dataset.directory[].caption_prefix": Rule("subsets.caption_prefix", text),
}  # fmt: skip


def prepare(document: Document, nearby: Nearby) -> Document:
    """The document with the dataset file in the place of its name, or of the table as it is."""
    dataset = document.get("dataset")
    if isinstance(dataset, dict):
        return document
    return {**document, "dataset": nearby.pictures("dataset", dataset)}


def other(leaf: Leaf) -> Rule | None:
    """Whatever else stands in [optimizer] is an argument of the optimizer."""
    section, _, key = leaf.name.partition(".")
    return Rule(f"optimizer.{key}") if section == "optimizer" and key.isidentifier() else None


def settle(draft: Draft) -> None:
    """What depends on several keys, and what is trained there unasked."""
    model = draft.take("model")
    if model:
        settle_model(draft, model)
    draft.add("train.caption_extension", ".txt", "the only one there")
    settle_adapter(draft)
    settle_schedule(draft)
    settle_noise(draft)
    draft.add("general.skip_empty_caption", True, "the default there")
    settle_states(draft)
    if wandb := draft.take("wandb"):
        draft.put(wandb.leaf, "train.log_with", "wandb" if wandb.value else "tensorboard")
    if {"max_train_epochs", "max_train_steps"} <= draft.train.keys():
        draft.notes.append(
            "there the run ends at epochs or max_steps, whichever is first; here at epochs."
        )
    settle_shared(draft, unet_only=True)


def settle_model(draft: Draft, model: Waiting) -> None:
    """Files for other models have no counterpart here."""
    if model.value == "anima":
        draft.find(KEPT, model.leaf)
    else:
        message = f"trains {model.value}: here only anima is trained."
        draft.problems.append(Problem(message, model.leaf.shown))


def settle_adapter(draft: Draft) -> None:
    """Rank and alpha; every Linear of the blocks and of the LLM adapter trains there."""
    rank = draft.take("rank")
    if not draft.has("algo") and not draft.problems:
        draft.problems.append(Problem(WHOLE_MODEL, "adapter.type"))
    if rank:
        written: dict[str, Any] = {
            "train.network_dim": rank.value,
            "train.network_alpha": rank.value,
        }
        if draft.value("algo") == "lokr" and rank.value >= FULL_MATRIX:
            written["network.lokr_full_matrix"] = True
        draft.put(rank.leaf, written, why="alpha is the rank there")
    draft.add("network.train_llm_adapter", True, "the LLM adapter trains there")
    adaln = draft.take("adaln")
    if adaln and not adaln.value:
        draft.find(UNSET, adaln.leaf, why="adaLN does not train here either")
    elif adaln:
        draft.put(adaln.leaf, "network.include_patterns", ADALN)
    else:
        draft.add("network.include_patterns", ADALN, "the adaLN Linears train there")
    if factors := draft.take("factors"):
        draft.lose(factors.leaf, "factors are float32 here; full_bf16 = true is the small form")


def settle_schedule(draft: Draft) -> None:
    """Schedule and warm-up: there a constant rate may have one."""
    schedule, warmup = draft.take("schedule"), draft.take("warmup")
    name = schedule.value if schedule else "constant"
    has_warmup = bool(warmup and warmup.value)
    name = "constant_with_warmup" if name == "constant" and has_warmup else name
    if schedule:
        why = "there it ends at 1e-6, here at 0" if name == "cosine" else ""
        draft.put(schedule.leaf, "train.lr_scheduler", name, why)
    draft.add("train.lr_scheduler", name, "the default there")
    if warmup:
        draft.put(warmup.leaf, "train.lr_warmup_steps", warmup.value)
    if optimizer := draft.take("optimizer"):
        known, missing = optimizer_name(optimizer.value)
        draft.put(optimizer.leaf, "train.optimizer_type", known, missing)


def settle_noise(draft: Draft) -> None:
    """How sigma is drawn, and the loss."""
    draw, shift, flux = draft.take("draw"), draft.take("shift"), draft.take("flux_shift")
    method = draw.value if draw else "sigmoid"
    if method == "sigmoid":
        method = "flux_shift" if flux and flux.value else "shift" if shift else method
    if draw:
        draft.put(draw.leaf, "train.timestep_sampling", method)
    draft.add("train.timestep_sampling", method, "the default there")
    if shift and method == "shift":
        draft.put(shift.leaf, "train.discrete_flow_shift", shift.value)
    elif shift:
        draft.lose(shift.leaf, f"timestep_sampling is {method}: it shifts by nothing else")
    if flux:
        draft.put(flux.leaf, "train.timestep_sampling", method)
    if huber := draft.take("huber"):
        written = {
            "train.loss_type": "huber",
            "train.huber_schedule": "constant",
            "train.huber_c": huber.value,
        }
        draft.put(
            huber.leaf, written, why="the scale of the loss may differ: compare the first steps"
        )


def settle_states(draft: Draft) -> None:
    """Checkpointing of blocks, and states."""
    if blocks := draft.take("checkpointing"):
        written: dict[str, Any] = {"train.gradient_checkpointing": bool(blocks.value)}
        if blocks.value == "unsloth":
            written["train.unsloth_offload_checkpointing"] = True
        draft.put(blocks.leaf, written)
    if states := draft.take("states"):
        draft.put(
            states.leaf, "train.save_state", True, "with each saved file, not at times of its own"
        )


SOURCE = Source("diffusion-pipe", RULES, settle, prepare, other)
