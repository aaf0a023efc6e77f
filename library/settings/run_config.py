"""The flags of every family as frozen groups of options: one field, one flag.

A table, not logic. Names, types and defaults are sd-scripts'; where ours differ, the help says so.
What an option does not do here is declared with it: `ignored` or `refused`, with the reason.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

from library.errors import ConfigError, Problem
from library.settings.dataset_keys import INTERPOLATIONS, default_of
from library.settings.drift_prompts import BUILTIN, PROMPTS, read_drift_prompts
from library.settings.effects import Condition, Idle, loses_to, needs, needs_data, needs_plan
from library.settings.optimizer_names import (
    DEFAULT,
    OPTIMIZERS,
    chooses_step_size,
    optimizer_name,
    takes_single_updates,
)
from library.settings.options import (
    above,
    at_least,
    between,
    flag,
    flags_of,
    idle_flags,
    number_or_word,
    port,
    size,
    steps_or_fraction,
    word,
)
from library.settings.schedule_names import SCHEDULES
from library.settings.user_classes import parse_assignments
from library.system.file_names import name_problem

OF_DEEPSPEED = "it is an option of deepspeed, which is refused here"
PER_BLOCK = "compile does it, block by block"
NOT_SD = "it belongs to Stable Diffusion models and means nothing here"
FLOW = "it is defined for noise-predicting models with a beta schedule; this is rectified flow"

FOLDERS = ("train_data_dir", "reg_data_dir", "in_json", "dataset_class")
"""Flags that name the pictures where there is no dataset_config."""

SCHEDULE_CHOICES = ", ".join(name + known.value for name, known in SCHEDULES.items())
OPTIMIZER_CHOICES = ", ".join(
    f"{name} (default)" if name == DEFAULT else name for name in OPTIMIZERS
) + ", or a dotted class path"
LOSS_TYPES = ("l1", "l2", "huber", "smooth_l1")
LARGE_SIDE = 0.9 * 1024
"""Of a square as large as a picture, in pixels: from here multiscale_loss_weight acts. diffusion-pipe's number."""
TIMESTEP_SAMPLINGS = ("sigma", "uniform", "sigmoid", "shift", "flux_shift")
WEIGHTING_SCHEMES = ("sigma_sqrt", "logit_normal", "mode", "cosmap", "none", "uniform")
VRAM_TARGETS = ("6", "8", "12", "16", "24", "auto")
SAMPLERS = (  # ComfyUI's names, then those that sd-scripts has for the same, or for none of them
    "er_sde", "euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "lms", "dpmpp_2m",
    "dpmpp_2m_sde", "dpmpp_sde", "res_multistep", "ddim", "euler_a", "dpm_2_a", "dpmsolver++", "k_lms",
    "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a", "pndm", "dpmsolver", "dpmsingle",
)  # fmt: skip
DYNAMO = (
    "eager",
    "aot_eager",
    "inductor",
    "aot_ts_nvfuser",
    "nvprims_nvfuser",
    "cudagraphs",
    "ofi",
    "fx2trt",
    "onnxrt",
    "tensort",
    "ipex",
    "tvm",
)
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""The modes of compile that record them."""
NO_THUMBNAIL = "none"
REPOSITORY_TYPES = ("model", "dataset", "space")
REPOSITORY_NAME = r"\w[\w.-]*/\w[\w.-]*"
REPOSITORY = re.compile(
    rf"(?P<repo>{REPOSITORY_NAME})/(?P<path>[^:]+)"
    rf"(:(?P<revision>[^:]*))?(:(?P<type>{'|'.join(REPOSITORY_TYPES)}))?"
)
"""A place in a repository, as sd-scripts writes it: user/name/path[:revision[:type]]."""
OFFLOAD = ("cpu", "nvme", "None")


def key_flag(key: str, help: str, **declared: Any) -> Any:
    """A flag for a key of the dataset file: its value counts where the file is silent."""
    return flag(default_of(key), help, **declared)


def sets_own_rate(o: SimpleNamespace) -> bool:
    """Whether the optimizer is Adafactor at its own step size, sd-scripts' default of it."""
    if optimizer_name(o) != "Adafactor":
        return False
    arguments, _ = parse_assignments(o.optimizer_args, "optimizer_args")
    return chooses_step_size(arguments)


def _reads(schedule: str, option: str) -> bool:
    """Whether a schedule reads an option; of one that is not known, nobody knows that it does not."""
    known = SCHEDULES.get(schedule.partition(":")[0])
    return known is None or option in known.reads


def read_by_schedule(name: str) -> tuple[Idle, Idle, Idle]:
    """When an option of the schedule has no effect: the schedule does not read it."""
    return (
        loses_to(sets_own_rate, OWN_RATE.reason),
        Idle(
            lambda o: o.lr_scheduler_type,
            "lr_scheduler_type takes its numbers from lr_scheduler_args",
        ),
        needs(
            lambda o: _reads(o.lr_scheduler, name),
            "lr_scheduler = {o.lr_scheduler} does not read it",
        ),
    )


def asks_for_checkpointing(o: Any) -> bool:
    return (
        o.gradient_checkpointing or o.cpu_offload_checkpointing or o.unsloth_offload_checkpointing
    )


UNCOMPILED = needs(lambda o: o.compile, "compile is not set")
MODE_SCALES = (-1.0, 7.235)
"""Within them the density `mode` keeps sigma in [0, 1]."""


def fits_steps(name: str) -> Idle:
    """Idle where the run ends before."""
    return needs_plan(
        lambda o: getattr(o, name) <= o.plan.total_steps, "the run has {o.plan.total_steps} steps"
    )


def fits_epochs(name: str) -> Idle:
    """Idle where the run ends before."""
    return needs_plan(
        lambda o: getattr(o, name) <= o.plan.epochs, "the run has {o.plan.epochs} epochs"
    )


def share_below_1(value: Any) -> str | None:
    return None if 0 < value < 1 else "expected more than 0 and less than 1."


def uses_density(scheme: str) -> Condition:
    return lambda o: (o.timestep_sampling, o.weighting_scheme) == ("sigma", scheme)


def given_step(o: Any) -> bool:
    """Whether the start of the run is given, not taken from a state."""
    return bool(o.initial_step) or (o.initial_epoch or 1) > 1


def subsets_of(o: SimpleNamespace) -> list[Any]:
    return [subset for dataset in o.datasets for subset in dataset.subsets]


# When options have no effect, where several share the reason.
OWN_RATE = loses_to(
    sets_own_rate,
    "Adafactor sets its own step size unless optimizer_args has relative_step=False "
    "scale_parameter=False warmup_init=False",
)
OWN_RATE_SCHEDULE = loses_to(
    lambda o: sets_own_rate(o) and not o.lr_scheduler.startswith("adafactor"), OWN_RATE.reason
)
FILE_OF_DATASETS = loses_to(lambda o: o.dataset_config, "dataset_config names the folders")
ONE_READER = needs(
    lambda o: not (o.cache_latents and o.max_data_loader_n_workers),
    "one thread reads cached latents ahead",
)
SAMPLING = "timestep_sampling is {o.timestep_sampling}"
NORMAL_DRAWS = ("sigmoid", "shift", "flux_shift")
"""Of timestep_sampling: what is drawn is normal, then goes through a sigmoid."""
SHOWN = needs(lambda o: o.show_timesteps, "show_timesteps is not set")
DENSITY = "it belongs to timestep_sampling = sigma with weighting_scheme = "
HUBER = needs(lambda o: o.loss_type in ("huber", "smooth_l1"), "loss_type is {o.loss_type}")
EPOCH_FILES = needs(
    lambda o: o.save_every_n_epochs or o.save_n_epoch_ratio, "save_every_n_epochs is not set"
)
STEP_FILES = needs(lambda o: o.save_every_n_steps, "save_every_n_steps is not set")
STATES = needs(lambda o: o.save_state, "save_state is not set")
RESUMED = needs(lambda o: o.resume, "resume is not set")
VALIDATED = needs_data(
    lambda o: any(dataset.validation_split for dataset in o.datasets), "validation_split is 0"
)
EVALUABLE = needs_data(
    lambda o: o.drift_prompts or any(dataset.validation_split for dataset in o.datasets),
    "validation_split is 0 and drift_prompts is not set",
)
EVALUATED = needs(
    lambda o: o.evaluate_every_n_steps or o.evaluate_every_n_epochs,
    "neither evaluate_every_n_steps nor evaluate_every_n_epochs is set",
)
PROMPTED = needs(lambda o: o.sample_prompts, "sample_prompts is not set")
NO_LOGS = needs(lambda o: o.log_with != "none", "log_with is none")
WANDB = needs(lambda o: o.log_with in ("wandb", "all"), "log_with is {o.log_with}")
SERVED = needs(lambda o: o.auto_start_tensorboard, "auto_start_tensorboard is off")
UPLOADED = needs(lambda o: o.huggingface_repo_id, "huggingface_repo_id is not set")
NO_METADATA = loses_to(lambda o: o.no_metadata, "no_metadata is set")
SEVERAL = needs(lambda o: o.processes > 1, "one process trains")


@dataclass(frozen=True, kw_only=True)
class ConfigOptions:
    """Configuration files"""

    config_file: str | None = flag(
        None, "TOML file with any of these flags; the command line wins; .toml may be left out", path=True)
    output_config: bool = flag(
        False, "write what differs from the defaults to --config_file and exit"
    )
    preset: str | None = flag(
        None, "a configuration to begin with: a name such as style_lora_12gb, or a TOML file; all else wins"
    )
    dataset_config: str | None = flag(None, "TOML or JSON file that describes the pictures", path=True)
    check_only: bool = flag(False, "report on the run, as tools/doctor.py does, and exit")


@dataclass(frozen=True, kw_only=True)
class ModelPaths:
    """Base model"""

    pretrained_model_name_or_path: str | None = flag(None, "the base model's .safetensors file", path=True)
    vae: str | None = flag(None, "the VAE's .safetensors file", path=True)
    v2: bool = flag(False, "Stable Diffusion 2", ignored=NOT_SD)
    v_parameterization: bool = flag(False, "v-prediction", ignored=NOT_SD)
    tokenizer_cache_dir: str | None = flag(None, "folder for CLIP tokenizers", ignored=NOT_SD)
    clip_skip: int | None = flag(None, "CLIP layers to skip", ignored=NOT_SD)
    max_token_length: int | None = flag(
        None, "CLIP's length", choices=(75, 150, 225), ignored=NOT_SD
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Data; every value is the fallback of the key of the same meaning in the dataset file"""

    resolution: str | None = key_flag(
        "resolution", 'training area: 1024 or "width,height"', read=size
    )
    train_batch_size: int = key_flag("batch_size", "pictures per micro-step", check=at_least(1))
    dataset_repeats: int = key_flag(
        "num_repeats", "times each picture counts per epoch", check=at_least(1)
    )
    caption_extension: str = key_flag(
        "caption_extension", "extension of caption files (sd-scripts: .caption)",
        names=("--caption_extension", "--caption_extention"),
    )  # fmt: skip
    shuffle_caption: bool = key_flag("shuffle_caption", "a new order of the tags every time")
    caption_separator: str = key_flag("caption_separator", "what separates tags", prose=True)
    keep_tokens: int = key_flag(
        "keep_tokens", "leading tags that keep their place", check=at_least(0)
    )
    keep_tokens_separator: str = key_flag(
        "keep_tokens_separator", "mark between fixed head, tags and fixed tail", prose=True
    )
    secondary_separator: str | None = flag(None, "separator inside tags that stay together", prose=True)
    enable_wildcard: bool = key_flag("enable_wildcard", "{a|b} choices and multi-line captions")
    caption_prefix: str | None = flag(None, "text before every caption", prose=True)
    caption_suffix: str | None = flag(None, "text after every caption", prose=True)
    caption_dropout_rate: float = key_flag(
        "caption_dropout_rate", "share of samples trained without caption", check=between(0, 1)
    )
    caption_dropout_every_n_epochs: int = key_flag(
        "caption_dropout_every_n_epochs", "every n epochs train without captions", check=at_least(0)
    )
    caption_tag_dropout_rate: float = key_flag(
        "caption_tag_dropout_rate", "share of tags left out", check=between(0, 1)
    )
    token_warmup_min: int = key_flag(
        "token_warmup_min", "tags at the start of the tag warm-up", check=at_least(0)
    )
    token_warmup_step: float = key_flag(
        "token_warmup_step",
        "steps, or fraction of the run, until all tags are used",
        check=at_least(0),
    )
    flip_aug: bool = key_flag("flip_aug", "mirror pictures at random")
    enable_bucket: bool = key_flag("enable_bucket", "batches of several shapes")
    min_bucket_reso: int = key_flag(
        "min_bucket_reso", "smallest side of a bucket", check=at_least(16)
    )
    max_bucket_reso: int = key_flag(
        "max_bucket_reso", "largest side of a bucket", check=at_least(16)
    )
    bucket_reso_steps: int = key_flag(
        "bucket_reso_steps", "sides of buckets are multiples of this", check=at_least(16)
    )
    bucket_no_upscale: bool = key_flag("bucket_no_upscale", "never enlarge a picture")
    resize_interpolation: str | None = key_flag(
        "resize_interpolation",
        "resampling; area when shrinking, lanczos when enlarging unless given",
        choices=INTERPOLATIONS,
    )  # fmt: skip
    cache_info: bool = key_flag("cache_info", "remember the sizes of pictures in each folder")
    debug_dataset: bool = flag(
        False, "show what the dataset gives and exit",
        refused="tools/preview_buckets.py shows it, with the same arguments",
    )  # fmt: skip
    max_data_loader_n_workers: int = flag(
        4,
        "most threads that decode pictures ahead of the training (sd-scripts: processes); one reads "
        "ahead when latents are cached; 0: nothing is loaded ahead",
        check=at_least(0),
        idle=(ONE_READER,),
    )
    persistent_data_loader_workers: bool = flag(
        False,
        "keep sd-scripts' worker processes between epochs",
        ignored="pictures are decoded by threads of the trainer, which are never started anew",
    )
    train_data_dir: str | None = flag(
        None,
        "folder of <repeats>_<class> folders, where there is no dataset_config",
        idle=(FILE_OF_DATASETS,), path=True)
    reg_data_dir: str | None = flag(
        None, "the same, of regularisation pictures", idle=(FILE_OF_DATASETS,), path=True)
    in_json: str | None = flag(
        None,
        "metadata file of captions, with the pictures in train_data_dir",
        idle=(FILE_OF_DATASETS,), path=True)
    dataset_class: str | None = key_flag(
        "dataset_class", "module.Class of your own that names pictures and captions; see docs/config_README.md"
    )
    color_aug: bool = key_flag(
        "color_aug", "change hue or brightness a little at random; not with cache_latents"
    )
    random_crop: bool = key_flag("random_crop", "crop at random; not with cache_latents")
    face_crop_aug_range: str | None = key_flag(
        "face_crop_aug_range",
        "min,max: crop around the face that a file name ending in _x_y_w_h tells of, the short side "
        "so many times the face; not with cache_latents",
    )  # fmt: skip
    alpha_mask: bool = key_flag("alpha_mask", "use transparency as loss mask")
    conditioning_data_dir: str | None = key_flag(
        "conditioning_data_dir", "folder of loss masks, with masked_loss", path=True
    )
    skip_image_resolution: str | None = key_flag(
        "skip_image_resolution",
        "leave out pictures of up to this many pixels, width times height", read=size
    )
    weighted_captions: bool = flag(
        False,
        "read (tag:1.3) and (tag) in captions as weights, as ComfyUI does in prompts; \\( and \\) are "
        "parentheses either way; off: they are letters",
    )


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Caches of encoder outputs"""

    cache_latents: bool = flag(False, "encode every picture once, before training")
    cache_latents_to_disk: bool = flag(False, "the same, kept beside the pictures; implies it")
    vae_batch_size: int = flag(
        1,
        "pictures per VAE call while caching",
        check=at_least(1),
        idle=(needs(lambda o: o.cache_latents, "latents are not cached"),),
    )
    skip_cache_check: bool = flag(
        False, "trust cache files by name and shape",
        names=("--skip_cache_check", "--skip_latents_validity_check"), idle=(needs(lambda o: o.cache_latents_to_disk or o.cache_text_encoder_outputs_to_disk, "there are no caches on disk"),))  # fmt: skip
    cache_text_encoder_outputs: bool = flag(
        False, "encode every caption of the run once, shuffled and dropped ones included"
    )
    cache_text_encoder_outputs_to_disk: bool = flag(
        False, "the same, kept beside the pictures; implies it"
    )
    text_cache_variants: int = flag(
        4000, "texts held at once; a run with more encodes them in windows of epochs",
        check=at_least(1), idle=(needs(lambda o: o.cache_text_encoder_outputs, "text encoder outputs are not cached"),))  # fmt: skip
    text_encoder_batch_size: int | None = flag(
        None, "captions per text encoder call",
        ignored="captions are encoded one at a time, so that a cached value has no neighbours",
    )  # fmt: skip
    no_half_vae: bool = flag(False, "run the VAE in float32")
    lowram: bool = flag(
        False, "load models to the GPU", ignored="models are mapped, which needs no RAM"
    )
    highvram: bool = flag(
        False, "keep cached GPU blocks", ignored="blocks are given back once, after caching"
    )
    disable_mmap_load_safetensors: bool = flag(
        False, "read base models into memory, do not map them"
    )

    def __post_init__(self) -> None:
        """Keeping a cache on disk means caching, as in sd-scripts."""
        for name in ("cache_latents", "cache_text_encoder_outputs"):
            object.__setattr__(self, name, getattr(self, name) or getattr(self, f"{name}_to_disk"))


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Adapters"""

    network_module: str | None = flag(None, "the kind of adapter")
    network_dim: int | None = flag(
        None,
        "rank, 4 if not given",
        check=at_least(1),
        idle=(
            loses_to(
                lambda o: o.dim_from_weights, "dim_from_weights takes the rank from network_weights"
            ),
        ),
    )
    network_alpha: float = flag(
        1.0,
        "scale = alpha / rank; 0 means the rank",
        check=at_least(0),
        idle=(
            loses_to(
                lambda o: o.dim_from_weights, "dim_from_weights takes it from network_weights too"
            ),
        ),
    )
    network_dropout: float | None = flag(
        None, "dropout between the factors of LoRA, of the output of LoKr", check=between(0, 0.999)
    )
    network_args: tuple[str, ...] | None = flag(None, "key=value arguments of the kind of adapter")
    network_weights: str | None = flag(None, "adapter file to start from", path=True)
    dim_from_weights: bool = flag(False, "take the rank from --network_weights")
    base_weights: tuple[str, ...] | None = flag(None, "adapter files merged into the base first", path=True)
    base_weights_multiplier: tuple[float, ...] | None = flag(
        None, "their strengths, 1 if not given"
    )
    scale_weight_norms: float | None = flag(
        None, "longest norm of each adapter's difference, kept after every update",
        check=above(0), off=(0,),
    )  # fmt: skip
    unet_lr: float | None = flag(
        None, "learning rate of the adapters", check=at_least(0), idle=(OWN_RATE,)
    )
    text_encoder_lr: tuple[float, ...] | None = flag(
        None, "learning rate of the text encoder, which trains only where this is above 0",
        check=at_least(0),
        idle=(
            loses_to(
                lambda o: o.network_train_unet_only and any(o.text_encoder_lr or ()),
                "network_train_unet_only leaves the text encoder alone",
            ),
            needs(
                lambda o: not sets_own_rate(o),
                "the text encoder trains, and " + OWN_RATE.reason,
            ),
        ),
    )  # fmt: skip
    network_train_unet_only: bool = flag(
        False, "leave the text encoder alone, whatever text_encoder_lr says"
    )
    network_train_text_encoder_only: bool = flag(
        False, "train only the text encoder",
        refused="the DiT's adapters are a part of every file here; unet_lr = 0 keeps them at nothing",
    )  # fmt: skip

    @property
    def text_encoder_rate(self) -> float | None:
        """At which adapters of the text encoder train; None where none do."""
        rates = () if self.network_train_unet_only else self.text_encoder_lr or ()
        return max(rates, default=0) or None

    def problems(self) -> list[Problem]:
        found = []
        if self.dim_from_weights and not self.network_weights:
            found.append(Problem("needs network_weights.", "dim_from_weights"))
        if len(self.base_weights_multiplier or ()) > len(self.base_weights or ()):
            found.append(Problem("has more numbers than base_weights.", "base_weights_multiplier"))
        if self.text_encoder_rate and len(self.text_encoder_lr or ()) > 1:
            found.append(Problem("expected one rate: there is one text encoder.", "text_encoder_lr"))
        if any(text.partition("=")[0].strip() == "text_encoder_lr" for text in self.network_args or ()):
            message = "is an option of its own: write text_encoder_lr beside network_args."
            found.append(Problem(message, "network_args text_encoder_lr"))
        return found


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Optimizer"""

    optimizer_type: str = flag("", OPTIMIZER_CHOICES)
    use_8bit_adam: bool = flag(False, "old form of optimizer_type = AdamW8bit")
    use_lion_optimizer: bool = flag(False, "old form of optimizer_type = Lion")
    learning_rate: float = flag(
        2e-6,
        "step size of the optimizer",
        check=at_least(0),
        idle=(
            OWN_RATE,
            loses_to(lambda o: o.unet_lr is not None, "unet_lr decides"),
        ),
    )
    max_grad_norm: float = flag(
        1.0, "clip gradients at this norm; 0 does not clip", check=at_least(0)
    )
    optimizer_args: tuple[str, ...] | None = flag(None, "key=value arguments of the optimizer")
    fused_backward_pass: bool = flag(
        False,
        "where the model itself trains: update each weight as soon as its gradient is there, and let that "
        "go; with AdamW and Adafactor, without max_grad_norm and gradient_accumulation_steps",
        idle=(
            needs(
                lambda o: o.whole,
                "the gradients of adapters are small, and their norm is clipped and checked for NaN as a "
                "whole before any weight moves",
            ),
        ),
    )
    blockwise_fused_optimizers: bool = flag(
        False,
        "one optimizer per block",
        ignored="fused_backward_pass of a model, weight by weight, saves more; adapters are small",
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Learning-rate schedule"""

    lr_scheduler: str = flag(
        "constant",
        SCHEDULE_CHOICES,
        idle=(
            loses_to(lambda o: o.lr_scheduler_type, "lr_scheduler_type decides"),
            OWN_RATE_SCHEDULE,
        ),
    )
    lr_scheduler_type: str = flag("", "class path of a schedule of your own", idle=(OWN_RATE,))
    lr_scheduler_args: tuple[str, ...] | None = flag(
        None, "key=value arguments of the schedule", idle=(OWN_RATE,)
    )
    lr_warmup_steps: float = flag(
        0,
        "warm-up: steps, fraction of the run, or percentage",
        read=steps_or_fraction,
        idle=(*read_by_schedule("lr_warmup_steps"),),
    )
    lr_decay_steps: float = flag(
        0,
        "decay: steps, fraction of the run, or percentage",
        read=steps_or_fraction,
        idle=(*read_by_schedule("lr_decay_steps"),),
    )
    lr_scheduler_num_cycles: float = flag(
        1,
        "cycles or restarts, also halves",
        check=at_least(0),
        idle=(*read_by_schedule("lr_scheduler_num_cycles"),),
    )
    lr_scheduler_power: float = flag(
        1.0, "power of polynomial", idle=(*read_by_schedule("lr_scheduler_power"),)
    )
    lr_scheduler_timescale: int | None = flag(
        None,
        "time scale of inverse_sqrt",
        check=at_least(1),
        off=(0,),
        idle=(*read_by_schedule("lr_scheduler_timescale"),),
    )
    lr_scheduler_min_lr_ratio: float | None = flag(
        None,
        "floor, as a share of the learning rate",
        check=between(0, 1),
        idle=(*read_by_schedule("lr_scheduler_min_lr_ratio"),),
    )


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """Length of the run, memory of a step"""

    max_train_steps: int = flag(
        1600,
        "updates",
        check=at_least(0),
        off=(0,),
        idle=(
            loses_to(
                lambda o: o.max_train_epochs is not None,
                "max_train_epochs decides how long the run is",
            ),
        ),
    )
    max_train_epochs: int | None = flag(
        None, "epochs; wins over max_train_steps", check=at_least(1), off=(0,)
    )
    gradient_accumulation_steps: int = flag(1, "micro-steps per update", check=at_least(1))
    seed: int | None = flag(None, "seed of everything random; drawn and shown if not given")
    gradient_checkpointing: bool = flag(False, "recompute blocks in the backward pass: less memory")
    cpu_offload_checkpointing: bool = flag(False, "checkpointing that keeps block inputs in RAM")
    unsloth_offload_checkpointing: bool = flag(False, "the same as cpu_offload_checkpointing")
    checkpoint_every_n: int = flag(
        1,
        "checkpointing of every n-th block only: more memory, less time",
        check=at_least(1),
        idle=(needs(asks_for_checkpointing, "it needs gradient_checkpointing"),),
    )
    recompute: str = flag(
        "none",
        "cheap: recompute what costs no matrix product, in blocks that are not checkpointed",
        choices=("none", "cheap"),
        off=("none",),
        idle=(
            needs(
                lambda o: o.checkpoint_every_n > 1 or not asks_for_checkpointing(o),
                "gradient_checkpointing recomputes every block as a whole",
            ),
            needs(
                lambda o: not o.compile or o.compile_optional,
                "compile chooses itself what is computed again; see activation_memory_budget",
            ),
        ),
    )
    blocks_to_swap: int | None = flag(
        None,
        "blocks whose weights wait in RAM, up to all; three at a time are on the card",
        check=at_least(1),
        off=(0,),
    )

    vram_target: str | None = flag(
        None,
        "GB of a card, or auto: the cheapest of the options above that fits it is chosen, beside those set",
        choices=VRAM_TARGETS,
        read=number_or_word,
    )

    @property
    def checkpoints(self) -> bool:
        """Whether blocks are checkpointed."""
        return bool(asks_for_checkpointing(self))

    @property
    def offloads(self) -> bool:
        """Whether inputs of checkpointed blocks wait in RAM."""
        return self.cpu_offload_checkpointing or self.unsloth_offload_checkpointing

    def problems(self) -> list[Problem]:
        if self.max_train_steps or self.max_train_epochs is not None:
            return []
        return [Problem("expected 1 or more, or max_train_epochs instead.", "max_train_steps = 0")]


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """Precision and speed"""

    mixed_precision: str = flag("no", "precision of the base model", choices=("no", "fp16", "bf16"))
    full_bf16: bool = flag(
        False, "what trains is in bf16 too, adapters or model: small updates are lost"
    )
    stochastic_rounding: bool = flag(
        False,
        "round what full_bf16 keeps up or down by chance, so that on average no update is lost; with "
        "AdamW and Adafactor",
        idle=(needs(lambda o: o.full_bf16, "full_bf16 is not set"),),
    )
    full_fp16: bool = flag(
        False, "adapters in fp16 too", refused="updates would be lost; leave adapters in float32"
    )
    fp8_base: bool = flag(
        False, "store the frozen matrices of blocks and LLM adapter in fp8: other results"
    )
    fp8_base_unet: bool = flag(
        False, "the same of the blocks alone",
        idle=(Idle(lambda o: o.fp8_base, "fp8_base stores the blocks so as well"),),
    )  # fmt: skip
    int8_base: bool = flag(False, "as fp8_base, in int8: a third of its error")
    int8_compute: str | None = flag(
        None,
        "products with these matrices in int8 too, rotated: where that is faster than without "
        "int8_base (auto), or wherever it works (always)",
        choices=("auto", "always"),
        idle=(needs(lambda o: o.int8_base, "only int8_base has matrices in int8"),),
    )
    cuda_allow_tf32: bool = flag(False, "allow TF32 products")
    cuda_cudnn_benchmark: bool = flag(False, "let cuDNN try its algorithms")
    deterministic: bool = flag(False, "deterministic kernels only: slower, repeatable to the bit")
    torch_compile: bool = flag(False, "compile the model", ignored=PER_BLOCK)
    dynamo_backend: str = flag(
        "inductor", "backend of torch_compile", choices=DYNAMO, off=("no",), ignored=PER_BLOCK
    )
    compile: bool = flag(False, "compile each block: a slow start, then faster steps")
    compile_optional: bool = flag(
        False, "where compile cannot work, train without it", idle=(UNCOMPILED,)
    )
    compile_backend: str = flag("inductor", "backend of compile", idle=(UNCOMPILED,))
    compile_mode: str = flag(
        "default", "mode of compile",
        choices=("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
        idle=(
            UNCOMPILED,
            needs(lambda o: o.compile_backend == "inductor", "only compile_backend inductor has modes"),
        ),
    )  # fmt: skip
    compile_dynamic: str | None = flag(
        None,
        "one graph for all sizes (true), or one for each (false); auto: for all if there are several",
        choices=("true", "false", "auto"),
        read=word,
        off=("auto",),
        idle=(UNCOMPILED,),
    )
    compile_fullgraph: bool = flag(
        False, "an error where a block is more than one graph", idle=(UNCOMPILED,)
    )
    compile_cache_size_limit: int | None = flag(
        None,
        "graphs kept (32); a block that would need another runs uncompiled",
        check=at_least(1),
        off=(0,),
        idle=(UNCOMPILED,),
    )
    activation_memory_budget: float = flag(
        1.0,
        "share of activations that compiled blocks keep; below 1 they recompute the rest",
        check=between(0, 1),
        idle=(UNCOMPILED,),
    )
    cuda_graphs: bool = flag(
        False, "record a step of each size and start it as a whole: where the card waits for the processor"
    )
    mem_eff_attn: bool = flag(
        False, "attention of Stable Diffusion's U-Net",
        ignored=f"{NOT_SD}; gradient_checkpointing saves memory",
    )  # fmt: skip

    @property
    def stored_form(self) -> str | None:
        """How frozen matrices are stored; None: as mixed_precision says."""
        if self.int8_base:
            return "int8_rotated" if self.int8_compute else "int8"
        return "fp8" if self.fp8_base or self.fp8_base_unet else None

    @property
    def probes_int8(self) -> bool:
        """Whether int8_compute is left to how fast it is."""
        return self.int8_base and self.int8_compute == "auto"

    @property
    def stores_unet_only(self) -> bool:
        """Whether the LLM adapter stays as mixed_precision says."""
        return not (self.fp8_base or self.int8_base)

    def storage_problems(self) -> list[Problem]:
        asked = [name for name in ("fp8_base", "fp8_base_unet", "int8_base") if getattr(self, name)]
        found = []
        if self.int8_base and len(asked) > 1:
            message = f"weights have one form: keep one of {', '.join(asked)}."
            found.append(Problem(message, f"{asked[0]} = true"))
        if asked and self.mixed_precision == "no":
            message = "needs mixed_precision = bf16 or fp16."
            found.append(Problem(message, f"{asked[0]} = true"))
        return found

    def problems(self) -> list[Problem]:
        found = self.storage_problems()
        if self.full_bf16 and self.mixed_precision != "bf16":
            found.append(Problem("needs mixed_precision = bf16.", "full_bf16 = true"))
        if self.deterministic and self.cuda_cudnn_benchmark:
            message = "chooses kernels by their speed, anew in each run. Leave it out."
            found.append(Problem(message, "cuda_cudnn_benchmark = true with deterministic"))
        return found


@dataclass(frozen=True, kw_only=True)
class FlowOptions:
    """Noise"""

    timestep_sampling: str = flag(
        "sigmoid",
        "how sigma is drawn",
        choices=TIMESTEP_SAMPLINGS,
    )
    sigmoid_scale: float = flag(
        1.0,
        "spread of sigmoid, shift and flux_shift",
        check=above(0),
        idle=(
            needs(lambda o: o.timestep_sampling in NORMAL_DRAWS, SAMPLING),
        ),
    )
    discrete_flow_shift: float = flag(
        1.0,
        "shift of shift and sigma; 3 leans to noise",
        check=between(1e-6, 1e6),  # beyond, float32 has no sigma for it
        idle=(needs(lambda o: o.timestep_sampling in ("shift", "sigma"), SAMPLING),),
    )
    weighting_scheme: str = flag(
        "uniform", "loss weight (sigma_sqrt, cosmap), or density of sigma (logit_normal, mode)",
        choices=WEIGHTING_SCHEMES, idle=(needs(lambda o: o.timestep_sampling == "sigma" or o.weighting_scheme not in ("logit_normal", "mode"), SAMPLING),))  # fmt: skip
    logit_mean: float = flag(
        0.0,
        "mean of logit_normal",
        idle=(needs(uses_density("logit_normal"), DENSITY + "logit_normal"),),
    )
    logit_std: float = flag(
        1.0,
        "spread of logit_normal",
        check=above(0),
        idle=(needs(uses_density("logit_normal"), DENSITY + "logit_normal"),),
    )
    mode_scale: float = flag(
        1.29, "scale of mode", idle=(needs(uses_density("mode"), DENSITY + "mode"),)
    )
    min_timestep: int | None = flag(None, "lowest timestep, 0 to 1000", check=between(0, 1000))
    max_timestep: int | None = flag(None, "highest timestep, 0 to 1000", check=between(0, 1000))
    noise_offset: float | None = flag(None, "extra noise per channel")
    noise_offset_random_strength: bool = flag(
        False,
        "draw its strength in [0, noise_offset]",
        idle=(needs(lambda o: o.noise_offset, "noise_offset is not set"),),
    )
    ip_noise_gamma: float | None = flag(None, "extra noise in the input alone")
    ip_noise_gamma_random_strength: bool = flag(
        False,
        "draw its strength in [0, ip_noise_gamma]",
        idle=(needs(lambda o: o.ip_noise_gamma, "ip_noise_gamma is not set"),),
    )
    multires_noise_iterations: int | None = flag(None, "pyramid noise", ignored=FLOW)
    multires_noise_discount: float = flag(0.3, "decay of pyramid noise", ignored=FLOW)
    adaptive_noise_scale: float | None = flag(None, "noise offset by latents' mean", ignored=FLOW)
    zero_terminal_snr: bool = flag(False, "rescale the beta schedule", ignored=FLOW)

    def problems(self) -> list[Problem]:
        found = []
        lowest, highest = self.min_timestep or 0, self.max_timestep
        if lowest >= (1000 if highest is None else highest):
            found = [Problem("expected less than max_timestep (1000).", f"min_timestep = {lowest}")]
        smallest, largest = MODE_SCALES
        if uses_density("mode")(self) and not smallest <= self.mode_scale <= largest:
            message = f"expected {smallest:g} to {largest:g}: beyond, sigma would leave [0, 1]."
            found.append(Problem(message, f"mode_scale = {self.mode_scale:g}"))
        return found


@dataclass(frozen=True, kw_only=True)
class ShownDrawOptions:
    """How sigma is drawn, shown without a run"""

    show_timesteps: str | None = flag(
        None,
        "draw as training would, show it and exit; image: as <output_name>_timesteps.png in output_dir "
        "(sd-scripts: in a window)",
        choices=("console", "image"),
    )
    show_timesteps_resolution: str | None = flag(
        None,
        "size of the picture it is drawn for; the largest resolution of the run if not given "
        "(sd-scripts: 1024)",
        read=size,
        idle=(SHOWN, needs(lambda o: o.timestep_sampling == "flux_shift", SAMPLING)),
    )
    show_timesteps_offset: float | None = flag(
        None,
        "timestep_offset of the subset it is drawn for",
        idle=(SHOWN, needs(lambda o: o.timestep_sampling in NORMAL_DRAWS, SAMPLING)),
    )


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Loss"""

    loss_type: str = flag("l2", "kind of loss", choices=LOSS_TYPES)
    huber_schedule: str = flag(
        "snr", "threshold by sigma", choices=("constant", "exponential", "snr"), idle=(HUBER,)
    )
    huber_c: float = flag(0.1, "threshold of huber and smooth_l1", check=above(0), idle=(HUBER,))
    huber_scale: float = flag(1.0, "factor of the threshold", check=above(0), idle=(HUBER,))
    multiscale_loss_weight: float = flag(
        0.0,
        "weight of the loss at half size, of pictures from 922 x 922 up",
        check=at_least(0),
        idle=(
            needs_data(
                lambda o: any(math.prod(d.resolution) >= LARGE_SIDE**2 for d in o.datasets),
                "no dataset has a resolution of 922 or more",
            ),
        ),
    )
    prior_loss_weight: float = flag(
        1.0,
        "weight of regularisation pictures",
        check=at_least(0),
        idle=(
            loses_to(
                lambda o: o.prior_preservation_weight, "prior_preservation_weight takes its place"
            ),
            needs_data(
                lambda o: any(s.is_reg for s in subsets_of(o)),
                "there are no regularisation pictures",
            ),
        ),
    )
    prior_preservation_weight: float = flag(
        0.0,
        "weight of regularisation pictures and prompts for which the base's own prediction is learned",
        check=at_least(0),
        idle=(
            needs_data(
                lambda o: o.prior_preservation_prompts or any(s.is_reg for s in subsets_of(o)),
                "there are no regularisation pictures and no prior_preservation_prompts",
            ),
        ),
    )
    prior_preservation_prompts: str | None = flag(
        None,
        f"file of prompts, one a line, for which each picture's noise gives the base's prediction too; "
        f"{BUILTIN}: a list of {len(PROMPTS)}",
        idle=(needs(lambda o: o.prior_preservation_weight, "prior_preservation_weight is 0"),),
        path=True,
    )
    masked_loss: bool = flag(
        False,
        "loss inside the masks of conditioning_data_dir only",
        idle=(
            needs_data(lambda o: any(s.is_masked for s in subsets_of(o)), "no subset has masks"),
        ),
    )
    min_snr_gamma: float | None = flag(
        None, "weight by SNR", ignored=f"{FLOW}; weighting_scheme = sigma_sqrt or cosmap weights it"
    )
    debiased_estimation_loss: bool = flag(False, "debiased estimation", ignored=FLOW)
    v_pred_like_loss: float | None = flag(None, "v-prediction weight", ignored=FLOW)
    scale_v_pred_loss_like_noise_pred: bool = flag(False, "scale v-prediction loss", ignored=FLOW)

    @property
    def regularisation_weight(self) -> float:
        """Of the loss of regularisation pictures."""
        return self.prior_preservation_weight or self.prior_loss_weight

    @property
    def prior_prompts(self) -> tuple[str, ...]:
        """For which the base's prediction is learned. Raises ConfigError."""
        given = self.prior_preservation_prompts if self.prior_preservation_weight else None
        return read_drift_prompts(given, "prior_preservation_prompts") if given else ()

    def problems(self) -> list[Problem]:
        """What is wrong with the prompts."""
        try:
            _ = self.prior_prompts
        except ConfigError as error:
            return list(error.problems)
        return []


@dataclass(frozen=True, kw_only=True)
class SaveOptions:
    """Files"""

    output_dir: str | None = flag(None, "folder of the trained files", path=True)
    output_name: str | None = flag(None, "their name")
    save_precision: str | None = flag(
        None, "precision of the file", choices=("float", "fp16", "bf16")
    )
    save_every_n_epochs: int | None = flag(
        None,
        "write a file every n epochs",
        check=at_least(1),
        off=(0,),
        idle=(
            loses_to(lambda o: o.save_n_epoch_ratio, "save_n_epoch_ratio decides"),
            fits_epochs("save_every_n_epochs"),
        ),
    )
    save_every_n_steps: int | None = flag(
        None,
        "write a file every n steps",
        check=at_least(1),
        off=(0,),
        idle=(fits_steps("save_every_n_steps"),),
    )
    save_n_epoch_ratio: int | None = flag(
        None, "write at least n files", check=at_least(1), off=(0,)
    )
    save_last_n_epochs: int | None = flag(
        None, "keep the last n epoch files", check=at_least(1), off=(0,), idle=(EPOCH_FILES,)
    )
    save_last_n_steps: int | None = flag(
        None, "keep files of the last n steps", check=at_least(0), idle=(STEP_FILES,)
    )
    save_model_as: str = flag(
        "safetensors", "kind of file", choices=("safetensors",), refuses=dict.fromkeys(
            ("ckpt", "pt"), "only safetensors is written: such files can run code when they are opened"
        ),
    )  # fmt: skip
    export_format: str = flag(
        "comfy",
        "comfy: all that was trained; universal: a LoRA without alpha and norms, which diffusers reads "
        "too; both: the second beside it as <name>-universal",
        choices=("comfy", "universal", "both"),
    )
    export_rank: int | None = flag(
        None,
        "rank of the universal LoRA that stands in place of a LoKr; 64 if not given",
        check=at_least(1),
        idle=(needs(lambda o: o.export_format != "comfy", "export_format is comfy"),),
    )
    verify_export: bool = flag(
        True, "read each file again and compare it with the adapters in memory"
    )
    no_metadata: bool = flag(False, "write only modelspec.* and the metadata other tools need")
    huggingface_repo_id: str | None = flag(
        None, "repository (user/name) to which each file is uploaded when it is saved; made if missing"
    )
    huggingface_repo_type: str | None = flag(
        None, "its type; model if not given", choices=REPOSITORY_TYPES, idle=(UPLOADED,)
    )
    huggingface_path_in_repo: str | None = flag(
        None, "folder in it; its root if not given", idle=(UPLOADED,)
    )
    huggingface_token: str | None = flag(
        None,
        "token for uploads and for resume_from_huggingface; the saved login if not given; never shown or kept",
        idle=(
            needs(
                lambda o: o.huggingface_repo_id or o.resume_from_huggingface,
                "neither huggingface_repo_id nor resume_from_huggingface is set",
            ),
        ),
    )
    huggingface_repo_visibility: str | None = flag(
        None,
        "of a repository that is made: private if not given",
        choices=("public", "private"),
        idle=(UPLOADED,),
    )
    async_upload: bool = flag(
        False, "upload beside the training, which does not wait for it", idle=(UPLOADED,)
    )

    def problems(self) -> list[Problem]:
        found = []
        if self.huggingface_repo_id and not re.fullmatch(REPOSITORY_NAME, self.huggingface_repo_id):
            message = "expected user/name, with letters, digits, dots and hyphens."
            found.append(Problem(message, f"huggingface_repo_id = {self.huggingface_repo_id}"))
        if not self.output_dir:
            found.append(Problem("is needed: the folder for the trained files.", "output_dir"))
        if self.output_name and {"/", "\\"} & set(self.output_name):
            message = "expected a name without folders; use output_dir for the folder."
            found.append(Problem(message, f"output_name = {self.output_name}"))
        elif self.output_name and (wrong := name_problem(self.output_name)):
            found.append(Problem(wrong, f"output_name = {self.output_name[:60]}"))
        return found


@dataclass(frozen=True, kw_only=True)
class AverageOptions:
    """Average of the weights (EMA)"""

    ema_decay: float | None = flag(
        None,
        "keep a moving average of the adapters, saved as <name>-ema beside each file: the share that "
        "stays at each update, such as 0.999",
        check=share_below_1,
        off=(0,),
    )
    ema_start_step: int = flag(
        0,
        "the first step whose weights count",
        check=at_least(0),
        idle=(
            needs(lambda o: o.ema_decay, "ema_decay is not set"),
            fits_steps("ema_start_step"),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """States"""

    save_state: bool = flag(False, "write a state with every file, and at the end")
    save_state_on_train_end: bool = flag(False, "write a state at the end")
    save_last_n_epochs_state: int | None = flag(
        None,
        "keep the last n epochs' states; save_last_n_epochs if not given",
        check=at_least(1),
        off=(0,),
        idle=(
            STATES,
            EPOCH_FILES,
        ),
    )
    save_last_n_steps_state: int | None = flag(
        None,
        "keep states of the last n steps; save_last_n_steps if not given",
        check=at_least(1),
        off=(0,),
        idle=(
            STATES,
            STEP_FILES,
        ),
    )
    save_state_to_huggingface: bool = flag(
        False, "upload states too, with the file they belong to", idle=(UPLOADED,)
    )
    resume: str | None = flag(None, "state (a folder) to go on from", path=True)
    resume_from_huggingface: bool = flag(
        False,
        "resume names a state on Hugging Face: user/name/folder[:revision[:type]]; it is fetched first",
        idle=(RESUMED,),
    )
    resume_allow: tuple[str, ...] | None = flag(
        None,
        "settings that may differ from the state's, by the names that the error gives",
        idle=(RESUMED,),
    )
    resume_ignore_optimizer_mismatch: bool = flag(
        False, "start the optimizer afresh where it differs from the state's", idle=(RESUMED,)
    )
    initial_epoch: int | None = flag(
        None,
        "epoch to start at, from 1, whatever a state says",
        off=(0, 1),
        check=at_least(1),
        idle=(loses_to(lambda o: o.initial_step is not None, "initial_step decides"),),
    )
    initial_step: int | None = flag(
        None, "steps to count as done; wins over initial_epoch", check=at_least(0)
    )
    skip_until_initial_step: bool = flag(
        False,
        "start at the batch of initial_step, not at the first of its epoch",
        idle=(
            Idle(lambda o: o.resume and not given_step(o), "a resumed run goes on at its batch"),
            needs(given_step, "no step to skip to"),
        ),
    )

    @property
    def given_step(self) -> bool:
        """Whether the start of the run is given, not taken from a state."""
        return given_step(self)

    def problems(self) -> list[Problem]:
        named = self.resume_from_huggingface and self.resume
        if named and not REPOSITORY.fullmatch(named):
            types = ", ".join(REPOSITORY_TYPES)
            message = "resume_from_huggingface expects user/name/folder of the state, and if needed "
            message += f":revision and :type ({types})."
            return [Problem(message, f"resume = {named}")]
        return []


@dataclass(frozen=True, kw_only=True)
class PreviewOptions:
    """Previews: pictures drawn while training, as ComfyUI draws them"""

    sample_prompts: str | None = flag(
        None,
        "file of prompts to draw, .txt, .toml or .json; read again when it changes; without an interval "
        "the pictures are drawn at the end of the run (sd-scripts: never)",
        path=True,
    )
    sample_every_n_steps: int | None = flag(
        None,
        "draw every n steps",
        check=at_least(1),
        off=(0,),
        idle=(PROMPTED, fits_steps("sample_every_n_steps")),
    )
    sample_every_n_epochs: int | None = flag(
        None,
        "draw every n epochs, beside sample_every_n_steps (sd-scripts: instead of it)",
        check=at_least(1),
        off=(0,),
        idle=(PROMPTED, fits_epochs("sample_every_n_epochs")),
    )
    sample_at_first: bool = flag(
        False,
        "draw before the first step too",
        idle=(PROMPTED, needs(lambda o: not o.resume, "a run that goes on has its first step behind it")),
    )  # fmt: skip
    sample_sampler: str = flag(
        "er_sde",
        "sampler of prompts that name none (sd-scripts: ddim); pndm, dpmsolver and dpmsingle mean nothing "
        "for this kind of model, what is used instead is told",
        choices=SAMPLERS,
        idle=(PROMPTED,),
    )
    sample_on_cpu_vae: bool = flag(
        False, "decode the pictures on the CPU: slow, and takes no memory of the GPU", idle=(PROMPTED,)
    )
    vae_chunk_size: int | None = flag(
        None,
        "rows of latents that are decoded at a time, 8 pixels each; all if not given, or few where "
        "memory is too short for that",
        check=at_least(1),
        off=(0,),
        idle=(PROMPTED,),
    )


@dataclass(frozen=True, kw_only=True)
class ValidationOptions:
    """Validation"""

    validation_split: float = key_flag(
        "validation_split", "share of pictures kept for validation", check=between(0, 0.9)
    )
    validation_seed: int | None = key_flag("validation_seed", "which of them; 0 if not given")
    validate_every_n_steps: int | None = flag(
        None,
        "validate every n steps",
        check=at_least(1),
        off=(0,),
        idle=(VALIDATED, fits_steps("validate_every_n_steps")),
    )
    validate_every_n_epochs: int | None = flag(
        None,
        "validate every n epochs; every epoch if neither is given",
        check=at_least(1),
        off=(0,),
        idle=(VALIDATED, fits_epochs("validate_every_n_epochs")),
    )
    max_validation_steps: int | None = flag(
        None,
        "most batches of a validation; all if not given",
        check=at_least(1),
        off=(0,),
        idle=(VALIDATED,),
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Evaluation: which file to keep"""

    evaluate_every_n_steps: int | None = flag(
        None,
        "compare the loss of trained and of held-out pictures with the base's, every n steps and at "
        "the end",
        check=at_least(1),
        off=(0,),
        idle=(EVALUABLE, fits_steps("evaluate_every_n_steps")),
    )
    evaluate_every_n_epochs: int | None = flag(
        None,
        "the same every n epochs",
        check=at_least(1),
        off=(0,),
        idle=(EVALUABLE, fits_epochs("evaluate_every_n_epochs")),
    )
    evaluation_pictures: int = flag(
        16,
        "most pictures of each kind that an evaluation looks at",
        check=at_least(1),
        idle=(EVALUATED, VALIDATED),
    )
    drift_prompts: str | None = flag(
        None,
        f"file of prompts, one a line, for which evaluations measure how far the model has moved; "
        f"{BUILTIN}: a list of {len(PROMPTS)}",
        idle=(EVALUATED,),
        path=True,
    )

    def problems(self) -> list[Problem]:
        """What is wrong with the prompts."""
        try:
            read_drift_prompts(self.drift_prompts or BUILTIN)
        except ConfigError as error:
            return list(error.problems)
        return []


@dataclass(frozen=True, kw_only=True)
class LoggingOptions:
    """Logs"""

    logging_dir: str | None = flag(
        None, "root of the logs; <output_dir>/logs if not given", idle=(NO_LOGS,), path=True)
    log_with: str = flag(
        "tensorboard", "where numbers go", choices=("none", "tensorboard", "wandb", "all")
    )
    log_prefix: str | None = flag(
        None, "start of the run folder's name; <output_name>_ if not given", idle=(NO_LOGS,)
    )
    log_every_n_steps: int = flag(
        10, "write the steps' numbers every n steps, all of them", check=at_least(1)
    )
    log_tracker_name: str | None = flag(
        None, "name of the tracker; network_train if not given", idle=(NO_LOGS,)
    )
    log_tracker_config: str | None = flag(
        None, "TOML with the trackers' own settings", idle=(NO_LOGS,), path=True)
    log_config: bool = flag(False, "log the settings too", idle=(NO_LOGS,))
    wandb_run_name: str | None = flag(None, "name of the wandb run", idle=(WANDB,))
    wandb_api_key: str | None = flag(None, "wandb key", idle=(WANDB,))
    auto_start_tensorboard: bool = flag(False, "serve TensorBoard during the run", idle=(NO_LOGS,))
    tensorboard_host: str = flag(
        "127.0.0.1",
        "its address",
        idle=(
            NO_LOGS,
            SERVED,
        ),
    )
    tensorboard_port: int = flag(
        6006,
        "its port, or the next free one",
        check=between(1, 65535),
        idle=(
            NO_LOGS,
            SERVED,
        ),
    )
    tensorboard_logdir: str = flag(
        "",
        "folder it shows; the root of the logs if not given",
        idle=(
            NO_LOGS,
            SERVED,
        ), path=True)
    console_log_level: str | None = flag(
        None, "detail of messages", choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    )
    console_log_file: str | None = flag(None, "file for messages instead of the console", path=True)
    console_log_simple: bool = flag(False, "messages without time and level")


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """Live page and report"""

    live: str = flag(
        "no",
        "show the run on a page of this machine while it trains; with a number: at this port, else at "
        "8765 or the next free one; its address is told at the start",
        read=port,
        alone="yes",
    )
    report: str = flag(
        "full",
        "full: <output_name>_report.html beside the weights, at each save and however the run ends",
        choices=("full", "none"),
    )

    @property
    def is_live(self) -> bool:
        return self.live != "no"

    @property
    def port(self) -> int | None:
        """The one that was asked for by number."""
        return int(self.live) if self.live.isdecimal() else None

    @property
    def writes_report(self) -> bool:
        return self.report == "full"


@dataclass(frozen=True, kw_only=True)
class MonitorOptions:
    """Monitoring; the family has the flags, under names of its own.

    monitor_memory:            watch the device's and the host's memory
    monitor_alert_policy:      warn, or raise: save the weights and end the run
    monitor_memory_warn_ratio: alert when more than this share of the memory is needed
    monitor_loss_spike_ratio:  alert when the loss is this many times what is usual at like sigma
    """

    monitor_memory: bool = True
    monitor_alert_policy: str = "warn"
    monitor_memory_warn_ratio: float = 0.95
    monitor_loss_spike_ratio: float = 3.0


@dataclass(frozen=True, kw_only=True)
class MetadataOptions:
    """Metadata"""

    training_comment: str | None = flag(None, "free text", idle=(NO_METADATA,), prose=True)
    metadata_title: str | None = flag(None, "title; output_name if not given", prose=True)
    metadata_author: str | None = flag(None, "author", prose=True)
    metadata_description: str | None = flag(None, "description", prose=True)
    metadata_license: str | None = flag(None, "licence", prose=True)
    metadata_tags: str | None = flag(None, "tags, separated by commas", prose=True)
    metadata_usage_hint: str | None = flag(None, "how to use it", prose=True)
    metadata_thumbnail: str | None = flag(None, "picture file or data: URL; the newest preview if not given; none: no picture", path=True)
    metadata_merged_from: str | None = flag(None, "files it was merged from", prose=True)
    metadata_trigger_phrase: str | None = flag(None, "trigger words", prose=True)
    metadata_preprocessor: str | None = flag(None, "preprocessor", prose=True)
    metadata_is_negative_embedding: str | None = flag(
        None, "true for a negative embedding", read=word
    )

    def problems(self) -> list[Problem]:
        picture = self.metadata_thumbnail
        if picture in (None, "", NO_THUMBNAIL):
            return []
        if not picture.startswith("data:") and not os.path.isfile(picture):
            return [Problem("expected a picture file or a data: URL.", "metadata_thumbnail")]
        return []


@dataclass(frozen=True, kw_only=True)
class DistributedOptions:
    """Several processes"""

    ddp_timeout: int | None = flag(
        None, "minutes to wait for other processes", check=at_least(1), off=(0,), idle=(SEVERAL,)
    )
    ddp_gradient_as_bucket_view: bool = flag(
        False, "DDP: gradients as views of buckets", idle=(SEVERAL,)
    )
    ddp_static_graph: bool = flag(False, "DDP: the graph never changes", idle=(SEVERAL,))
    deepspeed: bool = flag(
        False,
        "train by DeepSpeed's engine, which divides what is trained among processes (ZeRO)",
        refused="every process holds all that trains here. What saves memory are vram_target, "
        "blocks_to_swap, int8_base and, where the model itself trains, fused_backward_pass",
    )
    zero_stage: int = flag(
        2, "what ZeRO divides: optimizer (1), gradients too (2), weights too (3)",
        choices=(0, 1, 2, 3), ignored=OF_DEEPSPEED,
    )  # fmt: skip
    offload_optimizer_device: str | None = flag(
        None, "where ZeRO keeps the optimizer's state", choices=OFFLOAD, ignored=OF_DEEPSPEED
    )
    offload_optimizer_nvme_path: str | None = flag(
        None, "folder on an NVMe disk for that", ignored=OF_DEEPSPEED
    )
    offload_param_device: str | None = flag(
        None, "where ZeRO 3 keeps the weights", choices=OFFLOAD, ignored=OF_DEEPSPEED
    )
    offload_param_nvme_path: str | None = flag(
        None, "folder on an NVMe disk for that", ignored=OF_DEEPSPEED
    )
    zero3_init_flag: bool = flag(
        False, "divide the weights while the model is made, for ZeRO 3", ignored=OF_DEEPSPEED
    )
    zero3_save_16bit_model: bool = flag(
        False, "gather the weights of ZeRO 3 for saving, in 16 bits", ignored=OF_DEEPSPEED
    )
    fp16_master_weights_and_gradients: bool = flag(
        False, "ZeRO's own copies of weights and gradients in fp16", ignored=OF_DEEPSPEED
    )


GROUPS: dict[str, type] = {
    "files": ConfigOptions,
    "paths": ModelPaths,
    "data": DataOptions,
    "cache": CacheOptions,
    "network": NetworkOptions,
    "optimizer": OptimizerOptions,
    "schedule": ScheduleOptions,
    "loop": LoopOptions,
    "precision": PrecisionOptions,
    "flow": FlowOptions,
    "shown_draw": ShownDrawOptions,
    "loss": LossOptions,
    "save": SaveOptions,
    "average": AverageOptions,
    "resume": ResumeOptions,
    "preview": PreviewOptions,
    "validation": ValidationOptions,
    "evaluation": EvaluationOptions,
    "logging": LoggingOptions,
    "page": PageOptions,
    "monitor": MonitorOptions,
    "metadata": MetadataOptions,
    "distributed": DistributedOptions,
}
"""By the name of their field; a family has its own in place of one whose flags it names."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The shared configuration of a run, one group each.

    explicit: the options that the user set, those of the family included, be it to the default
    whole:    the model itself is trained, not adapters
    """

    files: ConfigOptions
    paths: ModelPaths
    data: DataOptions
    cache: CacheOptions
    network: NetworkOptions
    optimizer: OptimizerOptions
    schedule: ScheduleOptions
    loop: LoopOptions
    precision: PrecisionOptions
    flow: FlowOptions
    shown_draw: ShownDrawOptions
    loss: LossOptions
    save: SaveOptions
    average: AverageOptions
    resume: ResumeOptions
    preview: PreviewOptions
    validation: ValidationOptions
    evaluation: EvaluationOptions
    logging: LoggingOptions
    page: PageOptions
    monitor: MonitorOptions
    metadata: MetadataOptions
    distributed: DistributedOptions
    explicit: frozenset[str] = frozenset()
    whole: bool = False

    def groups(self) -> list[Any]:
        return [getattr(self, name) for name in GROUPS]

    def flat(self) -> dict[str, Any]:
        """Every option by name."""
        return {f.name: getattr(group, f.name) for group in self.groups() for f in fields(group)}

    def check(self) -> list[Problem]:
        """What is wrong between groups."""
        return [
            *self.distributed_problems(), *self.dataset_problems(), *self.compile_problems(),
            *self.recording_problems(), *self.single_problems(), *self.text_encoder_problems(),
        ]  # fmt: skip

    def text_encoder_problems(self) -> list[Problem]:
        if not (self.network.text_encoder_rate and self.cache.cache_text_encoder_outputs):
            return []
        message = (
            "trains the text encoder, and cache_text_encoder_outputs encodes every caption once, as the "
            "encoder is before training. Remove one of the two, or set network_train_unet_only."
        )
        return [Problem(message, "text_encoder_lr")]

    def dataset_problems(self) -> list[Problem]:
        if self.files.dataset_config or any(getattr(self.data, name) for name in FOLDERS):
            return []
        message = "is needed: a TOML file that describes the pictures (or --train_data_dir)."
        return [Problem(message, "dataset_config")]

    def single_problems(self) -> list[Problem]:
        """What updates of one weight after another do not go with."""
        rounds = self.precision.full_bf16 and self.precision.stochastic_rounding
        fused = self.whole and self.optimizer.fused_backward_pass
        found, name = [], optimizer_name(self.optimizer)
        if (rounds or fused) and not takes_single_updates(self.optimizer):
            asked = "fused_backward_pass" if fused else "stochastic_rounding"
            message = f"updates one weight after another. Use AdamW or Adafactor, or leave out {asked}."
            found.append(Problem(message, f"{asked} = true with optimizer_type = {name}"))
        return found + (self.fused_problems() if fused else [])

    def fused_problems(self) -> list[Problem]:
        accumulation, limit = self.loop.gradient_accumulation_steps, self.optimizer.max_grad_norm
        because = {
            f"gradient_accumulation_steps = {accumulation}": accumulation > 1
            and "a weight would be updated by the first micro-step's gradient. Use 1.",
            f"max_grad_norm = {limit:g}": limit
            and "the norm of all gradients is known after the last update only. Set it to 0.",
            "mixed_precision = fp16": self.precision.mixed_precision == "fp16"
            and "its gradient scaler looks at all gradients before an update. Use bf16.",
            "several processes": self.situation().processes > 1
            and "exchange gradients when all are there. Train with one, or leave it out.",
        }
        return [
            Problem(f"does not go with fused_backward_pass: {reason}", what)
            for what, reason in because.items()
            if reason
        ]

    def compile_problems(self) -> list[Problem]:
        """What compiled blocks do not go with: a count of memory, and CUDA graphs what moves."""
        if not self.precision.compile:
            return []
        found, mode = [], self.precision.compile_mode
        if self.loop.vram_target:
            message = (
                "counts blocks that are not compiled, and those keep something else. Choose "
                "gradient_checkpointing or blocks_to_swap yourself, or leave compile out."
            )
            found.append(Problem(message, f"vram_target = {self.loop.vram_target}"))
        if mode in CUDA_GRAPHS and (self.loop.blocks_to_swap or self.loop.checkpoints):
            message = (
                "records CUDA graphs, which cannot be with blocks_to_swap or gradient_checkpointing. "
                "Use default or max-autotune-no-cudagraphs."
            )
            found.append(Problem(message, f"compile_mode = {mode}"))
        return found

    def recording_problems(self) -> list[Problem]:
        """What a recorded step does not go with: it starts the same kernels on the same memory."""
        if not self.precision.cuda_graphs:
            return []
        precision, loop = self.precision, self.loop
        reasons = {
            "blocks_to_swap: weights that come and go": bool(loop.blocks_to_swap),
            "cpu_offload_checkpointing: inputs that come and go": loop.offloads,
            "vram_target, which changes what a step keeps": bool(loop.vram_target),
            "compile_mode, which records as well": precision.compile
            and precision.compile_mode in CUDA_GRAPHS,
            "several processes": self.situation().processes > 1,
        }
        found = [reason for reason, is_so in reasons.items() if is_so]
        if not found:
            return []
        message = f"cannot be with {'; with '.join(found)}. Leave out one of the two."
        return [Problem(message, "cuda_graphs = true")]

    def distributed_problems(self) -> list[Problem]:
        """torch ends with an internal error where micro-steps without exchange meet a static graph."""
        several = self.situation().processes > 1
        if not (several and self.distributed.ddp_static_graph) or (
            self.loop.gradient_accumulation_steps == 1
        ):
            return []
        message = "torch cannot use it with gradient_accumulation_steps above 1. Leave it out."
        return [Problem(message, "ddp_static_graph = true")]

    def situation(
        self, family: Any = None, datasets: Any = None, plan: Any = None
    ) -> SimpleNamespace:
        """What conditions of effect look at: every option by name, and what else is known.

        family:    the options of the model family
        datasets:  their configurations, None when they are not known
        plan:      how long the run is, None when it is not known
        processes: that train together
        whole:     the model itself is trained
        """
        processes = os.environ.get("WORLD_SIZE", "1")
        return SimpleNamespace(
            **self.flat(),
            **(vars(family) if family else {}),
            family=family,
            datasets=datasets,
            plan=plan,
            whole=self.whole,
            processes=int(processes) if processes.isdecimal() else 1,
        )

    def idle(self) -> set[str]:
        """The options that the others leave without effect."""
        flags = [flag_ for group in self.groups() for flag_ in flags_of(type(group))]
        return set(idle_flags(flags, self.situation()))
