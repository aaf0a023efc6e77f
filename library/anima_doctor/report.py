"""What a run on Anima would do, found out without loading a model: the report of `tools/doctor.py`.

The trainer's own stages are asked, up to where its first model is loaded, so that what they complain
of reads as it would in the run. A trainer is made of a sound configuration only; of another, each part
is looked at by itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from library import train_util
from library.anima_backend.modelling.params import DiTParams
from library.anima_doctor import machine
from library.anima_doctor import page as run_report
from library.anima_doctor.estimates import Estimates
from library.anima_doctor.exposures import exposure_rows, exposure_warnings
from library.anima_doctor.file_rows import file_rows
from library.anima_doctor.looking_over import overview
from library.anima_doctor.page import Page
from library.anima_runtime import (
    tokenizer_assets,
    tokenizer_fetch,
)
from library.anima_runtime.command_line import GROUPS, Entry
from library.anima_runtime.config_adapter import AnimaConfig, adapt, run_notes
from library.anima_runtime.empty_model import empty_model
from library.anima_runtime.family import ANIMA
from library.anima_runtime.model_facts import Inspection, inspect_models
from library.anima_runtime.shared_groups import SHARED_GROUPS
from library.config_util import read_datasets
from library.data.catalogue import Catalogue
from library.data.dataset_config import DatasetGroupConfig
from library.data.scan import scan
from library.device_utils import without_memory
from library.errors import ConfigError, OutputError, Problem, UserError, visible
from library.saving.checkpoints import output_names
from library.saving.output_checks import check_outputs
from library.saving.resumption import Resumption
from library.settings.config_file import LoadedConfig, Parser, read_config
from library.settings.options import all_flags
from library.settings.run_config import TrainConfig
from library.system.run_lock import lock_problems
from library.train_util import StepPlan
from library.training.optimization import check_optimization, optimizer_groups
from library.training.optimizer_trial import try_optimizer
from library.training.optimizers import check_optimizer, create_optimizer
from library.training.schedulers import create_scheduler
from library.utils import quiet_libraries
from networks.loading import merge_base_weights
from networks.trained import Trained
from train_network import NetworkTrainer

TOKENIZERS = {
    "qwen": (tokenizer_assets.find_qwen_tokenizer_dir, tokenizer_assets.load_qwen_tokenizer),
    "t5": (tokenizer_assets.find_t5_tokenizer_dir, tokenizer_assets.load_t5_tokenizer),
}
LoadRun = Callable[
    [Sequence[str], Entry], tuple[TrainConfig, DatasetGroupConfig, AnimaConfig, list[str]]
]


class TrainerClass(Protocol):
    """The family's trainer, which is made of a sound configuration."""

    entry: Entry
    snapshot_schema: str

    def __call__(
        self, cfg: TrainConfig, datasets: DatasetGroupConfig, anima: AnimaConfig
    ) -> NetworkTrainer: ...


def is_asked(argv: Sequence[str]) -> bool:
    """Whether the command line, or its configuration file, has --check_only."""
    if {"--help", "-h"} & set(argv):
        return False
    files = read_config(Parser(), argv, GROUPS).groups[SHARED_GROUPS["files"]]
    return files.check_only and not files.output_config


def report(argv: Sequence[str], load_run: LoadRun, trainer_class: TrainerClass) -> tuple[str, int]:
    """The report on the run of a command line, and its exit code: 0 when it would start, else 2."""
    _, text, code = examine(argv, load_run, trainer_class)
    return text, code


def examine(
    argv: Sequence[str], load_run: LoadRun, trainer_class: TrainerClass
) -> tuple[Check, str, int]:
    """What was found out, its report, and the exit code."""
    page = Page(["Report of a check, nothing was trained / 检查报告（未进行训练）"])
    run_report.environment(page)
    page.table(machine.memory_rows())
    check = Check.of(argv, load_run, trainer_class)
    check.describe(page)
    code = run_report.result(page, check.failures, check.warnings)
    secrets = run_report.secret_values(check.loaded)
    text = visible("\n".join(page.lines), keep="\n")
    return check, run_report.scrub(text, secrets) + "\n", code


def show(text: str) -> None:
    """Print a report, once."""
    if os.environ.get("RANK", "0") != "0":  # one process tells what all of them do
        return
    print(text, end="", flush=True)


class Listener(logging.Handler):
    """Keeps the text of warnings."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


@dataclass
class Check:
    """What was found out, stage by stage; what a failed one would have given is None or empty.

    passed:   the stages that ended well, on which others build
    trainer:  None of a configuration that has problems
    plan:     None where the state, if any, or the data cannot be used
    network:  what would train, without memory; None without a sound configuration and a DiT's sizes
    to_fetch: the tokenizers that a run would bring: where to and where from, by kind
    """

    loaded: LoadedConfig
    train: TrainConfig
    anima: AnimaConfig
    passed: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    failures: list[UserError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    trainer: NetworkTrainer | None = None
    inspection: Inspection = field(default_factory=Inspection)
    catalogue: Catalogue | None = None
    plan: StepPlan | None = None
    network: Trained | None = None
    tokenizers: dict[str, Any] = field(default_factory=dict)
    to_fetch: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(argv: Sequence[str], load_run: LoadRun, trainer_class: TrainerClass) -> Check:
        """Everything that can be known before a model is loaded."""
        loaded = read_config(Parser(), [a for a in argv if a not in ("--help", "-h")], GROUPS)
        if "output_config" in loaded.given:
            raise ConfigError("--output_config writes a file; a check writes none. Leave it out.")
        groups = {name: loaded.groups[g] for name, g in SHARED_GROUPS.items()}
        whole = trainer_class.entry.whole
        shared = TrainConfig(**groups, explicit=loaded.explicit, whole=whole)
        train, anima, _ = adapt(shared, loaded.groups[AnimaConfig], loaded.explicit)
        check = Check(loaded, train, anima)
        with check.listening():
            check.run(argv, load_run, trainer_class)
        return check

    def run(self, argv: Sequence[str], load_run: LoadRun, trainer_class: TrainerClass) -> None:
        with self.stage("configuration"):
            self.train, datasets, self.anima, self.notes = load_run(argv, trainer_class.entry)
            self.trainer = trainer_class(self.train, datasets, self.anima)
        self.warnings += machine.warnings_of_compiling(self.train.precision)
        if self.trainer:
            self.ask(self.trainer)
        else:
            self.look_at_each_part(trainer_class.snapshot_schema)
        self.check_tokenizers()
        if self.trainer and (params := self.inspection.params):
            with self.stage("adapters"):
                self.make_adapters(self.trainer, params)

    def ask(self, trainer: NetworkTrainer) -> None:
        """The trainer's stages, each where those that it builds on have ended well."""
        with self.stage("process"):
            trainer.prepare_process()
        if "process" in self.passed:
            with self.stage("state"):
                trainer.open_state()
        with self.stage("files"):  # what is wrong with them is told by the next
            self.inspection = inspect_models(self.train, self.anima)
        with self.stage("check"):
            trainer.check(None if "process" in self.passed else "cpu")
            self.notes += [*trainer.warnings(), *trainer.differences()]
        self.check_lock()
        with self.stage("dataset"):
            if "state" in self.passed:
                trainer.prepare_data()
                self.notes += trainer.warnings_of_length()
                self.plan, self.catalogue = trainer.plan, trainer.catalogue
                preset = self.train.files.preset
                self.warnings += exposure_warnings(self.catalogue, self.plan, preset)
            else:
                self.catalogue = scan(trainer.datasets)
        if "check" in self.passed and self.plan:
            with self.stage("attention"):
                trainer.check_attention()
            with self.stage("resuming"):
                if trainer.resumption.state is not None:
                    trainer.check_products()  # as the state has them: nothing is tried
                trainer.check_resume()

    def look_at_each_part(self, schema: str) -> None:
        """Of a configuration that has problems. schema: of the states that the family takes."""
        datasets = self.readable_datasets()
        self.notes = run_notes(self.train, self.anima, self.loaded.explicit, datasets)
        with self.stage("process"):
            train_util.prepare_torch(self.train)
            train_util.prepare_accelerator(self.train)
            Resumption(self.train.resume, schema, self.train.save.huggingface_token)
        with self.stage("outputs"):
            if self.train.save.output_dir and (problems := check_outputs(self.train)):
                raise ConfigError(problems)
        with self.stage("optimizer"):
            self.try_optimizer()
        with self.stage("files"):
            self.inspection = inspect_models(self.train, self.anima)
            self.failures += self.inspection.failures
        self.check_lock()
        with self.stage("dataset"):
            self.catalogue = scan(datasets) if datasets else None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Within: what goes wrong is told in the report and ends this stage alone."""
        try:
            yield
            self.passed.add(name)
        except UserError as error:
            self.failures.append(error)
        except Exception as error:  # noqa: BLE001  the report is what such an error is told with
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}, line {place.lineno}"
            text = f"{type(error).__name__}: {error} ({where}). Please report this."
            self.failures.append(UserError(Problem(text, source=f"unexpected, stage {name}")))

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within: the program's warnings are kept for the report instead of being shown."""
        root = logging.getLogger()
        level, handlers = root.level, list(root.handlers)
        listener = Listener(self.warnings)
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
            return read_datasets(self.train.files.dataset_config, fallbacks, ANIMA.foreign_message)
        except ConfigError:  # among the problems already
            return None

    def check_lock(self) -> None:
        """Whether another run writes the same files."""
        with self.stage("outputs"):
            save = self.train.save
            folder = save.output_dir
            if folder and (problems := lock_problems(Path(folder), output_names(save))):
                raise OutputError(problems)

    def try_optimizer(self) -> None:
        """By itself, in a configuration that has other problems."""
        if check_optimizer(self.train.optimizer, self.train.schedule):
            return
        if problems := try_optimizer(self.train.optimizer):
            raise ConfigError(problems)

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
        """Rows of the embedding table that reads a tokenizer's ids; None when they are not known."""
        found = self.inspection
        if kind == "qwen":
            return found.qwen_rows
        return found.params.llm_adapter.vocab if found.params else None

    def make_adapters(self, trainer: NetworkTrainer, params: DiTParams) -> None:
        """What would train, without memory, --base_weights tried on it, and its optimizer."""
        with without_memory():
            encoder = self.anima.qwen if self.train.network.text_encoder_rate else None
            model = empty_model(params, encoder)
            self.network = trainer.get_subject().made_for(model)
            merge_base_weights(self.train.network, model)
        self.try_optimization(trainer, self.network)

    def try_optimization(self, trainer: NetworkTrainer, network: Trained) -> None:
        """The trainer's trial of optimizer and schedule; then both made once, for their warnings."""
        train, (groups, _) = self.train, optimizer_groups(self.train, network)
        if self.plan:
            check_optimization(train, network, self.plan.total_steps, trainer.accelerator.device)
        elif problems := try_optimizer(train.optimizer, groups):
            raise ConfigError(problems)
        small = [{**group, "params": [nn.Parameter(torch.zeros(1))]} for group in groups]
        optimizer = create_optimizer(train.optimizer, small)
        if self.plan:
            create_scheduler(train.schedule, optimizer, total_steps=self.plan.total_steps)

    def describe(self, page: Page) -> None:
        """Everything but the result."""
        problems = [p for failure in self.failures for p in failure.problems]
        notes = [*self.loaded.notes, *self.notes]
        run_report.options(page, self.loaded, all_flags(GROUPS), notes, problems)
        page.heading("Model files", "模型文件")
        page.table(file_rows(self.train, self.anima, self.inspection.params))
        page.heading("Tokenizers", "分词器")
        page.table(self.tokenizer_rows())
        if self.to_fetch:
            page.table(machine.network_here())
        page.heading("Dataset", "数据集")
        if self.catalogue is None:
            page.line("  not known: see the result")
        else:
            run_report.dataset(page, self.catalogue)
            page.heading("Pictures and captions", "图片与标注")
            with self.stage("looking over"):
                for line in overview(self.catalogue, self.train):
                    page.line(f"  {line}")
        page.heading("Length of the run", "训练长度")
        trainer, network, params = self.trainer, self.network, self.inspection.params
        if trainer and self.plan:
            run_report.length(page, self.train, self.plan, trainer.accelerator.num_processes)
            rows = list(exposure_rows(trainer.catalogue, self.plan, self.train.files.preset))
            page.table(rows[:1] if self.train.whole else rows)  # presets are of adapters
        if not (trainer and self.plan and network and params) or (
            len(self.tokenizers) < len(TOKENIZERS)
        ):
            page.line("  The rest is worked out when the problems below are solved.")
            return
        page.heading(*(("What trains", "训练对象") if self.train.whole else ("Adapters", "适配器")))
        for line in network.summary():
            page.line(f"  {line}")
        with self.stage("estimates"):
            Estimates(trainer, self.anima, params, network, self.tokenizers).describe(page)

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
