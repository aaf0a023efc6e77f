"""The parts of a report on a run that no model family changes; plain text for a bug report.

Nothing is loaded and nothing is written. Versions come from the packages' metadata, since importing
them all would take longer than the whole report may.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from library.data.catalogue import Catalogue
from library.errors import EXIT_USER_ERROR, DatasetError, Problem, UserError, visible
from library.settings.config_file import LoadedConfig
from library.settings.optimizer_names import DEFAULT, OPTIMIZERS, optimizer_name
from library.settings.options import Flag
from library.settings.run_config import TrainConfig

if TYPE_CHECKING:
    from library.train_util import StepPlan
    from networks.trained import Trained

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    *("torch", "torchvision", "accelerate", "transformers", "diffusers", "safetensors"),
    *("tokenizers", "sentencepiece", "protobuf", "huggingface_hub", "modelscope", "numpy"),
    *("Pillow", "tensorboard", "setuptools", "toml", "bitsandbytes", "xformers", "triton"),
    *("prodigyopt", "schedulefree", "dadaptation", "lion-pytorch", "wandb"),
)
VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "WORLD_SIZE"),
    *("ACCELERATE_MIXED_PRECISION", "HF_ENDPOINT", "HF_HUB_OFFLINE", "OMP_NUM_THREADS"),
)
PER_LINE = 4
VALUE_WIDTH = 60
SECONDS_FOR_A_PROGRAM = 5
SECRET_NAME = re.compile(r"(^|_)(token|key|secret|password)$")
SECRET_TEXT = (
    # name = value and --name value, up to the column after it
    (r"(?im)\b(\w*(?:token|_key|secret|password)[\"']?\s*=\s*)\S.*?(?=  |$)", r"\1***"),
    (r"(?im)(--\w*(?:token|_key|secret|password)[ =])\S.*?(?=  |$)", r"\1***"),
    (r"(?im)(=\s*)\S.*?(?=  .*Did you mean \S*(?:token|_key|secret|password)\?)", r"\1***"),
    (r"\bhf_\w{8,}", "***"),
    (r"(\w://)[^/\s@]+@", r"\1***@"),
)


@dataclass
class Page:
    """The text of a report, line by line."""

    lines: list[str] = field(default_factory=list)

    def heading(self, english: str, chinese: str) -> None:
        self.lines += ["", f"== {english} / {chinese} =="]

    def line(self, text: str) -> None:
        self.lines += text.split("\n")

    def table(self, rows: Iterable[Sequence[object]]) -> None:
        """Aligned columns, two spaces apart; the last one is as wide as it is."""
        cells = [[str(cell) for cell in row] for row in rows]
        columns = max((len(row) for row in cells), default=0)
        widths = [max(shown_width(row[i]) for row in cells if i < len(row)) for i in range(columns)]
        for row in cells:
            padded = [cell + " " * (wide - shown_width(cell)) for cell, wide in zip(row, widths)]
            self.lines.append(("  " + "  ".join(padded)).rstrip())


def shown_width(text: str) -> int:
    """Columns on a screen: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def size_text(size: float) -> str:
    """1_500_000 -> "1.5 MB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.{2 if unit == 'GB' else 1}f} {unit}"
    return f"{size:.0f} B"


def scrub(text: str, secrets: Collection[str] = ()) -> str:
    """The text without secrets, and with ~ for the home folder."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    for pattern, instead in SECRET_TEXT:
        text = re.sub(pattern, instead, text)
    homes = {os.path.expanduser("~"), os.path.realpath(os.path.expanduser("~"))}
    for home in homes | {home.replace("\\", "/") for home in homes}:
        if len(home) > 1:
            text = re.sub(re.escape(home) + r"(?![\w-]|\.\w)", "~", text)
    return text


def secret_values(loaded: LoadedConfig) -> list[str]:
    """What the user gave for options that hold secrets."""
    values = [item.value for dest, item in loaded.given.items() if SECRET_NAME.search(dest)]
    return [value for value in values if isinstance(value, str) and value]


def environment(page: Page) -> None:
    """The machine, and the versions of everything that takes part."""
    page.heading("Environment", "运行环境")
    memory = psutil.virtual_memory()
    free, total = size_text(memory.available), size_text(memory.total)
    python = f"{platform.python_version()} ({platform.machine()}), {sys.executable}"
    rows = [
        ("trainer", commit()),
        ("system", platform.platform()),
        ("Python", python),
        ("memory", f"{total}, {free} available; {os.cpu_count()} processors"),
        ("CUDA", f"torch was built for {torch.version.cuda or 'none'}; driver {driver()}"),
    ]
    for index in range(torch.cuda.device_count()):
        rows.append((f"GPU {index}", gpu(index)))
    if not torch.cuda.is_available():
        mps = torch.backends.mps.is_available()
        rows.append(("GPU", "Apple's (mps)" if mps else "none that torch can use: the CPU trains"))
    rows += [(name, os.environ[name]) for name in VARIABLES if os.environ.get(name)]
    page.table(rows)
    packages = [f"{name} {version(name) or '-'}" for name in PACKAGES]
    page.table(packages[i : i + PER_LINE] for i in range(0, len(packages), PER_LINE))


def version(package: str) -> str | None:
    """The installed version of a package, None when it is not installed; torch names its build."""
    if package == "torch":
        return torch.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def gpu(index: int) -> str:
    facts = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return (
        f"{facts.name}, {size_text(total)}, {size_text(free)} free, compute capability "
        f"{facts.major}.{facts.minor}"
    )


def driver() -> str:
    """The NVIDIA driver's version."""
    if not shutil.which("nvidia-smi"):
        return "not found"
    return program_says("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def commit() -> str:
    """Which state of the program this is."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        return "unknown commit (no git)"
    return f"commit {program_says('git', '-C', str(ROOT), 'describe', '--always', '--dirty')}"


def program_says(*command: str) -> str:
    """The first line that a program prints, or "unknown"."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS_FOR_A_PROGRAM,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout.strip().splitlines() or ["unknown"])[0]


def options(
    page: Page,
    loaded: LoadedConfig,
    flags: Mapping[str, Flag],
    notes: Iterable[str],
    problems: Sequence[Problem],
) -> None:
    """Each option the user set: its value, where it stands and what becomes of it.

    notes: lines "--name has no effect: reason."; problems: with the places of `loaded`
    """
    page.heading("Options that were set", "已设置的选项")
    reasons, others = reasons_of(loaded, notes)
    rows = []
    for dest, item in loaded.given.items():
        line = "command line" if item.from_text else item.where.split("  ")[0]
        fate = complaint(loaded, dest, problems)
        if not fate:
            fate = f"no effect: {reasons[dest]}" if dest in reasons else "effective"
            fate += " (the default)" * (value_of(loaded, dest) == flags[dest].default)
        rows.append((item.name.removeprefix("--"), shown_value(loaded, dest), line, fate))
    page.table(rows or [("none",)])
    for note in others:
        page.line(f"  note: {note}")


def reasons_of(loaded: LoadedConfig, notes: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Why options have no effect, by dest; and the notes about anything else."""
    dests = {item.name.removeprefix("--"): dest for dest, item in loaded.given.items()}
    dests |= {dest: dest for dest in loaded.given}
    reasons, others = {}, []
    for note in dict.fromkeys(notes):
        found = re.match(r"(?:--)?(\w+) has no effect: (.*)", note, re.DOTALL)
        if found and found[1] in dests:
            reasons[dests[found[1]]] = found[2]
        else:
            others.append(note)
    return reasons, others


def complaint(loaded: LoadedConfig, dest: str, problems: Sequence[Problem]) -> str:
    """What is wrong with an option, or with the file that it names; "" when nothing is."""
    item, value = loaded.given[dest], value_of(loaded, dest)
    name = item.name.removeprefix("--")
    for problem in problems:
        if (problem.where, problem.source) == (item.where, item.source):
            return f"in conflict: {problem.message}"
    named = [re.escape(name)] if "_" in name else []
    is_file_of_settings = dest in ("config_file", "dataset_config")
    if isinstance(value, str) and re.search(r"[/\\.]", value) and not is_file_of_settings:
        named.append(re.escape(value))
    sign = re.compile(rf"(?<![\w/\\.])({'|'.join(named)})(?![\w/\\-]|\.\w)") if named else None
    files = [value_of(loaded, d) for d in ("config_file", "dataset_config") if d in loaded.given]
    of_options = [p for p in problems if p.where or p.source not in files]  # else of a whole file
    for problem in of_options:
        if sign and sign.search(f"{problem.source} {problem.message}"):
            return "in conflict, see the result"
    return ""


def value_of(loaded: LoadedConfig, dest: str) -> Any:
    """The value that counts; what was written where that could not be used."""
    if dest not in loaded.explicit:
        return loaded.given[dest].value
    return next(getattr(group, dest) for group in loaded.groups.values() if hasattr(group, dest))


def shown_value(loaded: LoadedConfig, dest: str) -> str:
    value = value_of(loaded, dest)
    if SECRET_NAME.search(dest) and value:
        return "***"
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    shown = visible(scrub(shown))  # before it is cut
    return shown if len(shown) <= VALUE_WIDTH else f"{shown[: VALUE_WIDTH - 3]}..."


def dataset(page: Page, catalogue: Catalogue) -> None:
    """Pictures, buckets and captions, and how each folder is used."""
    images = catalogue.images
    missing = sum(image.caption is None and not image.has_text for image in images)
    empty = sum(image.caption is not None and not image.has_text for image in images)
    sentences = sum(image.sentences is not None for image in images)
    page.line(f"  file {catalogue.group.source}")
    page.line(f"  {len(images)} pictures, {catalogue.num_samples} with repeats")
    captioned = len(images) - missing - empty
    of_sentences = f"; with sentences: {sentences}" if sentences else ""
    page.line(f"  captions: {captioned}; missing: {missing}; empty: {empty}{of_sentences}")
    for text in catalogue.describe():
        page.line(f"  {text}")
    for number, entry in enumerate(catalogue.group.datasets):
        for subset in entry.subsets:
            if changed := changed_fields(subset):
                page.line(f"  settings of {subset.place} (dataset {number}): {changed}")


def changed_fields(settings: Any) -> str:
    """The fields of a subset that differ from their defaults."""
    values = {f.name: getattr(settings, f.name) for f in fields(settings)}
    defaults = {f.name: f.default for f in fields(settings)}
    changed = {n: v for n, v in values.items() if v != defaults[n] and n != "image_dir"}
    return ", ".join(f"{n} = {json.dumps(v, ensure_ascii=False)}" for n, v in changed.items())


def length(page: Page, cfg: TrainConfig, plan: StepPlan, processes: int) -> None:
    """How long the run will be."""
    accumulation = cfg.loop.gradient_accumulation_steps
    page.table(
        [
            ("steps in all", plan.total_steps),
            ("epochs", plan.epochs),
            ("steps per epoch", plan.steps_per_epoch),
            ("batches per epoch", f"{plan.batches_per_epoch} on each of {processes} process(es)"),
            ("batches per step", accumulation),
        ]
    )


def optimizer_state(
    cfg: TrainConfig, network: Trained, parameters: Sequence[Tensor] | None = None
) -> tuple[float, str]:
    """Bytes of the optimizer's state for what is trained, and how they are known.

    parameters: those of it that count; all if None
    """
    name = optimizer_name(cfg.optimizer)
    parameters = network.get_trainable_params() if parameters is None else parameters
    trained = sum(parameter.numel() for parameter in parameters)
    if network.is_whole and name == "Adafactor":
        return sum(map(factored_bytes, parameters)), f"{name}, of each matrix its rows and columns"
    if network.is_whole and cfg.precision.full_bf16 and not cfg.precision.stochastic_rounding:
        return OPTIMIZERS[DEFAULT].state_bytes / 2 * trained, f"{name}, in bf16 as the weights"
    if known := OPTIMIZERS.get(name):
        return known.state_bytes * trained, name
    return OPTIMIZERS[DEFAULT].state_bytes * trained, f"{name}, taken to be like {DEFAULT}"


def factored_bytes(parameter: Tensor) -> int:
    """Of Adafactor's float32 state: a number for each row and each column of a matrix."""
    if parameter.dim() < 2:
        return 4 * parameter.numel()
    count, (*_, rows, columns) = parameter.numel(), parameter.shape
    return 4 * (count // columns + count // rows)


@dataclass(frozen=True)
class SpaceNeed:
    """Bytes that will be written below a folder. note: how they are known."""

    what: str
    folder: Path
    size: float
    note: str


def disk(page: Page, needs: Sequence[SpaceNeed]) -> None:
    """What will be written where, and what is free there. Raises DatasetError when it cannot fit."""
    page.table((n.what, size_text(n.size), n.note, str(n.folder)) for n in needs)
    by_device: dict[int, list[SpaceNeed]] = {}
    for need in needs:
        by_device.setdefault(existing(need.folder).stat().st_dev, []).append(need)
    problems = []
    for together in by_device.values():
        folder = existing(together[0].folder)
        wanted, free = sum(n.size for n in together), shutil.disk_usage(folder).free
        page.line(f"  needed on the disk of {folder}: {size_text(wanted)}; free: {size_text(free)}")
        if wanted > free:
            message = (
                f"{size_text(wanted)} will be written, {size_text(free)} are free. Make room, or "
                f"write less: cache in memory, or save fewer files."
            )
            problems.append(Problem(message, str(folder)))
    if problems:
        raise DatasetError(problems, source="disk space")


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists already."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def result(page: Page, failures: Sequence[UserError], warnings: Iterable[str]) -> int:
    """What the trainer would say; returns the exit code."""
    warnings = list(dict.fromkeys(warnings))
    if warnings:
        page.heading("The run would warn", "训练时会给出的警告")
        for text in warnings:
            page.line(f"  {text}")
    page.heading("Result", "结论")
    told: list[UserError] = []
    for failure in failures:
        known = {problem for earlier in told for problem in earlier.problems}
        if new := [problem for problem in failure.problems if problem not in known]:
            told.append(type(failure)(new))
    if not told:
        page.line("  The run would start. / 可以开始训练。")
        return 0
    page.line("  The run would fail. / 训练会失败：")
    for failure in told:
        page.line(str(failure))
    return EXIT_USER_ERROR
