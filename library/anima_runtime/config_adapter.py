"""Anima's own flags, the aliases of the earlier fork, and what they mean for the shared options."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from library.errors import Problem
from library.options import above, at_least, flag
from library.run_config import LATER, FlowOptions, TrainConfig

MODULES = ("networks.lora_anima", "networks.lokr_anima")
FETCH = (
    "tokenizers are not fetched yet in this version; the error for a missing one says how to get it"
)
COMPONENT_RATES = ("llm_adapter_lr", "self_attn_lr", "cross_attn_lr", "mlp_lr", "mod_lr")
LYCORIS_ALGOS = {"lora": MODULES[0], "locon": MODULES[0], "lokr": MODULES[1]}


@dataclass(frozen=True, kw_only=True)
class AnimaConfig:
    """Anima"""

    anima_transformer: str | None = flag(None, "the DiT; the same as pretrained_model_name_or_path")
    qwen: str | None = flag(
        None, "Qwen3-0.6B: the .safetensors file or a folder", names=("--qwen", "--qwen3")
    )
    llm_adapter_path: str | None = flag(None, "the LLM adapter, if it is in a file of its own")
    qwen_tokenizer_dir: str | None = flag(None, "Qwen tokenizer; qwen_tokenizer/ beside the file")
    t5_tokenizer_dir: str | None = flag(
        None, "T5 tokenizer; t5_tokenizer/ beside the DiT if not given",
        names=("--t5_tokenizer_dir", "--t5_tokenizer_path"),
    )  # fmt: skip
    anima_seq_len: int | None = flag(None, "most tokens of both kinds; no limit", check=at_least(2))
    qwen3_max_token_length: int | None = flag(None, "most Qwen tokens; no limit", check=at_least(1))
    t5_max_token_length: int | None = flag(None, "most T5 tokens; no limit", check=at_least(2))
    empty_caption: str = flag(
        "encode", "empty captions: as ComfyUI encodes them, or zeros", choices=("encode", "zeros")
    )
    anima_attention_backend: str | None = flag(
        None, "attention; torch if not given", choices=("torch", "xformers")
    )
    attn_mode: str | None = flag(
        None, "attention, in sd-scripts' words",
        choices=("torch", "sdpa", "xformers", "flash", "sageattn"),
    )  # fmt: skip
    xformers: bool = flag(False, "attention by xformers")
    xfomers: bool | None = flag(None, "old misspelling of xformers", hidden=True)
    sdpa: bool = flag(False, "torch's attention, which is the default")
    split_attn: bool = flag(
        False, "attention of one picture at a time", ignored="batches share one shape, unmasked"
    )
    anima_timestep_sampling: str | None = flag(
        None, "as timestep_sampling; logit_normal is sigmoid", choices=("logit_normal", "uniform")
    )
    anima_sigmoid_scale: float | None = flag(None, "as sigmoid_scale", check=above(0))
    anima_flow_shift: float | None = flag(
        None, "as discrete_flow_shift, and samples with shift", check=above(0)
    )
    anima_noise_offset: float | None = flag(None, "as noise_offset")
    train_norm: bool = flag(True, "train the norms' weights too")
    norm_export: str = flag("diff", "norms in the file", choices=("diff", "omit"))
    llm_adapter_lr: float | None = flag(
        None, "rate of the LLM adapter; 0 freezes", check=at_least(0)
    )
    self_attn_lr: float | None = flag(None, "rate of self-attention; 0 freezes", check=at_least(0))
    cross_attn_lr: float | None = flag(
        None, "rate of cross-attention; 0 freezes", check=at_least(0)
    )
    mlp_lr: float | None = flag(
        None, "rate of the feed-forward layers; 0 freezes", check=at_least(0)
    )
    mod_lr: float | None = flag(None, "rate of the modulation layers; 0 freezes", check=at_least(0))
    vae_chunk_size: int | None = flag(None, "rows per VAE call", ignored=f"{LATER}")
    vae_disable_cache: bool = flag(
        False, "no temporal cache in the VAE", ignored="a single picture never uses that cache"
    )
    qwen_image_vae_2d: bool = flag(
        False, "the VAE with 2-D convolutions", ignored="pictures are always encoded that way here"
    )
    qwen_tokenizer_repo_id: str = flag(
        "Qwen/Qwen3-0.6B-Base", "Qwen tokenizer's source", ignored=FETCH
    )
    auto_download_t5_tokenizer: bool = flag(True, "fetch a missing T5 tokenizer", ignored=FETCH)
    t5_tokenizer_repo_id: str = flag("google/t5-v1_1-base", "its source", ignored=FETCH)
    t5_tokenizer_subfolder: str = flag("tokenizer", "folder in the source", ignored=FETCH)
    t5_tokenizer_modelscope_fallback: bool = flag(True, "try ModelScope second", ignored=FETCH)
    t5_tokenizer_modelscope_repo_id: str = flag(
        "nv-community/Cosmos-Predict2-2B-Text2Image", "source on ModelScope", ignored=FETCH
    )
    t5_tokenizer_modelscope_revision: str = flag("master", "its revision", ignored=FETCH)
    t5_tokenizer_modelscope_subfolder: str = flag("tokenizer", "folder there", ignored=FETCH)
    t5_tokenizer_validate_strict: bool = flag(
        False,
        "refuse a wrong tokenizer",
        ignored="a tokenizer that cannot be right is always refused",
    )
    download_timeout: float = flag(60.0, "seconds for fetching", check=above(0), ignored=FETCH)
    anima_resume_snapshot_strict: bool = flag(False, "every difference is an error", ignored=LATER)

    @property
    def attention_backend(self) -> str:
        """torch or xformers; a false value of an alias never switches another off."""
        asked = {self.anima_attention_backend, self.attn_mode}
        return "xformers" if self.xformers or self.xfomers or "xformers" in asked else "torch"

    @property
    def qwen_max_length(self) -> int | None:
        return self.qwen3_max_token_length or self.anima_seq_len

    @property
    def t5_max_length(self) -> int | None:
        return self.t5_max_token_length or self.anima_seq_len

    def network_kwargs(self) -> dict[str, Any]:
        """What the network takes from these flags."""
        rates = {name: getattr(self, name) for name in COMPONENT_RATES}
        given = {name: rate for name, rate in rates.items() if rate is not None}
        return {"train_norm": self.train_norm, "norm_export": self.norm_export, **given}

    def problems(self) -> list[Problem]:
        found = []
        if self.attn_mode in ("flash", "sageattn"):
            message = (
                "is not supported: torch's own attention has flash kernels. Use torch or xformers."
            )
            found.append(Problem(message, f"attn_mode = {self.attn_mode}"))
        chosen = {name for name in (self.anima_attention_backend, self.attn_mode) if name}
        chosen = {"torch" if name == "sdpa" else name for name in chosen}
        if len(chosen) > 1 or ("torch" in chosen and (self.xformers or self.xfomers)):
            message = "name different backends. Keep one."
            found.append(Problem(message, "anima_attention_backend, attn_mode, xformers"))
        if not self.qwen:
            found.append(Problem("is needed: the Qwen3-0.6B file or folder.", "qwen"))
        return found


def adapt(
    train: TrainConfig, anima: AnimaConfig, explicit: Collection[str]
) -> tuple[TrainConfig, AnimaConfig, list[Problem]]:
    """Resolve aliases between Anima's flags and the shared ones.

    explicit: the names the user set. Problems: what contradicts or is missing.
    """
    problems = paths_problems(train, anima)
    transformer = anima.anima_transformer or train.paths.pretrained_model_name_or_path
    paths = dataclasses.replace(train.paths, pretrained_model_name_or_path=transformer)
    module = train.network.network_module or MODULES[0]
    if module not in MODULES:
        problems.append(network_module_problem(module, train.network.network_args or ()))
    network = dataclasses.replace(train.network, network_module=module)
    args = dict(item.partition("=")[::2] for item in network.network_args or ())
    in_args = args.get("train_norm", "").strip().lower()
    if in_args and "train_norm" in explicit and (in_args in ("true", "1")) != anima.train_norm:
        message = f"differs from the flag train_norm = {str(anima.train_norm).lower()}. Keep one."
        problems.append(Problem(message, f"network_args train_norm={in_args}"))
    if in_args and "train_norm" not in explicit:
        anima = dataclasses.replace(
            anima, train_norm=in_args in ("true", "1", "yes", "y", "on", "t")
        )
    flow = adapt_flow(train.flow, anima, explicit, problems)
    train = dataclasses.replace(train, paths=paths, network=network, flow=flow)
    return train, dataclasses.replace(anima, anima_transformer=transformer), problems


def paths_problems(train: TrainConfig, anima: AnimaConfig) -> list[Problem]:
    found = []
    both = (anima.anima_transformer, train.paths.pretrained_model_name_or_path)
    if all(both) and both[0] != both[1]:
        message = f"is {both[0]}, but pretrained_model_name_or_path is {both[1]}. Keep one."
        found.append(Problem(message, "anima_transformer"))
    if not any(both):
        found.append(Problem("is needed: the DiT's .safetensors file.", "anima_transformer"))
    if not train.paths.vae:
        found.append(Problem("is needed: the VAE's .safetensors file.", "vae"))
    return found


def network_module_problem(module: str, network_args: Collection[str]) -> Problem:
    """Why a network module is not taken, and the line to write instead."""
    where = f"network_module = {module}"
    if module != "lycoris.kohya":
        return Problem(f"expected {MODULES[0]} (LoRA) or {MODULES[1]} (LoKr).", where)
    args = dict(item.partition("=")[::2] for item in network_args)
    ours = LYCORIS_ALGOS.get(args.pop("algo", "lora").strip().lower())
    if ours is None:
        return Problem(
            f"LyCORIS is not used here, and of its kinds only LoRA ({MODULES[0]}) and LoKr "
            f"({MODULES[1]}) exist.",
            where,
        )
    kept = [f'"{key}={value}"' for key, value in args.items() if key != "preset"]
    lines = f'network_module = "{ours}"' + (f", network_args = [{', '.join(kept)}]" if kept else "")
    return Problem(f"LyCORIS is not used here: its layers are built in. Write {lines}.", where)


def adapt_flow(
    flow: FlowOptions, anima: AnimaConfig, explicit: Collection[str], problems: list[Problem]
) -> FlowOptions:
    """The fork's names for how sigma is drawn, in the shared options; both given and different: error."""
    ours: dict[str, Any] = {}
    if anima.anima_timestep_sampling:
        plain = {"logit_normal": "sigmoid", "uniform": "uniform"}
        ours["timestep_sampling"] = plain[anima.anima_timestep_sampling]
    if anima.anima_flow_shift not in (None, 1.0):
        ours["discrete_flow_shift"] = anima.anima_flow_shift
        if ours.get("timestep_sampling") == "uniform":
            message = "has no effect with anima_timestep_sampling = uniform. Use logit_normal."
            problems.append(Problem(message, f"anima_flow_shift = {anima.anima_flow_shift}"))
        ours["timestep_sampling"] = "shift"
    if anima.anima_sigmoid_scale is not None:
        ours["sigmoid_scale"] = anima.anima_sigmoid_scale
    if anima.anima_noise_offset is not None:
        ours["noise_offset"] = anima.anima_noise_offset
    for name, value in ours.items():
        if name in explicit and getattr(flow, name) != value:
            message = f"is {getattr(flow, name)}, but Anima's own flag asks for {value}. Keep one."
            problems.append(Problem(message, name))
    return dataclasses.replace(flow, **ours)


def flow_notes(flow: FlowOptions, anima: AnimaConfig, explicit: Collection[str]) -> list[str]:
    """One line for each set option that the chosen sampling does not read."""
    aliases: Mapping[str, str] = {
        "sigmoid_scale": "anima_sigmoid_scale",
        "discrete_flow_shift": "anima_flow_shift",
    }
    return [
        f"{name}: no effect with timestep_sampling = {flow.timestep_sampling}"
        for name in flow.without_effect
        if name in explicit or aliases.get(name) in explicit
    ]
