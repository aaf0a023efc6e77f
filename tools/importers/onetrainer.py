"""OneTrainer: its JSON, with the concepts in it or in the file that it names.

The file holds every field of the program, those of other models and of what is switched off too.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from library.settings.foreign_names import OPTIMIZER_ARGS
from tools.importers.draft import CONVERTED, KEPT, LOST, UNSET, Draft, Leaf, Waiting
from tools.importers.machine import Document, Nearby, Source
from tools.importers.noise import logit_normal, uniform
from tools.importers.onetrainer_rules import OTHER_MODEL, RULES
from tools.importers.onetrainer_weights import (
    settle_fused,
    settle_memory,
    settle_parts,
    settle_precision,
    settle_text_encoder,
)
from tools.importers.rules import Rule, idle, lost
from tools.importers.shared import literal, settle_shared
from tools.importers.whole_model import settle_whole

UNITS = {"EPOCH": "save_every_n_epochs", "STEP": "save_every_n_steps"}
SCHEDULES = {
    "constant": "constant", "linear": "linear", "cosine": "cosine",
    "cosine_with_restarts": "cosine_with_restarts", "cosine_with_hard_restarts": "cosine_with_restarts",
}  # fmt: skip
OTHER_PARTS = (
    "unet prior text_encoder text_encoder_2 text_encoder_3 text_encoder_4 transformer vae "
    "unconditional_transformer effnet_encoder decoder decoder_text_encoder decoder_vqgan quantization "
    "embedding additional_embeddings[] cloud optimizer_defaults secrets concepts[].concept_stats"
)
SWITCHED_OFF = (
    "concepts[].image.random_", "concepts[].text.caps_randomize", "concepts[].text.tag_dropout_special",
)  # fmt: skip
DEFAULTS = {
    "train.max_train_epochs": 100,
    "train.gradient_checkpointing": True,
    "train.cache_latents": True,
    "train.cache_text_encoder_outputs": True,
    "general.enable_bucket": True,
}
IDLE_PREFIXES = (*(f"{part}." for part in OTHER_PARTS.split()), *SWITCHED_OFF)
CONCEPT_KEYS = (
    "name seed balancing_strategy enabled validation_concept enable_resolution_override "
    "tag_dropout_enable tag_dropout_mode prompt_path __version"
)
CONCEPT_WORDS = idle("the other keys of the concept tell it")


def prepare(document: Document, nearby: Nearby) -> Document:
    """The document with its concepts in it, each with what is switched on alone."""
    concepts = document.get("concepts")
    if not concepts:
        name = document.get("concept_file_name", "training_concepts/concepts.json")
        concepts = nearby.pictures("concept_file_name", name)
    listed = [concept(each) for each in concepts if isinstance(each, dict)]
    return {**document, "concepts": listed}


def concept(found: Document) -> Document:
    """A concept as it is used: one that is switched off, or for validation, is its path alone."""
    if (
        found.get("enabled") is False
        or found.get("validation_concept")
        or found.get("type") == "VALIDATION"
    ):
        return {"left_out": found.get("path", "")}
    image, words = dict(found.get("image") or {}), dict(found.get("text") or {})
    if not image.get("enable_resolution_override"):
        image["resolution_override"] = None
    chance = words.get("tag_dropout_probability")
    if not words.get("tag_dropout_enable"):
        words["tag_dropout_probability"] = None
    elif words.get("tag_dropout_mode") == "FULL":
        words["tag_dropout_probability"], words["caption_dropout"] = None, chance
    changed = {**found, "image": image, "text": words}
    if str(found.get("balancing_strategy")).upper() == "SAMPLES":
        changed["balancing"] = f"{found.get('balancing')} samples"
    return changed


def other(leaf: Leaf) -> Rule | None:
    """Parts of other models, and the arguments of the optimizer."""
    section, _, key = leaf.name.rpartition(".")
    if leaf.name.startswith(IDLE_PREFIXES):
        return OTHER_MODEL
    if section == "concepts[]" or section.startswith("concepts[]."):
        return CONCEPT_WORDS if key in CONCEPT_KEYS.split() else None
    if section == "optimizer" and key in OPTIMIZER_ARGS:
        return Rule(f"optimizer.{OPTIMIZER_ARGS[key]}", literal)
    return lost("the optimizer here has no such option", "NONE") if section == "optimizer" else None


def settle(draft: Draft) -> None:
    """What depends on several keys, and what is trained there unasked."""
    method = draft.take("training_method")
    for waiting in filter(None, (method, draft.take("model"))):
        draft.find(KEPT, waiting.leaf)
    if base := draft.take("base"):
        settle_base(draft, base)
    settle_files(draft)
    settle_rate(draft)
    settle_schedule(draft)
    settle_text_encoder(draft)
    settle_loss(draft)
    settle_noise(draft)
    settle_memory(draft)
    whole = bool(method and method.value == "fine_tune")
    settle_precision(draft, whole=whole)
    for target, value in DEFAULTS.items():
        draft.add(target, value, "the default there")
    if any(subset.get("is_reg") for subset in draft.subsets.values()):
        draft.add(
            "train.prior_preservation_weight",
            1.0,
            "prior concepts teach the base's prediction there",
        )
    settle_adapter(draft)
    settle_arguments(draft)
    if whole:
        settle_parts(draft)
        settle_whole(draft, llm_adapter=False)
    else:
        settle_shared(draft, unet_only=not draft.has("text_encoder_lr"))
    settle_fused(draft, whole=whole)


def settle_base(draft: Draft, base: Waiting) -> None:
    """One file is the DiT; a repository in diffusers' layout has no place here."""
    if base.value.endswith(".safetensors") and "pretrained_model_name_or_path" not in draft.train:
        draft.put(base.leaf, "train.pretrained_model_name_or_path", base.value)
    else:
        draft.lose(base.leaf, "name the three files: pretrained_model_name_or_path, vae, qwen3")


def settle_files(draft: Draft) -> None:
    """Where the result goes, and how often it is saved."""
    if target := draft.take("destination"):
        path = PurePosixPath(target.value.replace("\\", "/"))
        written = {"train.output_dir": str(path.parent), "train.output_name": path.stem}
        draft.put(target.leaf, written)
    every, unit = draft.take("save_every"), draft.take("save_unit")
    name = UNITS.get(str(unit.value).upper()) if unit else None
    if every and name and every.value:
        draft.put(every.leaf, f"train.{name}", every.value)
    elif every:
        draft.find(UNSET, every.leaf)
    if unit:
        draft.find(CONVERTED if name else UNSET, unit.leaf, name or "")
    if states := draft.take("states"):
        draft.put(
            states.leaf, "train.save_state", True, "with each saved file, not at times of its own"
        )
    if board := draft.take("tensorboard"):
        draft.put(board.leaf, "train.log_with", "tensorboard" if board.value else "none")


def settle_adapter(draft: Draft) -> None:
    """The rank of the chosen kind; alpha is 1 there unless given."""
    is_lokr = draft.value("algo") == "lokr"
    for name, counts in (("lora_rank", not is_lokr), ("lokr_dim", is_lokr)):
        waiting = draft.take(name)
        if waiting and counts:
            draft.put(waiting.leaf, "train.network_dim", waiting.value)
        elif waiting:
            draft.find(UNSET, waiting.leaf, why="it belongs to another kind of adapter")
    for target, value in (("network_dim", 16), ("network_alpha", 1.0)):
        draft.add(f"train.{target}", value, "the default there")
    settle_magnitudes(draft)


def settle_arguments(draft: Draft) -> None:
    """Arguments that the optimizers take in pairs; Adafactor has a rate of its own unless told otherwise."""
    is_adafactor = str(draft.value("optimizer_type", "")).lower() == "adafactor"
    pairs = [("beta1", "beta2", "betas")]
    if is_adafactor:
        pairs.append(("eps", "eps2", "eps"))
    for one, two, name in pairs:
        first, second = draft.take(one), draft.take(two)
        if first and second:
            for waiting in (first, second):
                draft.put(waiting.leaf, {f"optimizer.{name}": f"({first.value},{second.value})"})
        elif alone := first or second:
            draft.lose(alone.leaf, f"{one} and {two} go together")
    for name in ("clip_threshold", "decay_rate", "eps", "eps2"):
        found = draft.take(name)
        if found and (is_adafactor or name == "eps"):
            draft.put(found.leaf, f"optimizer.{name}", found.value)
        elif found:
            draft.find(UNSET, found.leaf, why="it belongs to Adafactor")
    for name in ("relative_step", "scale_parameter") if is_adafactor else ():
        draft.add(f"optimizer.{name}", "False", "the default there")


def settle_magnitudes(draft: Draft) -> None:
    """DoRA's, of the inputs unless the outputs are asked for."""
    asking, outputs = draft.take("dora"), draft.take("dora_of_outputs")
    of_lokr = [draft.take(name) for name in ("lokr_dora", "lokr_dora_of_outputs")]
    if draft.value("algo") == "lokr":
        (asking, outputs), of_lokr = of_lokr, [asking, outputs]
    for waiting in filter(None, of_lokr):
        draft.find(UNSET, waiting.leaf, why="it belongs to another kind of adapter")
    is_on, of_outputs = bool(asking and asking.value), bool(outputs and outputs.value)
    if asking and is_on:
        why = "relative to the base's rows, as ComfyUI applies them" if of_outputs else ""
        written = {"network.dora_wd": True, "network.wd_on_out": of_outputs}
        draft.put(asking.leaf, written, why=why)
    elif asking:
        draft.find(UNSET, asking.leaf)
    if outputs:
        draft.find(CONVERTED if is_on else UNSET, outputs.leaf, "wd_on_out" if is_on else "")


def settle_rate(draft: Draft) -> None:
    """The rate with its factor."""
    rate, scaler = draft.take("rate"), draft.take("scaler")
    if part := draft.take("part_rate"):
        if rate:
            draft.find(UNSET, rate.leaf, why="transformer.learning_rate is the DiT's")
        rate = part
    factor = 1
    if scaler and scaler.value in ("batch", "both"):
        factor *= draft.datasets.get(0, {}).get("batch_size", 1)
    if scaler and scaler.value in ("gradient_accumulation", "both"):
        factor *= draft.train.get("gradient_accumulation_steps", 1)
    if rate:
        draft.put(rate.leaf, "train.learning_rate", rate.value * factor**0.5)
    if scaler:
        draft.find(
            CONVERTED if factor != 1 else UNSET, scaler.leaf, "learning_rate", f"x {factor**0.5:g}"
        )


def settle_schedule(draft: Draft) -> None:
    """The schedule with its warm-up of 200 steps unless given."""
    schedule, floor, warmup = draft.take("schedule"), draft.take("floor"), draft.take("warmup")
    word = schedule.value.lower() if schedule else "constant"
    name = SCHEDULES.get(word, "")
    steps = warmup.value if warmup else 200.0
    if name == "constant" and steps:
        name = "constant_with_warmup"
    if name == "cosine" and floor and floor.value:
        name = "cosine_with_min_lr"
        draft.put(floor.leaf, "train.lr_scheduler_min_lr_ratio", floor.value)
    elif floor:
        draft.find(
            LOST if floor.value else UNSET, floor.leaf, why="only cosine has a least rate here"
        )
    if schedule and name:
        draft.put(schedule.leaf, "train.lr_scheduler", name)
    elif schedule:
        draft.lose(schedule.leaf, "see lr_scheduler; a constant rate is trained")
        name = "constant_with_warmup" if steps else "constant"
    draft.add("train.lr_scheduler", name, "the default there")
    if warmup:
        draft.put(warmup.leaf, "train.lr_warmup_steps", int(steps) if steps >= 1 else steps)
    draft.add("train.lr_warmup_steps", 200, "the default there")
    if cycles := draft.take("cycles"):
        is_read = name == "cosine_with_restarts"
        if is_read:
            draft.put(cycles.leaf, "train.lr_scheduler_num_cycles", cycles.value)
        else:
            draft.find(UNSET, cycles.leaf, why=f"{name} has no cycles")


def settle_loss(draft: Draft) -> None:
    """One loss: that of the only strength that is not 0."""
    found = {
        kind: waiting
        for kind, name in (
            ("l2", "mse_strength"),
            ("l1", "mae_strength"),
            ("huber", "huber_strength"),
        )
        if (waiting := draft.take(name))
    }
    chosen = [kind for kind, waiting in found.items() if waiting.value]
    for kind, waiting in found.items():
        if not waiting.value:
            draft.find(UNSET, waiting.leaf)
        elif kind == chosen[0]:
            draft.put(waiting.leaf, {"train.loss_type": kind}, why="its strength is 1 here")
        else:
            draft.lose(waiting.leaf, f"the loss is one here: {chosen[0]}")
    delta = draft.take("huber_delta")
    if delta and chosen[:1] == ["huber"]:
        written = {"train.huber_c": delta.value, "train.huber_schedule": "constant"}
        draft.put(
            delta.leaf, written, why="the scale of the loss may differ: compare the first steps"
        )
    elif delta:
        draft.find(UNSET, delta.leaf, why="it belongs to huber_strength")


def settle_noise(draft: Draft) -> None:
    """How sigma is drawn: uniform there unless told otherwise."""
    names = ("distribution", "noising_weight", "noising_bias", "shift")
    kind, weight, bias, shift = (draft.take(name) for name in names)
    amount = shift.value if shift else 1.0
    word = kind.value.upper() if kind else "UNIFORM"
    if word == "LOGIT_NORMAL":
        written = logit_normal(
            1 + (weight.value if weight else 0), bias.value if bias else 0, amount
        )
    elif word == "UNIFORM":
        written = uniform(amount)
    else:
        written = {}
    if kind and written:
        draft.put(kind.leaf, written)
    elif kind:
        draft.lose(kind.leaf, "uniform and logit_normal have one; sigmoid is trained")
    else:
        for target, value in written.items():
            draft.add(target, value, "the default there")
    for waiting in filter(None, (weight, bias, shift)):
        is_used = bool(written) and (waiting is shift or word == "LOGIT_NORMAL")
        told = CONVERTED if is_used and waiting.value not in (0, (waiting is shift) * 1) else UNSET
        became = ", ".join(f"{name.partition('.')[2]} = {value}" for name, value in written.items())
        draft.find(told, waiting.leaf, became if told == CONVERTED else "")


SOURCE = Source("OneTrainer", RULES, settle, prepare, other)
