"""ai-toolkit: the first process of its YAML (or JSON) job."""

from __future__ import annotations

from typing import Any

from library.errors import ConfigError
from tools.importers.ai_toolkit_rules import RULES, SMALL_FORMS
from tools.importers.draft import CONVERTED, KEPT, UNSET, Draft, Leaf, Waiting
from tools.importers.machine import Document, Nearby, Source
from tools.importers.prompts import write_prompts
from tools.importers.rules import Rule
from tools.importers.shared import hub_visibility, literal, settle_shared, swap_share
from tools.importers.whole_model import settle_whole


def prepare(document: Document, nearby: Nearby) -> Document:
    """The first process with the job's name. Raises ConfigError where there is none."""
    config = document.get("config")
    processes = config.get("process") if isinstance(config, dict) else None
    if not isinstance(processes, list) or not processes or not isinstance(processes[0], dict):
        raise ConfigError("has no config.process: expected a list of processes.")
    assert isinstance(config, dict), "its process was found"
    outer = {key: value for key, value in document.items() if key != "config"}
    outer |= {key: value for key, value in config.items() if key != "process"}
    others = [f"process {n}" for n in range(1, len(processes))]
    return {**outer, **processes[0], **({"other_processes": others} if others else {})}


def other(leaf: Leaf) -> Rule | None:
    """The arguments of the optimizer."""
    prefix = "train.optimizer_params."
    key = leaf.name.removeprefix(prefix)
    is_argument = leaf.name.startswith(prefix) and key.isidentifier()
    return Rule(f"optimizer.{key}", literal) if is_argument else None


def settle(draft: Draft) -> None:
    """What depends on several keys, and what is trained there unasked."""
    if found := draft.take("model"):
        draft.find(KEPT, found.leaf)
    if base := draft.take("base"):
        if base.value.endswith(".safetensors"):
            draft.put(base.leaf, "train.pretrained_model_name_or_path", base.value)
        else:
            message = "name the three files: pretrained_model_name_or_path, vae, qwen3"
            draft.lose(base.leaf, message)
    if batch := draft.take("batch_size"):
        draft.put(batch.leaf, "train.train_batch_size", batch.value)
    settle_files(draft)
    settle_repository(draft)
    settle_rates(draft)
    settle_noise(draft)
    settle_preservation(draft)
    settle_memory(draft)
    settle_prompts(draft)
    if str(draft.value("optimizer_type", "")).lower() == "adafactor":
        for name in ("relative_step", "scale_parameter"):
            draft.add(f"optimizer.{name}", "False", "the default there")
    draft.add("general.enable_bucket", True, "buckets are made there unless told otherwise")
    if not draft.has("algo"):
        settle_whole(draft, llm_adapter=False)
        return
    settle_kind(draft)
    settle_shared(draft, unet_only=not draft.has("text_encoder_lr"))


def settle_kind(draft: Draft) -> None:
    """DoRA is a LoRA with magnitudes; LoKr has full matrices there unless told otherwise."""
    if draft.value("algo") == "dora":
        asking = draft.waiting["algo"][-1]
        draft.waiting["algo"] = [Waiting(asking.leaf, "lora")]
        draft.add("network.dora_wd", True, "the kind that is trained there")
    if draft.value("algo") == "lokr":
        draft.add("network.lokr_full_matrix", True, "the default there")


def settle_files(draft: Draft) -> None:
    """training_folder/name is the folder; a number of files to keep is a number of steps here."""
    name, folder = draft.take("name"), draft.take("folder")
    if name:
        draft.put(name.leaf, "train.output_name", name.value)
    if folder:
        parts = [folder.value.replace("\\", "/").rstrip("/"), *([name.value] if name else [])]
        draft.put(folder.leaf, "train.output_dir", "/".join(parts))
    every = draft.train.get("save_every_n_steps")
    if keep := draft.take("keep"):
        if every:
            draft.put(
                keep.leaf, "train.save_last_n_steps", keep.value * every, "a number of files there"
            )
        else:
            draft.lose(keep.leaf, "save_every is not set")
    ema, decay = draft.take("ema"), draft.take("ema_decay")
    is_on = bool(ema and ema.value)
    if ema:
        draft.find(CONVERTED if is_on else UNSET, ema.leaf, "ema_decay" if is_on else "")
    if decay and is_on:
        draft.put(decay.leaf, "train.ema_decay", decay.value)
    elif decay:
        draft.find(UNSET, decay.leaf, why="use_ema is off")
    if wandb := draft.take("wandb"):
        draft.put(wandb.leaf, "train.log_with", "wandb" if wandb.value else "tensorboard")


def settle_repository(draft: Draft) -> None:
    """Uploads, where they are switched on."""
    push, name, private = (draft.take(each) for each in ("push", "repository", "private"))
    is_on = bool(push and push.value and name)
    if push:
        draft.find(CONVERTED if is_on else UNSET, push.leaf, "huggingface_repo_id" if is_on else "")
    if name and is_on:
        draft.put(
            name.leaf,
            "train.huggingface_repo_id",
            name.value,
            "each saved file, not the last alone",
        )
    elif name:
        draft.find(UNSET, name.leaf, why="push_to_hub is off")
    hub_visibility(draft, private, is_on=is_on)


def settle_rates(draft: Draft) -> None:
    """Rates of the two models, and the schedule with its floor."""
    unet, trains, rate = (draft.take(each) for each in ("unet_lr", "trains_text", "text_rate"))
    usual = draft.train.get("learning_rate")
    if unet:
        draft.put(unet.leaf, "train.unet_lr", unet.value)
    if trains and trains.value and usual:
        draft.waiting["text_encoder_lr"] = [Waiting(trains.leaf, [rate.value if rate else usual])]
        if rate:
            draft.find(CONVERTED, rate.leaf, "text_encoder_lr")
    else:
        for waiting in filter(None, (trains, rate)):
            draft.find(UNSET, waiting.leaf, why="the text encoder does not train")
    schedule, floor = draft.take("schedule"), draft.take("floor")
    name = schedule.value if schedule else "constant"
    if floor and usual and name == "cosine":
        name = "cosine_with_min_lr"
        draft.put(floor.leaf, "train.lr_scheduler_min_lr_ratio", floor.value / usual)
    elif floor:
        draft.lose(floor.leaf, "only cosine has a least rate here")
    if name == "constant" and draft.train.get("lr_warmup_steps"):
        name = "constant_with_warmup"
    if schedule:
        draft.put(schedule.leaf, "train.lr_scheduler", name)


def settle_preservation(draft: Draft) -> None:
    """What the base predicts for a class is learned beside each picture."""
    asking, weight, name = (
        draft.take(each) for each in ("keeps_class", "class_weight", "class_name")
    )
    if asking and asking.value and name:
        why = "there the class stands in each caption in the place of the trigger; here it is the prompt"
        amount = weight.value if weight else 1.0
        draft.put(asking.leaf, "train.prior_preservation_weight", amount, why)
        option = "prior_preservation_prompts"
        draft.write(name.leaf, option, f"{option}.txt", f"{name.value.strip()}\n")
        if weight:
            draft.find(CONVERTED, weight.leaf, "prior_preservation_weight")
        return
    if asking and asking.value:
        draft.lose(asking.leaf, "no class is named, and its prompt is not empty here")
        asking = None
    for waiting in filter(None, (asking, weight, name)):
        draft.find(UNSET, waiting.leaf, why="diff_output_preservation is off")


def settle_memory(draft: Draft) -> None:
    """Frozen weights in few bits, and blocks that wait in RAM."""
    small, form = draft.take("small"), draft.take("form")
    is_on = bool(small and small.value)
    option = SMALL_FORMS.get(form.value.lower()) if form else "fp8_base"
    for waiting in filter(None, (small, form)):
        if is_on and option is None:
            draft.lose(
                waiting.leaf,
                "frozen weights are kept whole here, or by fp8_base, int8_base or nf4_base",
            )
        elif is_on:
            draft.put(waiting.leaf, f"train.{option}", True)
        else:
            draft.find(UNSET, waiting.leaf, why="quantize is off")
    offloads, share = draft.take("offloads"), draft.take("offloaded")
    is_on = bool(offloads and offloads.value)
    for waiting in filter(None, (offloads, share)):
        if is_on:
            swap_share(draft, waiting, share.value if share else 1.0)
        else:
            draft.find(UNSET, waiting.leaf, why="layer_offloading is off")


def settle_noise(draft: Draft) -> None:
    """How sigma is drawn."""
    timesteps = draft.take("timesteps")
    word = timesteps.value if timesteps else "weighted"
    if timesteps and word == "shift":
        written = {"train.timestep_sampling": "shift", "train.discrete_flow_shift": 3.0}
        draft.put(timesteps.leaf, written)
    elif timesteps and word in ("sigmoid", "linear"):
        value = "uniform" if word == "linear" else word
        draft.put(timesteps.leaf, "train.timestep_sampling", value)
    elif timesteps:
        draft.lose(timesteps.leaf, "no exact counterpart; timestep_sampling stays sigmoid")
    else:
        draft.notes.append("timestep_type is weighted there unless given: no exact counterpart.")


def settle_prompts(draft: Draft) -> None:
    """Prompts with their size, seed, steps and guidance, a line each."""
    names = {
        "width": "width", "height": "height", "sample_steps": "steps", "guidance_scale": "cfg",
        "seed": "seed", "neg": "negative",
    }  # fmt: skip
    options = {option: draft.take(f"sample.{name}") for name, option in names.items()}
    found = [draft.take("sample.prompts"), draft.take("sample.samples")]
    write_prompts(draft, [each for each in found if each], options, zeros=True)


def knows(document: Any) -> bool:
    """Whether a document is a job with a list of processes."""
    config = document.get("config") if isinstance(document, dict) else None
    return isinstance(config, dict) and isinstance(config.get("process"), list)


SOURCE = Source("ai-toolkit", RULES, settle, prepare, other)
