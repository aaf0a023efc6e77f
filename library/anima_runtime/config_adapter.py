"""Anima's own flags, the aliases of the earlier fork, and what they mean for the shared options."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from library.anima_backend.modelling.kernels import (
    AUTO,
    FORKS_WORDS,
    SD_SCRIPTS_WORDS,
    chosen_kernel,
)
from library.anima_runtime.family import ANIMA, MODULES
from library.anima_runtime.module_names import arguments_of, with_module
from library.anima_runtime.shared_groups import SHARED_GROUPS
from library.anima_runtime.tokenizer_fetch import sources_of
from library.data.dataset_config import DatasetGroupConfig
from library.data.dataset_effects import idle_keys
from library.errors import ConfigError, ModelFileError, Problem
from library.settings import whole_model
from library.settings.effects import loses_to, needs
from library.settings.family import FamilyOptions
from library.settings.flags.flow import FlowOptions
from library.settings.flags.optimizer import OWN_RATE, sets_own_rate
from library.settings.flags.resume import RESUMED
from library.settings.options import above, all_flags, at_least, flag, idle_flags
from library.settings.run_config import TrainConfig
from networks.arguments import parse_network_args, read_bool, read_number, read_string
from networks.loading import load_network_module

COMPONENT_RATES = ("llm_adapter_lr", "self_attn_lr", "cross_attn_lr", "mlp_lr", "mod_lr")
IN_NETWORK_ARGS = {
    "train_norm": read_bool,
    "norm_export": read_string,
    **dict.fromkeys(COMPONENT_RATES, read_number),
}
"""Flags that may stand in network_args as well, and how their text is read there."""
FLOW_ALIASES = {
    "anima_timestep_sampling": "timestep_sampling",
    "anima_sigmoid_scale": "sigmoid_scale",
    "anima_flow_shift": "discrete_flow_shift",
    "anima_noise_offset": "noise_offset",
}
"""Anima's names of shared options."""
NO_OWN_RATE = needs(lambda o: not sets_own_rate(o), OWN_RATE.reason)  # 0 freezes all the same
FETCHED = needs(lambda o: o.auto_download_t5_tokenizer, "auto_download_t5_tokenizer is off")
MODELSCOPE = needs(
    lambda o: o.t5_tokenizer_modelscope_fallback, "t5_tokenizer_modelscope_fallback is off"
)


@dataclass(frozen=True, kw_only=True)
class AnimaConfig(FamilyOptions):
    """Anima"""

    FAMILY = ANIMA

    anima_transformer: str | None = flag(None, "the DiT; the same as pretrained_model_name_or_path", path=True)
    qwen: str | None = flag(
        None, "Qwen3-0.6B: the .safetensors file or a folder", names=("--qwen", "--qwen3"), path=True)
    llm_adapter_path: str | None = flag(None, "the LLM adapter, if it is in a file of its own", path=True)
    qwen_tokenizer_dir: str | None = flag(None, "Qwen tokenizer; qwen_tokenizer/ beside the file", path=True)
    t5_tokenizer_dir: str | None = flag(
        None, "T5 tokenizer; t5_tokenizer/ beside the DiT if not given",
        names=("--t5_tokenizer_dir", "--t5_tokenizer_path"), path=True)  # fmt: skip
    anima_seq_len: int | None = flag(
        None,
        "most tokens of both kinds; no limit",
        check=at_least(2),
        off=(0,),
        idle=(
            loses_to(
                lambda o: o.qwen3_max_token_length and o.t5_max_token_length,
                "both kinds of tokens have a limit of their own",
            ),
        ),
    )
    qwen3_max_token_length: int | None = flag(
        None, "most Qwen tokens; no limit", check=at_least(1), off=(0,)
    )
    t5_max_token_length: int | None = flag(
        None, "most T5 tokens; no limit", check=at_least(2), off=(0,)
    )
    empty_caption: str = flag(
        "encode", "empty captions: as ComfyUI encodes them, or zeros", choices=("encode", "zeros")
    )
    anima_attention_backend: str | None = flag(
        None, "attention; as attn_mode", choices=tuple(FORKS_WORDS)
    )
    attn_mode: str | None = flag(
        None,
        "attention, in sd-scripts' words; auto, if none is given: the fastest here, timed at the start, "
        "torch on a CPU and for deterministic",
        choices=tuple(SD_SCRIPTS_WORDS),
        refuses={"sageattn": "it is for drawing, not for training; write auto or torch"},
    )  # fmt: skip
    xformers: bool = flag(False, "attention by xformers")
    xfomers: bool | None = flag(None, "old misspelling of xformers", hidden=True)
    sdpa: bool = flag(
        False,
        "torch's attention",
        idle=(
            loses_to(
                lambda o: o.family.attention_backend not in (AUTO, "torch"),
                "{o.family.attention_backend} is chosen",
            ),
        ),
    )
    fused_kernels: str = flag(
        "auto",
        "norms with their rotations, gates with the norms after them, in one kernel each, by Triton: "
        "where they work, or as the state has it (auto)",
        choices=("auto", "always", "off"),
    )
    split_attn: bool = flag(
        False, "attention of one picture at a time", ignored="batches share one shape, unmasked"
    )
    text_padding: str = flag(
        "auto",
        "the zeros that texts are padded with to 512: attended to as rows, or counted in the softmax, "
        "which is less work and differs by rounding (fold); auto: as the state has it, else what is "
        "faster, timed at the start on a card; rows for cuda_graphs",
        choices=("auto", "rows", "fold"),
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
    norm_export: str = flag(
        "diff",
        "trained norms in the file: diff writes them, omit_trained leaves them out knowingly, omit is "
        "for runs that train none",
        choices=("diff", "omit", "omit_trained"),
    )
    llm_adapter_lr: float | None = flag(
        None, "rate of the LLM adapter; 0 freezes", check=at_least(0), idle=(NO_OWN_RATE,)
    )
    self_attn_lr: float | None = flag(
        None, "rate of self-attention; 0 freezes", check=at_least(0), idle=(NO_OWN_RATE,)
    )
    cross_attn_lr: float | None = flag(
        None, "rate of cross-attention; 0 freezes", check=at_least(0), idle=(NO_OWN_RATE,)
    )
    mlp_lr: float | None = flag(
        None, "rate of the feed-forward layers; 0 freezes", check=at_least(0), idle=(NO_OWN_RATE,)
    )
    mod_lr: float | None = flag(
        None, "rate of the modulation layers; 0 freezes", check=at_least(0), idle=(NO_OWN_RATE,)
    )
    vae_disable_cache: bool = flag(
        False, "no temporal cache in the VAE", ignored="a single picture never uses that cache"
    )
    qwen_image_vae_2d: bool = flag(
        False, "the VAE with 2-D convolutions", ignored="pictures are always encoded that way here"
    )
    qwen_tokenizer_repo_id: str = flag(
        "Qwen/Qwen3-0.6B-Base",
        "where a missing Qwen tokenizer comes from: a repository id or its address",
        idle=(FETCHED,),
    )
    auto_download_t5_tokenizer: bool = flag(
        True, "fetch tokenizers that are missing, T5's and Qwen's"
    )
    t5_tokenizer_repo_id: str = flag(
        "google/t5-v1_1-base", "where a missing T5 tokenizer comes from", idle=(FETCHED,)
    )
    t5_tokenizer_subfolder: str = flag(
        "tokenizer", "its folder there, tried before the root", idle=(FETCHED,)
    )
    t5_tokenizer_modelscope_fallback: bool = flag(True, "try ModelScope second")
    t5_tokenizer_modelscope_repo_id: str = flag(
        "nv-community/Cosmos-Predict2-2B-Text2Image",
        "T5's repository on ModelScope",
        idle=(FETCHED, MODELSCOPE),
    )
    t5_tokenizer_modelscope_revision: str = flag(
        "master",
        "its revision",
        idle=(FETCHED, MODELSCOPE),
    )
    t5_tokenizer_modelscope_subfolder: str = flag(
        "tokenizer",
        "folder there",
        idle=(FETCHED, MODELSCOPE),
    )
    t5_tokenizer_validate_strict: bool = flag(
        False,
        "refuse a wrong tokenizer",
        ignored="a tokenizer that cannot be right is always refused",
    )
    download_timeout: float = flag(
        60.0, "seconds for fetching one tokenizer", check=above(0), idle=(FETCHED,)
    )
    anima_resume_snapshot_strict: bool = flag(
        False,
        "every difference between a state and the run that goes on from it is an error",
        idle=(RESUMED,),
    )

    @property
    def attention_backend(self) -> str:
        """The kernel, or auto; a false value of an alias never switches another off."""
        asked = set(self.kernels_asked().values())
        return chosen_kernel(asked | ({"torch"} if self.sdpa else set()))

    @property
    def folds_text(self) -> bool:
        return self.text_padding == "fold"

    def kernels_asked(self) -> dict[str, str]:
        """The flags that ask for a kernel of attention -> which."""
        asked = {
            "anima_attention_backend": FORKS_WORDS.get(self.anima_attention_backend or ""),
            "attn_mode": SD_SCRIPTS_WORDS.get(self.attn_mode or ""),
            "xformers": "xformers" if self.xformers or self.xfomers else None,
        }
        return {name: kernel for name, kernel in asked.items() if kernel}

    @property
    def qwen_max_length(self) -> int | None:
        return self.qwen3_max_token_length or self.anima_seq_len

    @property
    def t5_max_length(self) -> int | None:
        return self.t5_max_token_length or self.anima_seq_len

    def network_kwargs(self) -> dict[str, Any]:
        """What the network takes from these flags."""
        given = {f"{name}_lr": rate for name, rate in self.component_rates().items()}
        return {"train_norm": self.train_norm, "norm_export": self.norm_export, **given}

    def component_rates(self) -> dict[str, float]:
        """Those that were given, by component."""
        rates = {name: getattr(self, name) for name in COMPONENT_RATES}
        return {n.removesuffix("_lr"): rate for n, rate in rates.items() if rate is not None}

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        for kind in ("qwen", "t5"):
            try:
                sources_of(kind, self)
            except ModelFileError as error:
                found += error.problems
        asked = self.kernels_asked()
        if len(set(asked.values())) > 1:
            message = f"{' and '.join(asked)} name different backends. Keep one."
            found.append(Problem(message, next(iter(asked))))
        if not self.qwen:
            found.append(Problem("is needed: the Qwen3-0.6B file or folder.", "qwen"))
        return found


GROUPS = (*SHARED_GROUPS.values(), AnimaConfig)


def adapt(
    train: TrainConfig, anima: AnimaConfig, explicit: Collection[str]
) -> tuple[TrainConfig, AnimaConfig, list[Problem]]:
    """Resolve aliases between Anima's flags and the shared ones.

    explicit: the names the user set. Problems: what contradicts or is missing.
    """
    problems = paths_problems(train, anima)
    transformer = anima.anima_transformer or train.paths.pretrained_model_name_or_path
    paths = dataclasses.replace(train.paths, pretrained_model_name_or_path=transformer)
    network = train.network
    if train.whole:
        flags, values = all_flags(GROUPS), {**train.flat(), **vars(anima)}
        problems += whole_model.refused(flags, values, explicit)
    else:
        network = with_module(network, problems)
        anima = adapt_network_args(network.network_args or (), anima, explicit, problems)
    flow = adapt_flow(train.flow, anima, explicit, problems)
    train = dataclasses.replace(train, paths=paths, network=network, flow=flow)
    anima = dataclasses.replace(anima, anima_transformer=transformer)
    return train, anima, problems


def paths_problems(train: TrainConfig, anima: AnimaConfig) -> list[Problem]:
    found = []
    both = (anima.anima_transformer, train.paths.pretrained_model_name_or_path)
    if all(both) and both[0] != both[1]:
        message = f"is {both[0]}, but pretrained_model_name_or_path is {both[1]}. Keep one."
        found.append(Problem(message, "anima_transformer"))
    if not any(both):
        found.append(Problem("is needed: the DiT's .safetensors file (or pretrained_model_name_or_path).", "anima_transformer"))
    if not train.paths.vae:
        found.append(Problem("is needed: the VAE's .safetensors file.", "vae"))
    return found


def adapt_network_args(
    network_args: Collection[str],
    anima: AnimaConfig,
    explicit: Collection[str],
    problems: list[Problem],
) -> AnimaConfig:
    """The options that network_args may give as well as flags; two values: error."""
    found: dict[str, Any] = {}
    for name, text in arguments_of(network_args).items():
        if name not in IN_NETWORK_ARGS:
            continue
        try:
            found[name] = IN_NETWORK_ARGS[name](text)
        except ValueError as error:
            problems.append(Problem(f"{name}={text}: {error}.", "network_args"))
            continue
        set_to = getattr(anima, name)
        if name in explicit and found[name] != set_to:
            shown = str(set_to).lower() if isinstance(set_to, bool) else set_to
            message = f"{name}={text} differs from the flag {name} = {shown}. Keep one."
            problems.append(Problem(message, "network_args"))
    return dataclasses.replace(anima, **found)


def network_problems(train: TrainConfig, anima: AnimaConfig) -> list[Problem]:
    """What is wrong with the arguments of the adapter, found without looking at a model."""
    net = train.network
    if net.network_module not in MODULES:
        return []  # told by adapt
    try:
        kwargs = {**parse_network_args(net.network_args), **anima.network_kwargs()}
    except ConfigError as error:
        found = list(error.problems)
    else:
        dims = net.network_dim, net.network_alpha, net.network_dropout
        found = load_network_module(net.network_module).check_network_args(*dims, **kwargs)
    flags = [p.where.split()[0] if p.where.startswith("--") else "--network_args" for p in found]
    return [
        dataclasses.replace(p, source=flag_, where="" if p.where.startswith("--") else p.where)
        for p, flag_ in zip(found, flags)
    ]


def adapt_flow(
    flow: FlowOptions, anima: AnimaConfig, explicit: Collection[str], problems: list[Problem]
) -> FlowOptions:
    """The fork's names for how sigma is drawn, in the shared options; two values: error."""
    ours: dict[str, Any] = {}
    for name, shared in FLOW_ALIASES.items():
        if (value := getattr(anima, name)) is not None:
            ours[shared] = value
    if ours.get("timestep_sampling") == "logit_normal":
        ours["timestep_sampling"] = "sigmoid"
        if flow.timestep_sampling == "shift" and anima.anima_flow_shift is None:
            ours["timestep_sampling"] = "shift"  # a logit-normal that is shifted: no contradiction
    if anima.anima_flow_shift not in (None, 1.0):
        if ours.get("timestep_sampling") == "uniform":
            message = "has no effect with anima_timestep_sampling = uniform. Use logit_normal."
            problems.append(Problem(message, f"anima_flow_shift = {anima.anima_flow_shift}"))
        ours["timestep_sampling"] = "shift"
    for name, value in ours.items():
        if name in explicit and getattr(flow, name) != value:
            message = f"is {getattr(flow, name)}, but Anima's own flag asks for {value}. Keep one."
            problems.append(Problem(message, name))
    return dataclasses.replace(flow, **ours)


def run_notes(
    train: TrainConfig,
    anima: AnimaConfig,
    explicit: Collection[str],
    datasets: DatasetGroupConfig | None,
    plan: Any = None,
) -> list[str]:
    """One line for each option that was set and has no effect in this run.

    plan: how long the run is, when that is known
    """
    options = train.situation(anima, datasets.datasets if datasets else None, plan)
    flags = all_flags(GROUPS)
    names = {dest: flag_.names[0] for dest, flag_ in flags.items() if dest in explicit}
    names |= {shared: f"--{name}" for name, shared in FLOW_ALIASES.items() if name in explicit}
    reasons = idle_flags([flags[dest] for dest in names], options)
    notes = [f"{names[dest]} has no effect: {reason}." for dest, reason in reasons.items()]
    return notes + (idle_keys(datasets, options) if datasets else [])
