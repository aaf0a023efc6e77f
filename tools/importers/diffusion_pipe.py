"""diffusion-pipe: its TOML with [model], [adapter] and [optimizer], and the dataset file that it names."""

from __future__ import annotations

from typing import Any

from library.errors import Problem
from tools.importers.diffusion_pipe_rules import RULES
from tools.importers.draft import CONVERTED, KEPT, UNSET, Draft, Leaf, Waiting
from tools.importers.machine import Document, Nearby, Source
from tools.importers.noise import ADALN
from tools.importers.rules import Rule
from tools.importers.shared import argument_rule, optimizer_name, settle_shared
from tools.importers.whole_model import settle_whole

FULL_MATRIX = 100_000  # a rank beyond any matrix: the second factor of LoKr as it is
MIXED = {"tags": 50, "sentences": 10, "tags_sentences": 20, "sentences_tags": 20}


def prepare(document: Document, nearby: Nearby) -> Document:
    """The document with the dataset file in the place of its name, or of the table as it is."""
    dataset = document.get("dataset")
    if isinstance(dataset, dict):
        return document
    return {**document, "dataset": nearby.pictures("dataset", dataset)}


def other(leaf: Leaf) -> Rule | None:
    """Whatever else stands in [optimizer] is an argument of the optimizer; in [adapter], of the adapter."""
    section, _, key = leaf.name.partition(".")
    if section == "adapter":
        return argument_rule("network", key)
    return Rule(f"optimizer.{key}") if section == "optimizer" and key.isidentifier() else None


def settle(draft: Draft) -> None:
    """What depends on several keys, and what is trained there unasked."""
    model = draft.take("model")
    if model:
        settle_model(draft, model)
    draft.add("train.caption_extension", ".txt", "the only one there")
    settle_batches(draft)
    settle_captions(draft)
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
    if draft.has("algo"):
        settle_adapter(draft)
        settle_shared(draft, unet_only=True)
    else:
        settle_model_itself(draft)


def settle_model(draft: Draft, model: Waiting) -> None:
    """Files for other models have no counterpart here."""
    if model.value == "anima":
        draft.find(KEPT, model.leaf)
    else:
        message = f"trains {model.value}: here only anima is trained."
        draft.problems.append(Problem(message, model.leaf.shown))


def settle_adapter(draft: Draft) -> None:
    """Rank and alpha; every Linear of the blocks and of the LLM adapter trains there."""
    rank, alpha = draft.take("rank"), draft.take("alpha")
    if rank:
        written: dict[str, Any] = {"train.network_dim": rank.value}
        if not alpha:
            written["train.network_alpha"] = rank.value
        if draft.value("algo") == "lokr" and rank.value >= FULL_MATRIX:
            written["network.lokr_full_matrix"] = True
        draft.put(rank.leaf, written, why="" if alpha else "alpha is the rank there")
    if alpha:
        draft.put(alpha.leaf, "train.network_alpha", alpha.value)
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


def settle_model_itself(draft: Draft) -> None:
    """Without [adapter] the model trains: a part that does not has the rate 0."""
    adaln = draft.take("adaln")
    if adaln and not adaln.value:
        draft.put(adaln.leaf, "train.mod_lr", 0)
    elif adaln:
        draft.find(UNSET, adaln.leaf, why="adaLN trains here too")
    for name in ("rank", "alpha", "factors"):
        if waiting := draft.take(name):
            draft.find(UNSET, waiting.leaf, why="adapter.type is not set")
    settle_whole(draft, llm_adapter=True)


def settle_batches(draft: Draft) -> None:
    """One number, or one for each of the resolutions that a folder has."""
    plain, of_pictures = draft.take("batches"), draft.take("image_batches")
    waiting = of_pictures or plain
    if plain and of_pictures:
        draft.find(UNSET, plain.leaf, why="image_micro_batch_size_per_gpu is that of pictures")
    if waiting and isinstance(waiting.value, int):
        draft.put(waiting.leaf, "datasets.batch_size", waiting.value)
    elif waiting:
        counts = {}
        for place in draft.subsets:
            sizes = {**draft.datasets.get(0, {}), **draft.of_subset.get(place, {})}.get(
                "resolutions", []
            )
            counts[place] = {
                str(size): waiting.value[size] for size in sizes if size in waiting.value
            }
            if len(counts[place]) < len(sizes):
                draft.lose(
                    waiting.leaf,
                    "batch_size has a number for each resolution here, and one is missing",
                )
                return
        for place, found in counts.items():
            draft.of_subset.setdefault(place, {})["batch_size"] = found
        draft.find(CONVERTED, waiting.leaf, "batch_size by resolution")


def settle_captions(draft: Draft) -> None:
    """Tags from x.txt, sentences from x_nl.txt, in shares."""
    mode, mixed = draft.take("mode"), draft.take("mixed")
    name = mode.value if mode else "tags"
    if mode and name == "tags":
        draft.find(UNSET, mode.leaf)
    elif mode:
        shares = {"sentences": 1} if name == "nl" else mixed.value if mixed else MIXED
        draft.put(mode.leaf, "general.caption_shares", shares)
    if mixed:
        is_on = name == "mixed"
        draft.find(CONVERTED if is_on else UNSET, mixed.leaf, "caption_shares" if is_on else "")


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
    if forced := draft.take("forced_rate"):
        if warmup:
            draft.revoke("train", "lr_warmup_steps", "force_constant_lr is set")
        written = {"train.learning_rate": forced.value, "train.lr_scheduler": "constant"}
        draft.put(forced.leaf, written)
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
    """Checkpointing of blocks, frozen weights in 8 bits, and states."""
    if form := draft.take("form"):
        draft.put(form.leaf, f"train.{form.value}", True)
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
