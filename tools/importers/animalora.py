"""AnimaLoraStudio, AnimaLoraToolkit: one flat YAML (or JSON) with names of its own."""

from __future__ import annotations

from typing import Any

from tools.importers.draft import CONVERTED, LOST, UNSET, Draft
from tools.importers.machine import Document, Nearby, Source
from tools.importers.noise import logit_normal
from tools.importers.prompts import write_prompts
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
from tools.importers.sd_scripts import folders_in
from tools.importers.shared import settle_shared

PROGRAM = idle("by it the program is run, not the training")
OTHER_NOISE = lost("sigma is drawn by timestep_sampling here, or by weighting_scheme")
OTHER_LOSS = lost("the loss has no such part here")
OPTIMIZERS = {
    "adamw": "AdamW",
    "prodigy": "Prodigy",
    "prodigy_plus_schedulefree": "ProdigyPlusScheduleFree",
}
ATTENTION = {"none": "torch", "xformers": "xformers", "flash_attn": "flash"}
PROMPT_OPTIONS = {
    "sample_width": "width", "sample_height": "height", "sample_infer_steps": "steps",
    "sample_cfg_scale": "cfg", "sample_seed": "seed", "sample_negative_prompt": "negative",
}  # fmt: skip
DEFAULTS = {
    "train.network_dim": 32,
    "train.network_alpha": 32.0,
    "train.learning_rate": 1e-4,
    "train.max_train_epochs": 10,
    "train.gradient_accumulation_steps": 4,
    "train.gradient_checkpointing": True,
    "train.max_grad_norm": 0.0,
    "train.cache_latents": True,
    "train.shuffle_caption": True,
    "train.flip_aug": True,
    "general.enable_bucket": True,
}


def on(target: str) -> Rule:
    return Rule(target, loosely(switch))


def saves(value: Any) -> bool | None:
    """Whether states are kept: an interval of their own there."""
    return True if loosely(whole)(value) > 0 else None


RULES = {
    "model_family": idle("it names the model"),
    "transformer_path": path_to("train.pretrained_model_name_or_path"),
    "vae_path": path_to("train.vae"),
    "text_encoder_path": path_to("train.qwen3"),
    "t5_tokenizer_path": path_to("train.t5_tokenizer_dir"),
    "data_dir": path_to("special.data_dir"),
    "reg_data_dir": path_to("special.reg_data_dir"),
    "reg_caption": lost("class_tokens is the caption of pictures that have none"),
    "reg_weight": Rule("train.prior_loss_weight", loosely(number)),
    "resolution": Rule("general.resolutions", sizes),
    "aspect_ratio_limit": lost("min_ar and max_ar leave wider pictures out, and crop none"),
    "latent_cache_dir": idle("caches lie beside the pictures"),
    "shuffle_caption": on("train.shuffle_caption"),
    "keep_tokens": Rule("train.keep_tokens", loosely(whole)),
    "flip_augment": on("train.flip_aug"),
    "tag_dropout": Rule("train.caption_tag_dropout_rate", loosely(number)),
    "prefer_json": lost("captions are text files, or in metadata_file, here: tags in <name>.txt, sentences in "
                        "<name>_nl.txt with caption_shares"),
    "cache_latents": on("train.cache_latents"),
    "lora_type": Rule("special.algo", choice({name: name for name in ("lora", "lokr", "loha")})),
    "lora_rank": Rule("train.network_dim", loosely(whole)),
    "lora_alpha": Rule("train.network_alpha", loosely(number)),
    "lokr_factor": Rule("network.lokr_factor", loosely(whole)),
    "lora_dora": Rule("network.dora_wd", loosely(switch), asks_not=(False,)),
    "lora_rs": Rule("network.rslora", loosely(switch), asks_not=(False,)),
    "lora_dropout": Rule("train.network_dropout", loosely(number), asks_not=(0,)),
    "lora_rank_dropout": Rule("network.rank_dropout", loosely(number), asks_not=(0,)),
    "lora_module_dropout": Rule("network.module_dropout", loosely(number), asks_not=(0,)),
    "epochs": Rule("train.max_train_epochs", loosely(whole)),
    "max_steps": Rule("train.max_train_steps", loosely(whole), asks_not=(0,)),
    "batch_size": Rule("train.train_batch_size", loosely(whole)),
    "grad_checkpoint": on("train.gradient_checkpointing"),
    "grad_accum": Rule("train.gradient_accumulation_steps", loosely(whole)),
    "learning_rate": Rule("train.learning_rate", loosely(number)),
    "lr_scheduler": Rule("special.schedule", text),
    "lr_scheduler_eta_min": Rule("special.floor", loosely(number)),
    **many("lr_scheduler_t0 lr_scheduler_t_mult", lambda name: Rule(f"special.{name}", loosely(number))),
    "optimizer_type": Rule("special.optimizer_type", choice(OPTIMIZERS)),
    **many("prodigy_d_coef prodigy_safeguard_warmup ppsf_d_coef ppsf_prodigy_steps ppsf_beta1 ppsf_beta2 "
           "ppsf_split_groups ppsf_split_groups_mean ppsf_use_speed ppsf_use_stableadamw",
           lambda name: Rule(f"special.{name}")),
    "ppsf_fused_back_pass": lost("gradients of adapters are small: fused_backward_pass is of a model"),
    "weight_decay": Rule("optimizer.weight_decay", loosely(number)),
    "grad_clip_max_norm": Rule("train.max_grad_norm", loosely(number)),
    "mixed_precision": Rule("train.mixed_precision", choice({n: n for n in ("bf16", "fp16", "no")})),
    "attention_backend": Rule("train.attn_mode", choice(ATTENTION)),
    "xformers": Rule("special.xformers", loosely(switch)),
    "flash_attn": idle("attn_mode chooses the fastest attention unless told otherwise"),
    "num_workers": Rule("train.max_data_loader_n_workers", loosely(whole)),
    "kv_trim": idle("text_padding says how the zeros of short texts count"),
    "vae_tiling": idle("vae_chunk_size decodes a picture in parts where memory is short"),
    "noise_offset": Rule("train.noise_offset", loosely(number), asks_not=(0,)),
    "pyramid_noise_iters": lost("it is defined for models that predict noise"),
    "pyramid_noise_discount": idle("it belongs to pyramid_noise_iters"),
    "timestep_sampling": Rule("special.draw", text),
    "timestep_shift": Rule("special.shift", loosely(number)),
    "infonoise_enabled": OTHER_NOISE,
    **many("K N_warm M B beta N_min", lambda name: idle("it belongs to infonoise_enabled"), "infonoise_"),
    "loss_weighting": Rule("special.weighting", text),
    **many("min_snr_gamma weight_cap_ratio", lambda name: idle("it belongs to loss_weighting")),
    **many("region_balance_enabled apt_enabled", lambda name: OTHER_LOSS),
    "output_dir": path_to("train.output_dir"),
    "output_name": Rule("train.output_name", text),
    **many("save_every save_every_epochs", lambda n: Rule("train.save_every_n_epochs", loosely(whole), asks_not=(0,))),
    "save_every_steps": Rule("train.save_every_n_steps", loosely(whole), asks_not=(0,)),
    **many("save_state_every save_state_every_epochs save_state_every_steps",
           lambda name: Rule("train.save_state", saves, why="with each saved file")),
    "seed": Rule("train.seed", whole),
    "resume_lora": path_to("train.network_weights"),
    "resume_state": lost("a state is one program's own; network_weights goes on from a file"),
    "sample_every": Rule("train.sample_every_n_epochs", loosely(whole), asks_not=(0,)),
    "sample_steps": Rule("train.sample_every_n_steps", loosely(whole), asks_not=(0,)),
    "sample_sampler_name": Rule("train.sample_sampler", text),
    "sample_scheduler": idle("pictures are drawn as ComfyUI draws them"),
    **many(" ".join((*PROMPT_OPTIONS, "sample_prompt", "sample_prompts")), lambda name: Rule(f"special.{name}")),
    "log_every": Rule("train.log_every_n_steps", loosely(whole)),
    **many("loss_curve_steps no_progress no_monitor monitor_host monitor_port no_browser", lambda n: PROGRAM),
}  # fmt: skip
OF_REGIONS = ("region_", "apt_")


def prepare(document: Document, nearby: Nearby) -> Document:
    """The document; what a part of the loss is made of goes with its switch."""
    return {
        key: value for key, value in document.items()
        if not key.startswith(OF_REGIONS) or key.endswith("_enabled")
    }  # fmt: skip


def settle(draft: Draft) -> None:
    """What depends on several keys, and what is trained there unasked."""
    settle_folders(draft)
    if xformers := draft.take("xformers"):
        if xformers.value and "attn_mode" not in draft.train:
            draft.put(xformers.leaf, "train.xformers", True)
        else:
            draft.find(UNSET, xformers.leaf, why="attention_backend is the newer word")
    settle_schedule(draft)
    settle_noise(draft)
    settle_optimizer(draft)
    settle_prompts(draft)
    if "max_train_steps" in draft.train and "max_train_epochs" not in draft.train:
        draft.notes.append(
            "the run ends at max_steps or after 10 epochs there, whichever is first."
        )
    for target, value in DEFAULTS.items():
        draft.add(target, value, "the default there")
    if not draft.has("algo"):
        draft.add("train.network_module", "networks.lokr_anima", "the default there")
    if draft.value("algo", "lokr") == "lokr":
        draft.add("network.lokr_factor", 8, "the default there")
    settle_shared(draft, unet_only=True)


def settle_folders(draft: Draft) -> None:
    """`<repeats>_<class>` folders one by one, or the folder itself."""
    for name in ("data_dir", "reg_data_dir"):
        waiting = draft.take(name)
        found = folders_in(draft, name, waiting.value) if waiting else []
        for folder, repeats, _ in found:
            subset = draft.table("subsets", (len(draft.subsets),))
            subset |= {"image_dir": folder.as_posix(), "num_repeats": repeats}
            subset |= {"is_reg": True} if name == "reg_data_dir" else {}
        if waiting and found:
            names = ", ".join(f"image_dir = {folder.name}" for folder, _, _ in found)
            draft.find(CONVERTED, waiting.leaf, names, "its folders one by one")
        elif waiting:
            leaf = waiting.leaf._replace(places=(len(draft.subsets),))
            reg = {"subsets.is_reg": True} if name == "reg_data_dir" else {}
            draft.put(leaf, {"subsets.image_dir": waiting.value, **reg})


def settle_schedule(draft: Draft) -> None:
    """none, cosine, cosine_with_restart; a cosine ends at 1e-6 there unless told otherwise."""
    schedule, floor = draft.take("schedule"), draft.take("floor")
    name = schedule.value if schedule else "none"
    usual = draft.train.get("learning_rate", DEFAULTS["train.learning_rate"])
    becomes = {
        "none": "constant",
        "cosine": "cosine_with_min_lr",
        "cosine_with_restart": "cosine_with_restarts",
    }
    if schedule and name in becomes:
        draft.put(schedule.leaf, "train.lr_scheduler", becomes[name])
    elif schedule:
        draft.lose(schedule.leaf, "see lr_scheduler; a constant rate is trained")
    if name == "cosine":
        ratio = (floor.value if floor else 1e-6) / usual
        if floor:
            draft.put(floor.leaf, "train.lr_scheduler_min_lr_ratio", ratio)
        draft.add("train.lr_scheduler_min_lr_ratio", ratio, "the default there")
    elif floor:
        draft.find(UNSET, floor.leaf, why=f"lr_scheduler is {name}")
    for key in ("lr_scheduler_t0", "lr_scheduler_t_mult"):
        if (waiting := draft.take(key)) and name == "cosine_with_restart":
            draft.lose(waiting.leaf, "cycles are equally long here: see lr_scheduler_num_cycles")
        elif waiting:
            draft.find(UNSET, waiting.leaf, why=f"lr_scheduler is {name}")


def settle_noise(draft: Draft) -> None:
    """How sigma is drawn: shifted by 3 there unless told otherwise, and how the loss is weighted."""
    draw, shift, weighting = draft.take("draw"), draft.take("shift"), draft.take("weighting")
    name = draw.value if draw else "logit_normal"
    amount = shift.value if shift else 3.0
    written: dict[str, Any] = {}
    if name == "logit_normal":
        written = logit_normal(1.0, 0.0, amount)
    elif name == "uniform":
        written = {"train.timestep_sampling": "uniform"}
    if draw and written:
        draft.put(draw.leaf, written)
    elif draw:
        draft.lose(draw.leaf, OTHER_NOISE.why)
    else:
        for target, value in written.items():
            draft.add(target, value, "the default there")
    if shift:
        became = f"discrete_flow_shift = {amount}" if name == "logit_normal" else ""
        draft.find(CONVERTED if became else UNSET, shift.leaf, became)
    if weighting and weighting.value == "cosmap":
        draft.put(weighting.leaf, "train.weighting_scheme", "cosmap")
    elif weighting:
        is_off = weighting.value == "none"
        draft.find(
            UNSET if is_off else LOST,
            weighting.leaf,
            why="" if is_off else "weighting_scheme weights here",
        )


def settle_optimizer(draft: Draft) -> None:
    """The arguments of the chosen optimizer alone."""
    chosen = str(draft.value("optimizer_type", "AdamW"))
    first, second = draft.take("ppsf_beta1"), draft.take("ppsf_beta2")
    is_plus = chosen == "ProdigyPlusScheduleFree"
    for waiting in filter(None, (first, second)):
        if is_plus and first and second:
            draft.put(waiting.leaf, {"optimizer.betas": f"({first.value},{second.value})"})
        else:
            draft.find(
                UNSET, waiting.leaf, why="it belongs to another optimizer, or half of a pair"
            )
    for name in [name for name in draft.waiting if name.startswith(("prodigy_", "ppsf_"))]:
        part, _, key = name.partition("_")
        if (found := draft.take(name)) and (is_plus if part == "ppsf" else chosen == "Prodigy"):
            draft.put(found.leaf, f"optimizer.{key}", found.value)
        elif found:
            draft.find(UNSET, found.leaf, why=f"optimizer_type is {chosen}")


def settle_prompts(draft: Draft) -> None:
    """Prompts with their size, seed, steps and guidance, a line each; 0 and empty leave one out."""
    options = {option: draft.take(name) for name, option in PROMPT_OPTIONS.items()}
    several, one = draft.take("sample_prompts"), draft.take("sample_prompt")
    if several and one:
        draft.find(UNSET, one.leaf, why="sample_prompts are drawn")
    is_drawn = {"sample_every_n_epochs", "sample_every_n_steps"} & draft.train.keys()
    chosen = [each for each in (several or one,) if each]
    write_prompts(draft, chosen, options, off="" if is_drawn else "no pictures are drawn")


SOURCE = Source("AnimaLoraStudio", RULES, settle, prepare)
