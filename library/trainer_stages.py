"""The stages of a run before its first step, for any model family: from flags to all that a step needs.

`prepare()` is the table of contents. What a stage sets stays; what needs no keeping is no attribute.
"""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from library.device_utils import trained_dtype
from library.memory.modes import SavesMemory, enable_modes, record_passes, store_weights
from library.memory.planning import MemoryChoice, choose_modes, for_smallest_card
from library.memory.shortage import BetweenBuckets, StepDown
from library.previews.album import Album
from library.previews.run_previews import Previews, Studio, Usual
from library.previews.schedule import Moment, Schedule
from library.reporting.settings import run_words
from library.reporting.stage_times import timed
from library.saving.metadata import RunMetadata, start_entries
from library.saving.metadata_table import RunFacts
from library.saving.run_files import RunFiles, StateFacts
from library.saving.state_contents import TrainingParts
from library.saving.stopping import Request, StopRequests
from library.settings.flags.loop import LoopOptions
from library.trainer_inputs import InputStages
from library.training.compiling import Compiles
from library.training.optimization import Optimization
from library.training.optimizers import (
    describe_optimizer,
    optimizer_train_mode,
)
from library.training.weight_average import WeightAverage, average_of
from library.utils import log_lines, position_seed
from library.watching.monitor import Monitor, UpdateGuard
from library.watching.picture_ledger import PictureLedger
from library.watching.progress import RunProgress
from library.watching.trackers import Trackers, create_trackers
from networks.loading import merge_base_weights
from networks.trained import Trained

logger = logging.getLogger(__name__)


class TrainerStages(InputStages):
    """What a run is made of. Each stage sets the attributes that stand under its name.

    memory_modes: the options of the loop, with those that save memory as the run has them
    base:    the model: frozen until attach_network, then with what trains inside
    model:   what is called in a step: the base, wrapped where several processes train
    """

    # plan_memory
    memory_modes: LoopOptions
    cheaper: StepDown
    between_buckets: BetweenBuckets
    # load_models
    base: nn.Module
    # attach_network
    network: Trained
    # prepare_optimization
    optimization: Optimization
    model: nn.Module
    average: WeightAverage | None
    # start_logs
    monitor: Monitor
    metadata: RunMetadata
    trackers: Trackers
    progress: RunProgress
    # take_over
    files: RunFiles
    stops: StopRequests
    # prepare_previews
    previews: Previews

    def prepare(self) -> None:
        """Everything before the first step, one large model in memory at a time."""
        self.prepare_process()
        self.open_state()
        self.check()
        log_lines(logger, self.warnings(), logging.WARNING)
        log_lines(logger, self.differences())
        self.prepare_data()
        self.check_optimization()
        self.check_compile()
        self.check_products()
        self.check_attention()
        self.check_resume()
        self.make_repository()
        self.prepare_strategies()
        self.plan_memory()
        self.cache_inputs()
        self.load_models()
        self.prepare_model()
        self.attach_network()
        self.prepare_optimization()
        self.start_logs()
        self.take_over()
        self.prepare_previews()

    @timed
    def plan_memory(self) -> None:
        """Establish how a step saves memory: as the options say, or as --vram_target needs it."""
        choice = self.choose_modes() if self.cfg.loop.vram_target else None
        self.memory_modes = choice.loop if choice else self.cfg.loop
        log_lines(logger, choice.describe() if choice else [])
        processes = self.accelerator.num_processes
        self.cheaper = StepDown(self.acting, self.memory_modes, self.state.step, processes)
        log_lines(logger, self.cheaper.notes())
        self.between_buckets = BetweenBuckets(self.accelerator.device)

    def choose_modes(self) -> MemoryChoice:
        model = self.empty_model()
        assert isinstance(model, SavesMemory), "every family's model does"
        device = self.accelerator.device
        own = choose_modes(self.acting, device, model.num_blocks, self.memory_counter())
        return for_smallest_card(own)

    @timed
    def load_models(self) -> None:
        """Establish the frozen model on its device, --base_weights merged in."""
        self.base = self.load_target_model()
        merge_base_weights(self.cfg.network, self.base)

    @timed
    def prepare_model(self) -> None:
        """Establish where the model's weights and activations are kept, and how it is called."""
        assert isinstance(self.base, SavesMemory), "every family's model does"
        device = self.accelerator.device
        self.subject.mark(self.base)
        log_lines(logger, store_weights(self.precision, self.base, device))
        if not self.memory_modes.blocks_to_swap:
            self.base.to(device)
        log_lines(logger, enable_modes(self.memory_modes, self.base, device))
        if self.compilation is not None:
            assert isinstance(self.base, Compiles), "every family's model does"
            how = self.compilation
            self.base.compile_blocks(any_size=how.any_size, **how.options)
            log_lines(logger, how.describe(self.memory_modes))

    @timed
    def attach_network(self) -> None:
        """Establish what trains inside the model."""
        torch.manual_seed(position_seed(self.seed, "adapters"))  # the same factors on every rank
        self.network = self.subject.made_for(self.base)
        self.network.attach(self.base, trained_dtype(self.cfg.precision))
        log_lines(logger, self.network.summary())
        device = self.accelerator.device
        log_lines(logger, record_passes(self.cfg.precision, self.base, self.network, device))

    @timed
    def prepare_optimization(self) -> None:
        """Establish what makes the updates, and the model as it is called in a step."""
        self.optimization = Optimization(
            self.cfg, self.network, self.plan.total_steps, self.accelerator, self.seed
        )
        self.model = self.optimization.wrap(self.base)
        self.network.check_trainables()
        self.average = average_of(self.cfg.average, self.network)

    @timed
    def start_logs(self) -> None:
        """Establish trackers and metadata, and say what is about to run."""
        plan = self.plan
        cfg = replace(self.cfg, loop=self.memory_modes, precision=self.precision)
        is_main = self.accelerator.is_main_process
        self.monitor = Monitor(cfg.monitor, self.make_guard(), self.accelerator.device)
        optimizer = describe_optimizer(self.optimization.inner, cfg.optimizer)
        processes = self.accelerator.num_processes
        facts = RunFacts(cfg, self.catalogue, plan, self.network, optimizer, self.seed, processes)
        entries = start_entries(facts)
        self.update_metadata(entries)
        if self.resumption.state:
            entries |= self.resumption.state.run["metadata"]
        self.metadata = RunMetadata(entries, cfg.save.no_metadata, self.late_metadata)
        self.trackers = create_trackers(
            cfg.logging if is_main else None,
            output_dir=cfg.save.output_dir,
            output_name=cfg.save.output_name,
            config=cfg.flat(),
        )
        log_lines(logger, [*plan.describe(cfg, self.accelerator), *self.trackers.describe()])
        self.progress = RunProgress(
            self.trackers, plan, is_main, self.monitor, start=self.state.step
        )
        words = run_words(cfg, self.accelerator, self.network, optimizer, self.seed)
        self.reporter.watch(self.progress, self.network, words)

    def make_guard(self) -> UpdateGuard:
        policy, made = self.cfg.monitor.monitor_alert_policy, self.optimization
        single = partial(made.single.step, max_norm=made.max_norm) if made.single else None
        return UpdateGuard(made.optimizer, policy, made.flat, single)

    @timed
    def take_over(self) -> None:
        """Establish what writes the run's files, and what the state holds in all its parts."""
        optimization, scaler = self.optimization, self.accelerator.scaler
        optimizer_train_mode(optimization.optimizer)
        parts = TrainingParts(
            self.network, optimization.inner, optimization.scheduler, scaler, self.progress,
            self.picture_ledger(),
            arguments=self.cfg.optimizer.optimizer_args or (), average=self.average,
            evaluation=self.evaluation,
        )  # fmt: skip
        run = {"seed": self.seed, "num_processes": self.accelerator.num_processes}
        facts = StateFacts(run, self.build_resume_snapshot)
        self.files = RunFiles(self.checkpoints, self.accelerator, parts, self.metadata, facts)
        self.files.exporter.family = self.family_files
        self.stops = StopRequests(self.checkpoints.folder, self.accelerator)
        kept = self.resumption.state.record() if self.resumption.state else None
        self.reporter.follow(self.files, kept)
        self.resumption.restore(parts, self.state, self.accelerator.process_index)
        self.evaluation.begin_after(self.state.step)
        if self.resumption.state:
            self.files.last_state = self.resumption.state.folder

    def picture_ledger(self) -> PictureLedger:
        """Of the run's pictures, fed at every log point."""
        keys = [image.key for image in self.catalogue.images]
        ledger = PictureLedger(keys, self.plan.total_steps)
        self.progress.readers.append(ledger.add)
        return ledger

    @timed
    def prepare_previews(self) -> None:
        """Establish what draws pictures while training, if that is asked for."""
        cfg, cache = self.cfg, self.cfg.cache
        on_cpu = cfg.preview.sample_on_cpu_vae
        keeps_vae = not (cache.cache_latents or on_cpu)
        device = torch.device("cpu") if on_cpu else self.accelerator.device
        studio = Studio(
            accelerator=self.accelerator,
            model=self.base,
            network=self.network,
            context=self.prompt_context,
            contexts_train=self.prompt_contexts_train(),
            decoder=self.latents_strategy if keeps_vae else self.get_decoding_strategy(device),
            keeps_decoder=keeps_vae,
            rows=cfg.preview.vae_chunk_size,
            trackers=self.trackers,
            is_stopped=lambda: self.stops.received is Request.QUIT,
        )
        size = max((each.resolution for each in self.datasets.datasets), key=math.prod)
        usual = Usual(self.seed, size, self.model_files_at, self.adapters_at)
        assert cfg.save.output_dir, "SaveOptions asks for one"
        album = Album(Path(cfg.save.output_dir), cfg.save.output_name)
        self.metadata.cover = None if cfg.metadata.metadata_thumbnail else album.cover
        schedule = Schedule(cfg.preview, self.plan.total_steps)
        self.previews = Previews(schedule, self.prompts, album, studio, usual)
        if self.resumption.state:  # its pictures were drawn after the state was written
            for each in album.drawn_at(self.state.step, self.plan.steps_per_epoch):
                self.reporter.add_picture(each.step, each.number, each.prompt, each.seed, each.path)

    def adapters_at(self, moment: Moment, strength: float) -> list[tuple[str, float]]:
        """The adapter files that draw a moment's pictures again, with their strengths; the run's last.

        strength: of the run's own
        """
        net, checkpoints = self.cfg.network, self.checkpoints
        strengths = itertools.chain(net.base_weights_multiplier or (), itertools.repeat(1.0))
        found = [(Path(name).name, each) for name, each in zip(net.base_weights or (), strengths)]
        if moment.step:
            own = checkpoints.file_at(moment.step, moment.epoch, self.plan.total_steps)
        elif net.network_weights is None:
            return found
        else:
            own = Path(net.network_weights)
        return [*found, (own.name, strength)]
