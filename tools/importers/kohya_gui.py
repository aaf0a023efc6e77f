"""kohya_ss GUI: one flat JSON with the options of every model; those of this one begin with anima_."""

from __future__ import annotations

from typing import Any

from tools.importers.draft import UNSET, Draft, Leaf
from tools.importers.machine import Document, Nearby, Source
from tools.importers.rules import (
    NoCounterpart,
    Rule,
    choice,
    idle,
    loosely,
    lost,
    many,
    number,
    path_to,
    text,
    whole,
)
from tools.importers.sd_scripts import settle_folders
from tools.importers.shared import (
    BY_DEST,
    COMPONENT_RATES,
    OFFICIAL_IGNORES,
    THERE_IDLE,
    flag_rule,
    read_flag,
    settle_shared,
    shared_rule,
    spread_arguments,
)
from tools.importers.shell_words import words_document

PREFIX = "anima_"
OTHER_MODEL = idle("it belongs to another model")
BLOCKS = "block_alphas block_dims conv_block_alphas conv_block_dims down_lr_weight mid_lr_weight up_lr_weight"
OTHER_MODELS = ("flux", "sd3", "sdxl", "lumina", "clip_", "t5xxl", "hunyuan", "chroma", "cascade")
WINDOW = idle("by it the window remembers something of its own")
KINDS = {"anima": "lora", "standard": "lora", "lora": "lora"}


def kind(value: Any) -> str:
    """The adapter by the window's name for it: "Anima", "Kohya LoKr", "LyCORIS/LoKr"."""
    name = text(value).lower().removeprefix("kohya ").removeprefix("lycoris/").strip()
    if name in ("flux1", "sd3", "lumina", "flux1 oft", "hunyuan"):
        raise ValueError("expected an adapter for this model")
    return KINDS.get(name, name)


def precision(value: Any) -> str:
    """fp8 is a form of weights here, not a precision of products."""
    if value == "fp8":
        raise NoCounterpart("products are bf16 or fp16; int8_base is the small form of the weights")
    return choice({"no": "no", "fp16": "fp16", "bf16": "bf16"})(value)


RULES = {
    **many(f"{OFFICIAL_IGNORES} {COMPONENT_RATES}", lambda name: THERE_IDLE),
    "LoRA_type": Rule("special.algo", kind),
    "constrain": Rule("network.constraint", loosely(number), asks_not=(0,)),
    "optimizer": Rule("special.optimizer_type", text),
    "max_resolution": Rule(
        "train.resolution", lambda value: read_flag(BY_DEST["resolution"], value)
    ),
    "epoch": Rule("special.epoch", loosely(whole)),
    "lr_warmup": Rule("special.warmup_percent", loosely(number)),
    "lr_warmup_steps": Rule("special.warmup_steps", loosely(number)),
    "lr_scheduler": Rule("special.lr_scheduler", text),
    "xformers": Rule("special.attention", text),
    "sample_prompts": Rule("special.prompts", text),
    "mixed_precision": Rule("train.mixed_precision", precision),
    "train_data_dir": path_to("special.train_data_dir"),
    "reg_data_dir": path_to("special.reg_data_dir"),
    "vae": path_to("special.plain_vae"),
    **many(
        "timestep_sampling discrete_flow_shift sigmoid_scale weighting_scheme guidance_scale ae "
        "model_prediction_type in_dims train_blocks split_mode split_qkv mode_scale logit_mean "
        "logit_std train_t5xxl apply_t5_attn_mask cpu_offload_checkpointing blocks_to_swap "
        "single_blocks_to_swap double_blocks_to_swap single_dim double_dim img_attn_dim txt_attn_dim "
        "img_mlp_dim txt_mlp_dim img_mod_dim txt_mod_dim",
        lambda name: OTHER_MODEL,
    ),
    **many(
        f"{BLOCKS} block_lr_zero_threshold train_on_input unit no_token_padding",
        lambda name: OTHER_MODEL,
    ),
    "LyCORIS_preset": lost(
        "targets are told by network_args: target_modules, exclude_patterns", "full"
    ),
    "stop_text_encoder_training": lost("the text encoder trains to the end, or not at all"),
    "multi_gpu": idle("accelerate launch tells how many processes train"),
    **many(
        "anima_checkbox model_list save_as_bool lowvram training_preset dataset_type",
        lambda name: WINDOW,
    ),
}


def prepare(document: Document, nearby: Nearby) -> Document:
    """The document without what 0 leaves out, and with its texts of arguments as tables."""
    found = {key: None if is_zero(value) else value for key, value in document.items()}
    more = found.get("additional_parameters")
    if isinstance(more, str) and more.strip():
        found["additional_parameters"] = words_document(more)
    return spread_arguments(found)


def is_zero(value: Any) -> bool:
    """0 in a number's field is an empty field."""
    return type(value) in (int, float) and value == 0


def other(leaf: Leaf) -> Rule | None:
    """An option under its own name, or with anima_ before it; what other models have is idle."""
    key = leaf.name.rpartition(".")[2]
    if key.startswith(PREFIX) and (rule := flag_rule(key.removeprefix(PREFIX)) or flag_rule(key)):
        return rule
    if key.startswith(OTHER_MODELS):
        return OTHER_MODEL
    return shared_rule(leaf)


def settle(draft: Draft) -> None:
    """What fields of the window mean together."""
    settle_length(draft)
    settle_schedule(draft)
    settle_attention(draft)
    settle_folders(draft)
    if vae := draft.take("plain_vae"):
        if "vae" in draft.train:
            draft.find(UNSET, vae.leaf, why="anima_vae is this model's")
        else:
            draft.put(vae.leaf, "train.vae", vae.value)
    settle_prompts(draft)
    settle_shared(draft, unet_only=not draft.has("text_encoder_lr"))


def settle_length(draft: Draft) -> None:
    """epoch counts where neither max_train_epochs nor max_train_steps does."""
    epoch = draft.take("epoch")
    if epoch and {"max_train_epochs", "max_train_steps"} & draft.train.keys():
        draft.find(UNSET, epoch.leaf, why="max_train_epochs or max_train_steps is set")
    elif epoch:
        draft.put(epoch.leaf, "train.max_train_epochs", epoch.value)


def settle_schedule(draft: Draft) -> None:
    """Warm-up in steps, else in percent of the run; a constant rate has none there."""
    schedule, percent, steps = map(draft.take, ("lr_scheduler", "warmup_percent", "warmup_steps"))
    if schedule:
        draft.put(schedule.leaf, "train.lr_scheduler", schedule.value)
    is_constant = not schedule or schedule.value == "constant"
    for waiting in filter(None, (steps, percent)):
        if is_constant:
            draft.lose(
                waiting.leaf, "a constant rate has no warm-up there: see constant_with_warmup"
            )
        elif waiting is steps:
            draft.put(waiting.leaf, "train.lr_warmup_steps", waiting.value)
        elif steps:
            draft.find(UNSET, waiting.leaf, why="lr_warmup_steps is set")
        else:
            draft.put(waiting.leaf, "train.lr_warmup_steps", f"{waiting.value}%")


def settle_attention(draft: Draft) -> None:
    """The field's choice, where anima_attn_mode leaves one."""
    attention = draft.take("attention")
    if attention and "attn_mode" in draft.train:
        draft.find(UNSET, attention.leaf, why="anima_attn_mode is set")
    elif attention and attention.value in ("sdpa", "xformers"):
        draft.put(attention.leaf, f"train.{attention.value}", True)
    elif attention:
        draft.find(UNSET, attention.leaf)


def settle_prompts(draft: Draft) -> None:
    """The field holds prompts, not the name of their file."""
    if prompts := draft.take("prompts"):
        draft.write(
            prompts.leaf, "sample_prompts", "sample_prompts.txt", f"{prompts.value.strip()}\n"
        )


SOURCE = Source("kohya_ss GUI", RULES, settle, prepare, other)
