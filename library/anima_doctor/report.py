"""What a run on Anima would do, found out without loading a model: the report of `tools/doctor.py`.

The trainer's own stages are asked, up to where its first model is loaded, so that what they complain
of reads as it would in the run.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from library.anima_doctor import page as run_report
from library.anima_doctor.estimates import Estimates
from library.anima_doctor.page import Page, size_text
from library.anima_runtime import (
    key_mapping,
    model_loading,
    tokenizer_assets,
    tokenizer_fetch,
)
from library.anima_runtime.config_adapter import AnimaConfig, adapt, run_notes
from library.config_util import read_datasets
from library.data.catalogue import Catalogue
from library.data.dataset_config import DatasetGroupConfig
from library.data.scan import scan
from library.errors import ConfigError, OutputError, Problem, UserError, visible
from library.saving.checkpoints import output_names
from library.saving.metadata import legacy_hash
from library.saving.output_checks import check_outputs
from library.settings.config_file import LoadedConfig, Parser, read_config
from library.settings.options import all_flags
from library.settings.run_config import GROUPS as SHARED_GROUPS
from library.settings.run_config import TrainConfig
from library.system.run_lock import lock_problems
from library.training.optimizer_trial import try_optimizer
from library.training.optimizers import check_optimizer, create_optimizer
from library.training.schedulers import create_scheduler
from library.utils import quiet_libraries
from networks.loading import make_network, merge_base_weights
from networks.network import AdapterNetwork

if TYPE_CHECKING:
    from train_network import NetworkTrainer

GROUPS = (*SHARED_GROUPS.values(), AnimaConfig)
TOKENIZERS = {
    "qwen": (tokenizer_assets.find_qwen_tokenizer_dir, tokenizer_assets.load_qwen_tokenizer),
    "t5": (tokenizer_assets.find_t5_tokenizer_dir, tokenizer_assets.load_t5_tokenizer),
}
LoadRun = Callable[[Sequence[str]], tuple[TrainConfig, DatasetGroupConfig, AnimaConfig, list[str]]]


def is_asked(argv: Sequence[str]) -> bool:
    """Whether the command line, or its configuration file, has --check_only."""
    if {"--help", "-h"} & set(argv):
        return False
    files = read_config(Parser(), argv, GROUPS).groups[SHARED_GROUPS["files"]]
    return files.check_only and not files.output_config


def report(
    argv: Sequence[str], load_run: LoadRun, trainer_class: type[NetworkTrainer]
) -> tuple[str, int]:
    """The report on the run of a command line, and its exit code: 0 when it would start, else 2."""
    page = Page(["Report of a check, nothing was trained / 检查报告（未进行训练）"])
    run_report.environment(page)
    check = Check.of(argv, load_run, trainer_class)
    check.describe(page)
    code = run_report.result(page, check.failures, check.warnings)
    secrets = run_report.secret_values(check.loaded)
    text = visible("\n".join(page.lines), keep="\n")
    return run_report.scrub(text, secrets) + "\n", code


def show(text: str) -> None:
    """Print a report, once."""
    if os.environ.get("RANK", "0") != "0":  # one process tells what all of them do
        return
    print(text, end="", flush=True)


@dataclass
class Check:
    """What was found out, stage by stage. What a failed stage would have given is None."""

    loaded: LoadedConfig
    train: TrainConfig
    anima: AnimaConfig
    trainer: NetworkTrainer
    is_sound: bool = False
    notes: list[str] = field(default_factory=list)
    failures: list[UserError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    catalogue: Catalogue | None = None
    network: AdapterNetwork | None = None
    tokenizers: dict[str, Any] = field(default_factory=dict)
    to_fetch: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(argv: Sequence[str], load_run: LoadRun, trainer_class: type) -> Check:
        """Everything that can be known before a model is loaded."""
        loaded = read_config(Parser(), [a for a in argv if a not in ("--help", "-h")], GROUPS)
        if "output_config" in loaded.given:
            raise ConfigError("--output_config writes a file; a check writes none. Leave it out.")
        groups = {name: loaded.groups[g] for name, g in SHARED_GROUPS.items()}
        shared = TrainConfig(**groups, explicit=loaded.explicit)
        train, anima, _ = adapt(shared, loaded.groups[AnimaConfig], loaded.explicit)
        check = Check(loaded, train, anima, trainer_class(train, None, anima))
        with check.listening():
            check.run(argv, load_run, trainer_class)
        return check

    def run(self, argv: Sequence[str], load_run: LoadRun, trainer_class: type) -> None:
        with self.stage("configuration"):
            self.train, datasets, self.anima, self.notes = load_run(argv)
            self.trainer = trainer_class(self.train, datasets, self.anima)
            self.is_sound = True
        if not self.is_sound:
            self.trainer.datasets = self.readable_datasets()
            self.notes = self.known_notes()
        with self.stage("process"):
            self.trainer.prepare_process()
        with self.stage("check"):
            self.check_files()
        with self.stage("outputs"):
            save = self.train.save
            folder = save.output_dir
            if folder and (problems := lock_problems(Path(folder), output_names(save))):
                raise OutputError(problems)
        with self.stage("dataset"):
            self.read_dataset()
        if hasattr(self.trainer, "outline") and self.catalogue:
            with self.stage("state"):
                self.trainer.check_resume()
        self.check_tokenizers()
        with self.stage("adapters"):
            self.make_adapters()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Within: what goes wrong is told in the report and ends this stage alone."""
        try:
            yield
        except UserError as error:
            self.failures.append(error)
        except Exception as error:  # noqa: BLE001  the report is what such an error is told with
            place = error.__traceback__
            while place.tb_next:
                place = place.tb_next
            file, line = Path(place.tb_frame.f_code.co_filename).name, place.tb_lineno
            text = f"{type(error).__name__}: {error} ({file}, line {line}). Please report this."
            self.failures.append(UserError(Problem(text, source=f"unexpected, stage {name}")))

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within: the program's warnings are kept for the report instead of being shown."""
        root = logging.getLogger()
        level, handlers = root.level, list(root.handlers)
        listener = logging.Handler(logging.WARNING)
        listener.emit = lambda record: self.warnings.append(record.getMessage())
        root.handlers[:] = [listener]
        quiet_libraries()
        try:
            yield
        finally:
            root.setLevel(level)
            root.handlers[:] = handlers

    def readable_datasets(self) -> DatasetGroupConfig | None:
        """The dataset file of a configuration with problems, if it has none itself."""
        try:
            fallbacks = {n: v for n, v in self.train.flat().items() if n in self.loaded.explicit}
            return read_datasets(self.train.files.dataset_config, fallbacks)
        except ConfigError:  # among the problems already
            return None

    def known_notes(self) -> list[str]:
        """What has no effect in a configuration that has problems too."""
        return run_notes(self.train, self.anima, self.loaded.explicit, self.trainer.datasets)

    def check_files(self) -> None:
        """The trainer's check of all together; of a configuration with problems, of each file."""
        if self.is_sound:
            self.trainer.check()
            self.notes += [*self.trainer.warnings(), *self.trainer.differences()]
            return
        with self.stage("outputs"):
            if self.train.save.output_dir and (problems := check_outputs(self.train)):
                raise ConfigError(problems)
        inspections = (
            (self.trainer.inspect_transformer, self.anima.anima_transformer),
            (model_loading.inspect_vae, self.train.paths.vae),
            (self.trainer.inspect_qwen, self.anima.qwen),
        )
        with self.stage("optimizer"):
            self.try_optimizer()
        for inspect, path in inspections:
            if path:
                extra = [self.anima.llm_adapter_path] * (path == self.anima.anima_transformer)
                with self.stage("files"):
                    inspect(path, *extra)

    def try_optimizer(self) -> None:
        """By itself, in a configuration that has other problems."""
        if check_optimizer(self.train.optimizer, self.train.schedule):
            return
        if problems := try_optimizer(self.train.optimizer):
            raise ConfigError(problems)

    def read_dataset(self) -> None:
        trainer = self.trainer
        if trainer.datasets and self.is_sound and hasattr(trainer, "seed"):
            trainer.prepare_data()
            self.notes += trainer.warnings_of_length()
            self.catalogue = trainer.catalogue
        elif trainer.datasets:
            self.catalogue = scan(trainer.datasets)

    def check_tokenizers(self) -> None:
        """Both, even when the first one is wrong; a table of unknown size is not compared with."""
        for kind, (find, load) in TOKENIZERS.items():
            model = self.anima.qwen if kind == "qwen" else self.anima.anima_transformer
            given = getattr(self.anima, f"{kind}_tokenizer_dir")
            if not (given or model):
                continue
            with self.stage("tokenizers"):
                folder = find(given, model or "")
                wanted = self.anima.auto_download_t5_tokenizer
                if wanted and tokenizer_fetch.can_be_fetched(kind, folder):
                    sources = tokenizer_fetch.sources_of(kind, self.anima)
                    self.to_fetch[kind] = f"{folder}, from {' or '.join(map(str, sources))}"
                    continue
                tokenizer = load(folder)
                if rows := self.table_rows(kind):
                    tokenizer_assets.check_tokenizer(kind, tokenizer, rows)
                self.tokenizers[kind] = tokenizer

    def table_rows(self, kind: str) -> int | None:
        """Rows of the embedding table that reads a tokenizer's ids."""
        params = getattr(self.trainer, "params", None)
        rows = getattr(self.trainer, "qwen_rows", None)
        return rows if kind == "qwen" else params and params.llm_adapter.vocab

    def make_adapters(self) -> None:
        """The network without memory, --base_weights tried on it, and its optimizer."""
        trainer = self.trainer
        if not (self.is_sound and hasattr(trainer, "params")):
            return
        options = self.train.network
        with torch.device("meta"):
            model, kwargs = trainer.empty_model(), trainer.network_kwargs()
            model.set_attention_backend(self.anima.attention_backend)
            self.network = make_network(trainer.network_module, options, kwargs, model)
            merge_base_weights(options, model)
        self.try_optimization()

    def try_optimization(self) -> None:
        """The trainer's trial of optimizer and schedule; then both made once, for their warnings."""
        trainer, groups = self.trainer, self.trainer.optimizer_groups(self.network)[0]
        if plan := getattr(trainer, "plan", None):
            trainer.check_optimization(self.network)
        elif problems := try_optimizer(self.train.optimizer, groups):
            raise ConfigError(problems)
        small = [{**group, "params": [nn.Parameter(torch.zeros(1))]} for group in groups]
        optimizer = create_optimizer(self.train.optimizer, small)
        if plan:
            create_scheduler(self.train.schedule, optimizer, total_steps=plan.total_steps)

    def describe(self, page: Page) -> None:
        """Everything but the result."""
        problems = [p for failure in self.failures for p in failure.problems]
        notes = [*self.loaded.notes, *self.notes]
        run_report.options(page, self.loaded, all_flags(GROUPS), notes, problems)
        page.heading("Model files", "模型文件")
        page.table(self.file_rows())
        page.heading("Tokenizers", "分词器")
        page.table(self.tokenizer_rows())
        page.heading("Dataset", "数据集")
        if self.catalogue is None:
            page.line("  not known: see the result")
        else:
            run_report.dataset(page, self.catalogue)
        plan = getattr(self.trainer, "plan", None)
        page.heading("Length of the run", "训练长度")
        if plan:
            run_report.length(page, self.train, plan, self.trainer.accelerator.num_processes)
        if plan is None or self.network is None or len(self.tokenizers) < len(TOKENIZERS):
            page.line("  The rest is worked out when the problems below are solved.")
            return
        page.heading("Adapters", "适配器")
        for line in self.network.summary():
            page.line(f"  {line}")
        with self.stage("estimates"):
            Estimates(self.trainer, self.network, self.tokenizers).describe(page)

    def file_rows(self) -> Iterator[tuple[str, str]]:
        """Each file that was named: its path, then what its header says it is."""
        anima, network = self.anima, self.train.network
        named = [
            ("DiT", anima.anima_transformer),
            ("LLM adapter", anima.llm_adapter_path),
            ("VAE", self.train.paths.vae),
            ("Qwen", anima.qwen),
            ("network_weights", network.network_weights),
            *(("base_weights", file) for file in network.base_weights or ()),
        ]
        for role, path in named:
            if path:
                yield role, path
                yield "", describe_file(path)
        if params := getattr(self.trainer, "params", None):
            yield "the DiT has", f"{params.num_blocks} blocks, {params.model_dim} wide"
        yield "attention", anima.attention_backend

    def tokenizer_rows(self) -> Iterator[tuple[str, str]]:
        for kind, facts in tokenizer_assets.KINDS.items():
            tokenizer, rows = self.tokenizers.get(kind), self.table_rows(kind)
            if tokenizer is None:
                wanted = self.to_fetch.get(kind)
                fetched = wanted and f"missing; a run fetches it at its start into {wanted}"
                yield facts.name, fetched or "not usable: see the result"
                continue
            size = "the real one" if len(tokenizer) == facts.real_length else "not of the real size"
            sample = tokenizer(tokenizer_assets.SMOKE_TEXT).input_ids
            yield facts.name, str(tokenizer.name_or_path)
            yield (
                "",
                f"{len(tokenizer)} tokens ({size}), embedding table of {rows or 'unknown'} rows",
            )
            yield "", f"{tokenizer_assets.SMOKE_TEXT!r} -> {sample}"


def describe_file(path: str) -> str:
    """What a weight file or folder is: size, parameters, dtypes and kind, by its headers."""
    try:
        files = model_loading.qwen_files(path)
        if Path(path).is_dir() and model_loading.vae_file(path) != Path(path):
            files = [model_loading.vae_file(path)]
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: Counter[str] = Counter()
        for file in files:
            found, kinds = model_loading.shapes_and_dtypes(file, "a model")
            shapes |= found
            dtypes.update(kinds.values())
    except UserError:
        return "cannot be used: see the result"
    size = sum(file.stat().st_size for file in files)
    stored = ", ".join(f"{name} ({count} tensors)" for name, count in dtypes.most_common())
    prefix = key_mapping.transformer_prefix(shapes)
    parts = [
        key_mapping.guess_kind(shapes).partition(",")[0],
        size_text(size),
        f"{sum(map(prod, shapes.values())):,} parameters",
        stored,
        f"keys begin with {prefix!r}" if prefix else "",
        "Wan 2.1 layout" if model_loading.WAN_MARK in shapes else "",
        f"hash {legacy_hash(files[0])}" if size > 2**21 else "",
    ]
    return ", ".join(part for part in parts if part)
