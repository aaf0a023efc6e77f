"""The stages of a run that load nothing heavy: what it is made of is established, and fits together.

The stages that follow are in library/trainer_inputs.py and library/trainer_stages.py.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from library import train_util
from library.caching.contents import Contents
from library.data.bucket_sampler import BucketBatchSampler
from library.data.data_types import RunPosition
from library.data.dataset_config import DatasetGroupConfig
from library.data.scan import scan
from library.device_utils import precision_dtype, without_memory
from library.errors import ConfigError, DatasetError, Problem
from library.memory import int8_probe
from library.memory.modes import SavesMemory, mode_problems, recording_problems, storage_problems
from library.previews.album import album_problems
from library.previews.prompts import caption_problems
from library.reporting.reporter import Reporter, check_page
from library.reporting.stage_times import timed
from library.saving import snapshot
from library.saving.checkpoints import Checkpoints
from library.saving.exporting import export_notes, export_problems
from library.saving.hub import Repository
from library.saving.output_checks import check_outputs
from library.saving.resumption import Resumption
from library.saving.snapshot import Snapshot
from library.saving.state_contents import first_position
from library.settings.drift_prompts import read_drift_prompts
from library.settings.flags.precision import PrecisionOptions
from library.settings.run_config import TrainConfig
from library.system.program import is_first_process
from library.trainer_hooks import FamilyHooks
from library.training.compiling import Compilation, working_compilation
from library.training.flow_matching import Noising
from library.training.optimization import check_optimization
from library.training.optimizer_trial import try_optimizer
from library.training.prior import Prior
from library.utils import log_lines
from library.watching.drift import Drift
from library.watching.evaluation import Evaluation
from library.watching.validation import Validation
from networks.loading import merge_base_weights, quiet
from networks.trained import Subject, Trained

if TYPE_CHECKING:
    from accelerate import Accelerator

    from library.data.catalogue import Catalogue

logger = logging.getLogger(__name__)


class CheckStages(FamilyHooks):
    """What a run is known by before anything is loaded. Each stage sets what stands under its name.

    subject: what is asked to be trained
    outline: what will be trained, without memory
    """

    # prepare_process
    accelerator: Accelerator
    noising: Noising
    weight_dtype: torch.dtype
    # open_state
    resumption: Resumption
    seed: int
    # check
    subject: Subject
    model_facts: object
    outline: Trained
    # prepare_data
    catalogue: Catalogue
    sampler: BucketBatchSampler
    state: RunPosition
    plan: train_util.StepPlan
    checkpoints: Checkpoints
    validation: Validation
    evaluation: Evaluation
    drift: Drift
    prior: Prior
    # check_compile
    compilation: Compilation | None
    # check_products
    precision: PrecisionOptions
    # check_attention
    attention: str

    def __init__(self, cfg: TrainConfig, datasets: DatasetGroupConfig) -> None:
        """Both checked, each by itself."""
        self.cfg = cfg
        self.datasets = datasets
        self.contents = Contents()
        self.reporter = Reporter(cfg)
        self.times = self.reporter.times

    def assert_extra_args(self) -> list[Problem]:
        """What is wrong between the flags and the output folder, before any heavy work."""
        if not is_first_process(os.environ):  # one tries, since what is tried is made and removed
            return []
        found = check_outputs(self.cfg)
        if not found and self.cfg.preview.sample_prompts:
            found = album_problems(self.cfg.save)
        repository = Repository.of(self.cfg.save)
        return [*found, *check_page(self.cfg), *(repository.problems() if repository else [])]

    @timed
    def prepare_process(self) -> None:
        """Establish the accelerator and the settings of the path."""
        train_util.prepare_torch(self.cfg)
        self.accelerator = train_util.prepare_accelerator(self.cfg)
        self.noising = train_util.make_noising(self.cfg.flow)
        self.weight_dtype = precision_dtype(self.cfg.precision.mixed_precision)

    @timed
    def open_state(self) -> None:
        """Establish which state to go on from, if any, and the seed."""
        token = self.cfg.save.huggingface_token
        with self.accelerator.local_main_process_first():  # one process of a machine fetches it
            self.resumption = Resumption(self.cfg.resume, self.snapshot_schema, token)
        self.seed = train_util.choose_seed(self.resumption.seed_or(self.cfg.loop.seed))

    @timed
    def check(self, device: torch.device | str | None = None) -> None:
        """Establish what the model files are, and what trains on them; all problems in one error.

        device: where stored weights and, beside other problems, optimizers are tried; None: where the run trains
        """
        subject = self.get_subject()
        facts, wrong_files = self.inspect_models()
        where = torch.device(self.accelerator.device if device is None else device)
        unstored = storage_problems(self.cfg.precision, where)
        problems = [*subject.problems(), *self.assert_extra_args(), *wrong_files, *unstored]
        if problems:
            like = torch.empty(0, device=where)
            raise ConfigError([*problems, *try_optimizer(self.cfg.optimizer, like=like)])
        self.subject, self.model_facts = subject, facts
        with without_memory(), quiet():
            model = self.empty_model()
            assert isinstance(model, SavesMemory), "every family's model does"
            if problems := mode_problems(self.cfg.loop, model):
                raise ConfigError(problems)
            merge_base_weights(self.cfg.network, model)
            self.outline = subject.made_for(model)
        unlimited = self.outline.limit_problems(self.cfg.network.scale_weight_norms)
        recorded = recording_problems(self.cfg.precision, self.outline)
        if problems := [*export_problems(self.cfg.save, self.outline), *unlimited, *recorded]:
            raise ConfigError(problems)

    def warnings(self) -> list[str]:
        return export_notes(self.cfg.save, self.outline)

    @timed
    def prepare_data(self) -> None:
        """Establish the catalogue of pictures, the order of batches and the length of the run."""
        self.catalogue = scan(self.datasets)
        weighs = self.cfg.data.weighted_captions
        if weighs and (problems := caption_problems(self.catalogue.everything().images)):
            raise DatasetError(problems)
        self.sampler = BucketBatchSampler(
            self.catalogue,
            seed=self.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        accumulation = self.cfg.loop.gradient_accumulation_steps
        plan = train_util.StepPlan.make(len(self.sampler), accumulation, self.cfg)
        self.state = first_position(
            self.cfg.resume,
            self.resumption.state,
            plan,
            accumulation=accumulation,
            processes=self.accelerator.num_processes,
        )
        self.plan = plan.starting_at(self.state, self.cfg)
        self.checkpoints = Checkpoints(self.cfg.save, self.plan.epochs, self.cfg.resume)
        self.validation = Validation(self.catalogue.validation(), self.cfg.validation)
        self.prepare_evaluation()
        self.prior = Prior.of(self.cfg.loss, self.catalogue)
        log_lines(logger, [*self.catalogue.notes, *self.warnings_of_length()], logging.WARNING)
        log_lines(logger, self.catalogue.describe())
        self.reporter.begin(self.plan, self.catalogue, self.option_groups(), self.state)

    def prepare_evaluation(self) -> None:
        """Establish on which pictures and prompts the run is evaluated: on none unless asked for."""
        options, seed = self.cfg.evaluation, self.validation.seed
        self.evaluation = Evaluation(self.catalogue, options, seed)
        asked = options.drift_prompts if self.evaluation.has_interval else None
        prompts = read_drift_prompts(asked) if asked else ()
        self.drift = Drift(prompts, self.catalogue, seed)
        log_lines(logger, self.evaluation.warnings(), logging.WARNING)
        log_lines(logger, [*self.evaluation.plan_lines(), *self.drift.plan_lines()])

    @timed
    def check_optimization(self) -> None:
        """All of the run's steps, on stand-ins."""
        device = self.accelerator.device
        check_optimization(self.cfg, self.outline, self.plan.total_steps, device)

    @timed
    def check_compile(self) -> None:
        """Establish how blocks are compiled, if that is asked for and works here."""
        self.compilation = working_compilation(
            self.cfg.precision, self.catalogue, self.accelerator.device
        )

    @timed
    def check_products(self) -> None:
        """Establish the precision, whose int8_compute = auto is what the state says or a trial."""
        self.precision, state = self.cfg.precision, self.resumption.state
        if not self.precision.probes_int8:
            return
        if state is not None:
            is_on, why = bool(state.snapshot["critical"].get("int8_compute")), "as in the state"
        else:
            reason = self.try_products()
            is_on, why = reason is None, reason or "faster here"
        logger.info("int8_compute is %s: %s", "on" if is_on else "off", why)
        self.precision = replace(self.precision, int8_compute="always" if is_on else None)

    def try_products(self) -> str | None:
        """Why the run's products are not computed in int8; None if they are to be."""
        from accelerate.utils import broadcast_object_list

        wrap = self.compilation.wrap if self.compilation else lambda function: function
        device, is_main = self.accelerator.device, self.accelerator.is_main_process
        given = self.frozen_products(), self.weight_dtype, device, wrap
        return broadcast_object_list([int8_probe.why_not(*given) if is_main else None])[0]

    @timed
    def check_attention(self) -> None:
        """Establish which kernel computes attention."""
        self.attention = self.choose_attention()

    @timed
    def check_resume(self) -> None:
        """That the state fits this run, before anything heavy is loaded."""
        is_main = self.accelerator.is_main_process
        self.resumption.check(self.validate_resume_snapshot, is_main=is_main)

    @property
    def acting(self) -> TrainConfig:
        """The options, with what turned out of int8_compute and compile here."""
        compiles = self.compilation is not None
        return replace(self.cfg, precision=replace(self.precision, compile=compiles))

    def frozen_products(self) -> int8_probe.Products:
        """Of the largest batch, taken to have a row for each token; texts have fewer."""
        model, datasets = self.empty_model(), self.catalogue.group.datasets
        assert isinstance(model, SavesMemory), "every family's model does"
        pixels = max(
            datasets[number].batch_size * width * height
            for number, (width, height) in self.catalogue.buckets()
        )
        linears = model.linears_to_store(llm_adapter=False).values()
        shapes = Counter((linear.out_features, linear.in_features) for linear in linears)
        return int8_probe.Products(pixels // self.pixels_per_token, shapes)

    @timed
    def make_repository(self) -> None:
        """Make the repository that files are uploaded to, where there is none yet."""
        repository = Repository.of(self.cfg.save)
        if repository and is_first_process(os.environ) and repository.make():
            logger.info("made the repository %s", repository)

    def build_resume_snapshot(self) -> dict[str, Any]:
        """The settings of this run that a state keeps."""
        return self.snapshot().document(self.snapshot_schema)

    def snapshot(self) -> Snapshot:
        """The same by kind; a family adds its own."""
        cfg = replace(self.cfg, precision=self.precision)
        processes = self.accelerator.num_processes
        return snapshot.run_fields(
            cfg, self.catalogue, self.outline, seed=self.seed, processes=processes
        )

    def validate_resume_snapshot(self, saved: Mapping[str, Any]) -> list[Problem]:
        """What in a state's snapshot keeps this run from going on from it."""
        own = self.build_resume_snapshot()
        return snapshot.compare(saved, own, self.cfg.resume, strict=self.strict_resume)
