"""OneTrainer's weights: which of them train, in which form they are, and where they wait."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tools.importers.draft import CONVERTED, UNSET, Draft, Waiting, became
from tools.importers.onetrainer_rules import BLOCK_PARTS, SMALL_FORMS, WHOLE
from tools.importers.shared import swap_share


def settle_text_encoder(draft: Draft) -> None:
    """It trains where that is asked for, and then its texts are not cached."""
    trains, rate = draft.take("trains_text"), draft.take("text_rate")
    value = rate.value if rate else draft.train.get("learning_rate")
    if trains and trains.value and value:
        draft.waiting["text_encoder_lr"] = [Waiting(trains.leaf, [value])]
        draft.train.setdefault("cache_text_encoder_outputs", False)
        if rate:
            draft.find(CONVERTED, rate.leaf, "text_encoder_lr")
        return
    for waiting in filter(None, (trains, rate)):
        draft.find(UNSET, waiting.leaf, why="the text encoder does not train")


def settle_parts(draft: Draft) -> None:
    """A part of the blocks that layer_filter leaves out is frozen."""
    patterns = draft.table("network").pop("exclude_patterns", "")
    frozen = {f"{part}_lr": 0 for part in BLOCK_PARTS if part in patterns}
    draft.train.update(frozen)
    shown = ", ".join(became("train", name, rate) for name, rate in frozen.items())
    for number, each in enumerate(draft.findings):
        if patterns and each.key == "layer_filter":
            draft.findings[number] = replace(each, became=shown)


def settle_memory(draft: Draft) -> None:
    """Recomputed blocks, and the average of the weights."""
    if blocks := draft.take("checkpointing"):
        written: dict[str, Any] = {"train.gradient_checkpointing": blocks.value != "off"}
        if blocks.value == "cpu":
            written["train.cpu_offload_checkpointing"] = True
        draft.put(blocks.leaf, written)
    if share := draft.take("offloaded"):
        if blocks and blocks.value == "cpu":
            swap_share(draft, share, share.value)
        else:
            draft.find(
                UNSET, share.leaf, why="it belongs to gradient_checkpointing = CPU_OFFLOADED"
            )
    ema, decay = draft.take("ema"), draft.take("ema_decay")
    is_on = bool(ema and ema.value.upper() != "OFF")
    if ema:
        draft.find(CONVERTED if is_on else UNSET, ema.leaf, "ema_decay" if is_on else "")
    if decay and is_on:
        draft.put(decay.leaf, "train.ema_decay", decay.value)
    elif decay:
        draft.find(UNSET, decay.leaf, why="ema is off")


def settle_precision(draft: Draft, *, whole: bool) -> None:
    """The form of the weights: of frozen ones in few bits, of a model that trains with or without masters."""
    part, usual, rounding = draft.take("part_form"), draft.take("form"), draft.take("rounding")
    if part and usual:
        draft.find(UNSET, usual.leaf, why="transformer.weight_dtype is the DiT's")
    form = part or usual
    word = form.value.strip().lower() if form else "none"
    rounds = bool(rounding and rounding.value)
    if form and whole and word == "bfloat_16":
        draft.put(form.leaf, "train.full_bf16", True, "the weights themselves are bf16 there")
    elif form and word in WHOLE:
        draft.find(UNSET, form.leaf)
    elif form and word in SMALL_FORMS and not whole:
        draft.put(form.leaf, SMALL_FORMS[word])
    elif form:
        draft.lose(
            form.leaf,
            "weights are kept whole here, or frozen ones by int8_base, fp8_base or nf4_base",
        )
    if rounding and rounds and draft.train.get("full_bf16"):
        draft.put(rounding.leaf, "train.stochastic_rounding", True)
    elif rounding:
        draft.find(UNSET, rounding.leaf, why="what trains is float32" if rounds else "")


def settle_fused(draft: Draft, *, whole: bool) -> None:
    """Updates within the backward pass, which a model has here, without accumulation and clipping."""
    fused = draft.take("fused")
    if not fused:
        return
    steps = draft.train.get("gradient_accumulation_steps", 1)
    optimizer = draft.train.get("optimizer_type", "AdamW")
    if not fused.value:
        draft.find(UNSET, fused.leaf)
    elif not whole:
        draft.lose(fused.leaf, "gradients of adapters are small: fused_backward_pass is of a model")
    elif optimizer not in ("AdamW", "Adafactor") or steps > 1:
        message = "it goes with AdamW and Adafactor here, without gradient_accumulation_steps"
        draft.lose(fused.leaf, message)
    else:
        why = "there each tensor is clipped by itself"
        written = {"train.fused_backward_pass": True, "train.max_grad_norm": 0}
        draft.put(fused.leaf, written, why=why)
