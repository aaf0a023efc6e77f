"""What tools/generate.py is to draw: read from its command line and checked as a whole."""

from __future__ import annotations

import math
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from library.anima_backend.modelling.params import DiTParams
from library.anima_runtime.command_line import GROUPS
from library.anima_runtime.config_adapter import AnimaConfig, adapt
from library.anima_runtime.empty_model import empty_model
from library.anima_runtime.model_facts import ModelFacts, ModelFiles, inspect_models
from library.anima_runtime.shared_groups import SHARED_GROUPS
from library.data.images import read_picture_header
from library.device_utils import precision_dtype
from library.errors import Problem, UserError
from library.previews.prompt_file import GRID, PreviewPrompt, read_prompts
from library.previews.samplers import resolve_sampler
from library.previews.sampling import sigma_list
from library.settings.config_file import COMMAND_LINE, LoadedConfig, Parser, read_config
from library.settings.options import add_flags, all_flags, flags_of
from library.settings.run_config import TrainConfig
from networks.file_contents import has_text_encoder
from networks.merging import merge_file
from tools._drawing_options import DENOISE, DrawingOptions

SHARED = (
    "config_file", "pretrained_model_name_or_path", "anima_transformer", "llm_adapter_path", "qwen",
    "vae", "qwen_tokenizer_dir", "t5_tokenizer_dir", "auto_download_t5_tokenizer",
    "qwen_tokenizer_repo_id", "t5_tokenizer_repo_id", "t5_tokenizer_subfolder",
    "t5_tokenizer_modelscope_fallback", "t5_tokenizer_modelscope_repo_id",
    "t5_tokenizer_modelscope_revision", "t5_tokenizer_modelscope_subfolder", "download_timeout",
    "mixed_precision", "no_half_vae", "vae_chunk_size", "disable_mmap_load_safetensors", "seed",
    "anima_attention_backend", "attn_mode", "xformers", "xfomers", "sdpa", "console_log_level",
    "console_log_file", "console_log_simple",
)  # fmt: skip
"""The trainer's flags that count for drawing too, typed or in its file."""
LARGEST_SEED = 2**63 - 1
MOST_STRENGTHS = 50
DEVICES = ("cuda", "mps", "xpu", "cpu")

Strengths = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Order:
    """Everything that is to be drawn, checked.

    prompts: with sizes and seeds; loras: files and strengths; compared: what these are multiplied with
    """

    options: DrawingOptions
    train: TrainConfig
    anima: AnimaConfig
    files: ModelFiles
    facts: ModelFacts
    prompts: tuple[PreviewPrompt, ...]
    loras: Strengths
    compared: tuple[float, ...]
    device: torch.device
    dtype: torch.dtype
    notes: tuple[str, ...]

    def adapter_files(self) -> list[str]:
        return adapter_files(self.options, self.loras)

    @property
    def denoise(self) -> float:
        return (self.options.denoise or DENOISE) if self.options.image else 1.0


def parser() -> Parser:
    """Writes --help."""
    made = Parser(prog="generate.py", usage="python tools/generate.py --prompt TEXT [...]")
    add_flags(made, DrawingOptions)
    flags = all_flags(GROUPS)
    shared = made.add_argument_group("as in training, typed or by --config_file train_args.toml")
    for name in SHARED:
        if not flags[name].hidden:
            shared.add_argument(*flags[name].names, help=flags[name].help.replace("%", "%%"))
    return made


def read_order(argv: Sequence[str]) -> Order:
    """The order of a command line. Raises ConfigError with all that is wrong."""
    loaded = read_config(parser(), argv, (*GROUPS, DrawingOptions))
    keep_what_counts(loaded)
    options: DrawingOptions = loaded.groups[DrawingOptions]
    groups = {name: loaded.groups[group] for name, group in SHARED_GROUPS.items()}
    train, anima, contradictions = adapt(
        TrainConfig(**groups, explicit=loaded.explicit), loaded.groups[AnimaConfig], loaded.explicit
    )
    if options.dit:
        anima = replace(anima, anima_transformer=options.dit)
    else:
        loaded.add(p for p in contradictions if p.where in SHARED and p.where in loaded.given)
    inspection = inspect_models(train, anima)
    loaded.problems += [p for error in inspection.failures for p in error.problems]
    loaded.add(missing_models(train, anima))
    compared = read_strengths(options, loaded)
    loras = tuple(split_strength(text) for text in options.lora or ())
    device = read_device(options, loaded)
    prompts = read_all_prompts(options, train, loaded)
    if inspection.params is not None:
        files = adapter_files(options, loras)
        encoder = None if inspection.qwen_rows is None else anima.qwen
        loaded.problems += adapter_problems(inspection.params, encoder, files)
    loaded.require()
    assert inspection.facts is not None, "else a problem was told"
    notes = [note for note in loaded.notes if note.startswith("--")]  # the others are of training
    notes += [note for prompt in prompts for note in prompt.notes]
    return Order(
        options, train, anima, ModelFiles.of(train, anima), inspection.facts, prompts, loras,
        compared, device, dtype_for(train, device), (*notes, *notes_of(options, train)),
    )  # fmt: skip


def notes_of(options: DrawingOptions, train: TrainConfig) -> list[str]:
    """What is drawn otherwise than the options may lead one to expect."""
    _, of_sampler = resolve_sampler(options.sampler) or ("", "")
    found = [of_sampler] if of_sampler else []
    if files := train.network.base_weights:
        found.append(
            f"base_weights of the training file are not merged in: add --lora {' --lora '.join(files)}"
        )
    return found


def keep_what_counts(loaded: LoadedConfig) -> None:
    """Leave problems of the trainer's other flags to the trainer; of those that were typed make some."""
    flags = all_flags(GROUPS)
    other = {
        name.removeprefix("--"): dest
        for dest, flag_ in flags.items()
        if dest not in SHARED
        for name in (*flag_.names, f"--{dest}")
    }
    ours = {*SHARED, *(flag_.dest for flag_ in flags_of(DrawingOptions))}

    def counts(problem: Problem) -> bool:
        words = re.findall(r"\w+", problem.where)
        first = next((word for word in words if word in ours or word in other), None)
        return first is None or first in ours

    loaded.problems = [problem for problem in loaded.problems if counts(problem)]
    for dest, item in loaded.given.items():
        if dest in flags and dest not in SHARED and item.source == COMMAND_LINE:
            message = "is for training and changes no picture. Leave it out."
            loaded.problems.append(Problem(message, item.where, item.source))


def missing_models(train: TrainConfig, anima: AnimaConfig) -> list[Problem]:
    advice = "Or take them from training: --config_file train_args.toml."
    named = {
        "dit": (anima.anima_transformer, "the DiT's .safetensors file"),
        "vae": (train.paths.vae, "the VAE's .safetensors file"),
    }
    return [
        Problem(f"is needed: {what}. {advice}", name)
        for name, (path, what) in named.items()
        if not path
    ]


def read_strengths(options: DrawingOptions, loaded: LoadedConfig) -> tuple[float, ...]:
    """What --compare says, (1.0,) without it."""
    words = [word for text in options.compare or () for word in text.split(",") if word.strip()]
    found = [number for word in words if (number := finite(word)) is not None]
    if len(found) < len(words) or len(found) > MOST_STRENGTHS:
        message = f"expected up to {MOST_STRENGTHS} numbers, as 0,0.5,1."
        loaded.add([Problem(message, "compare")])
    return tuple(dict.fromkeys(found)) or (1.0,)


def finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def split_strength(text: str) -> tuple[str, float]:
    """FILE or FILE:STRENGTH; a colon of a drive, or of a file's own name, is none of a strength."""
    file, colon, number = text.rpartition(":")
    strength = finite(number)
    if not (colon and file) or strength is None or os.path.exists(text):
        file, strength = text, 1.0
    return os.path.expanduser(file), strength


def read_device(options: DrawingOptions, loaded: LoadedConfig) -> torch.device:
    """Where models compute; what was asked for is tried."""
    if not options.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if options.device.partition(":")[0] not in DEVICES:
            raise RuntimeError(f"expected one of {', '.join(DEVICES)}")
        device = torch.device(options.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        loaded.add([Problem(f"cannot be used here: {reason}.", "device")])
        return torch.device("cpu")
    return device


def dtype_for(train: TrainConfig, device: torch.device) -> torch.dtype:
    """As mixed_precision says; without it bf16 on a GPU, float32 on the CPU."""
    if "mixed_precision" in train.explicit:
        return precision_dtype(train.precision.mixed_precision)
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def read_all_prompts(
    options: DrawingOptions, train: TrainConfig, loaded: LoadedConfig
) -> tuple[PreviewPrompt, ...]:
    """Each with its size and its seed."""
    usual, typed = options.usual(), loaded.given.get("seed")
    seed = train.loop.seed if typed and typed.source == COMMAND_LINE else None
    if seed is not None and not 0 <= seed <= LARGEST_SEED:
        loaded.add([Problem(f"expected 0 to {LARGEST_SEED}.", "seed")])
        seed = None
    drawn = secrets.randbelow(2**32)
    try:
        size = picture_size(options)
        prompts = read_prompts(options.prompts, usual) if options.prompts else [usual]
        found = tuple(
            replace(
                prompt,
                seed=next(s for s in (prompt.seed, seed, drawn) if s is not None),
                width=prompt.width or size[0],
                height=prompt.height or size[1],
            )
            for prompt in prompts
        )
        for prompt in found:
            check_sigmas(prompt, options)
    except UserError as error:
        loaded.problems += [
            p if p.source else replace(p, source=COMMAND_LINE) for p in error.problems
        ]
        return ()
    return found


def picture_size(options: DrawingOptions) -> tuple[int, int]:
    """Of pictures that say nothing else; of a picture to change its own, in whole latents."""
    if not options.image:
        return 1024, 1024
    width, height = read_picture_header(options.image).size
    return max(64, width // GRID * GRID), max(64, height // GRID * GRID)


def check_sigmas(prompt: PreviewPrompt, options: DrawingOptions) -> None:
    denoise = (options.denoise or DENOISE) if options.image else 1.0
    sigma_list(
        prompt.scheduler, prompt.steps, shift=prompt.shift, denoise=denoise, sampler=prompt.sampler
    )


def adapter_files(options: DrawingOptions, loras: Strengths) -> list[str]:
    """All that are named."""
    return [file for file, _ in loras] + list(options.matrix or ())


def adapter_problems(
    params: DiTParams, text_encoder: str | None, files: Sequence[str]
) -> list[Problem]:
    """What is wrong with adapter files, found on a model without memory."""
    model = empty_model(params, text_encoder if any(map(has_text_encoder, files)) else None)
    problems: list[Problem] = []
    for file in dict.fromkeys(files):
        try:
            merge_file(model, file, 1.0)
        except UserError as error:
            problems += error.problems
    return problems
