"""One step of Anima, at any size and with any settings, to be counted without weights or data."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from library.anima_backend.modelling.dit import Anima
from library.anima_backend.modelling.params import DiTParams
from library.anima_runtime.empty_model import new_text_encoder
from library.anima_runtime.text_contexts import adapts_text, put_away
from library.memory.compiled_count import CountedCompiler, counted_compiler, shared_graphs
from library.memory.modes import enable_modes, record_passes, store_weights
from library.memory.step_count import Step, StepCount, count_step
from library.settings.flags.flow import FlowOptions
from library.settings.flags.loop import LoopOptions
from library.settings.flags.loss import LossOptions
from library.settings.flags.network import NetworkOptions
from library.settings.flags.optimizer import OptimizerOptions
from library.settings.flags.precision import PrecisionOptions
from library.strategy_anima import AnimaConditioning, AnimaContext, predict_velocity
from library.train_util import make_noising
from library.training import losses
from library.training.compiling import torch_options
from library.training.flow_matching import NoisyLatents
from networks._anima_arguments import component_of
from networks.loading import Adapters, quiet
from networks.model_layout import ModelLayout
from networks.trained import Subject, Trained
from networks.whole_model import Whole

logger = logging.getLogger(__name__)


class Saving(NamedTuple):
    """The options of a run that say where weights and activations are; the others of both do not count."""

    loop: LoopOptions = LoopOptions()
    precision: PrecisionOptions = PrecisionOptions()


ALL = 999  # of the blocks, however many there are
CHECKPOINT = LoopOptions(gradient_checkpointing=True)
FP8, INT8 = PrecisionOptions(fp8_base=True), PrecisionOptions(int8_base=True)
NF4 = PrecisionOptions(nf4_base=True)
COMPUTE = replace(INT8, int8_compute="always")
MODES = {
    "none": Saving(),
    "cheap": Saving(LoopOptions(recompute="cheap")),
    "every_2nd": Saving(replace(CHECKPOINT, checkpoint_every_n=2)),
    "every_4th": Saving(replace(CHECKPOINT, checkpoint_every_n=4)),
    "checkpoint": Saving(CHECKPOINT),
    "offload": Saving(LoopOptions(cpu_offload_checkpointing=True)),
    "swap_all": Saving(LoopOptions(blocks_to_swap=ALL)),
    "checkpoint_swap_all": Saving(replace(CHECKPOINT, blocks_to_swap=ALL)),
    "fp8": Saving(precision=FP8),
    "fp8_checkpoint": Saving(CHECKPOINT, FP8),
    "int8_checkpoint": Saving(CHECKPOINT, INT8),
    "nf4_checkpoint": Saving(CHECKPOINT, NF4),
    "int8_compute": Saving(precision=COMPUTE),
}
"""Ways of saving memory by the names of measurements."""
GRAPHS, COMPILED = PrecisionOptions(cuda_graphs=True), PrecisionOptions(compile=True)
SPEEDS = {
    "graphs": Saving(precision=GRAPHS),
    "checkpoint_graphs": Saving(CHECKPOINT, GRAPHS),
    "compile": Saving(precision=COMPILED),
    "compile_checkpoint": Saving(CHECKPOINT, COMPILED),
    "compile_graphs": Saving(precision=replace(COMPILED, cuda_graphs=True)),
}
"""Ways of saving time."""


@dataclass(frozen=True)
class Full:
    """That the model itself trains.

    rates:  of its parts that have one of their own
    single: one weight is updated after another; fused: in the backward pass
    parted: masters are updated a part at a time
    """

    rates: tuple[tuple[str, float], ...] = ()
    single: bool = False
    fused: bool = False
    parted: bool = False


@dataclass(frozen=True, kw_only=True)
class AnimaStep:
    """The settings that decide what a step costs.

    size:      (H, W) of the latents; tokens: (Qwen's, T5's) of a caption
    arguments: of the network module, by name
    text_encoder: its file or folder, where adapters of it train in the step
    caches_text:  what encoders make of texts is cached, so that an LLM adapter that does not train rests in RAM
    fused:     whether what lies between products is in one kernel, where a GPU has them
    full:      the model itself trains, not adapters
    """

    params: DiTParams
    network: NetworkOptions
    arguments: tuple[tuple[str, object], ...] = ()
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    dtype: torch.dtype = torch.bfloat16
    trained_dtype: torch.dtype = torch.float32
    size: tuple[int, int] = (128, 128)
    batch: int = 1
    tokens: tuple[int, int] = (150, 170)
    memory: Saving = field(default_factory=Saving)
    accumulates: bool = False
    fused: bool = False
    folds_text: bool = False
    text_encoder: str | None = None
    caches_text: bool = True
    full: Full | None = None


@cache
def count(step: AnimaStep) -> StepCount:
    """What the step costs on a GPU; counted once in a process."""
    try:
        with shared_graphs():
            return count_step(make_step(step, torch.device("meta")))
    except torch._dynamo.exc.TorchDynamoException as error:
        first = str(error).strip().partition("\n")[0]
        logger.warning(
            "compile: blocks cannot be traced to count what they keep compiled (%s: %s). They are counted "
            "uncompiled, and may need more.", type(error).__name__, first,
        )  # fmt: skip
        return count(uncompiled(step))


def uncompiled(step: AnimaStep) -> AnimaStep:
    loop, precision = step.memory
    return replace(step, memory=Saving(loop, replace(precision, compile=False)))


def make_step(settings: AnimaStep, device: torch.device) -> Step:
    """The step with random weights on `device`, or with none on the meta device."""
    model, network = make_model(settings, device)
    fused = settings.full is not None and settings.full.fused
    for weight, _ in network.pairs() if settings.full else ():
        if fused or (network.swap and id(weight) in network.swap.numbers):
            weight.register_post_accumulate_grad_hook(let_go)
    compiler = compile_blocks(model, settings.memory.precision, device)
    record_passes(settings.memory.precision, model, network, device)
    latents, texts = make_inputs(settings, device)
    read = as_read(settings, texts, model, network)
    rests = settings.caches_text and isinstance(read, AnimaContext)
    return Step(
        device=device, model=model, network=network,
        loss=partial(loss_of, model, settings, latents, read),
        optimizer=None if settings.full else settings.optimizer,
        swap=model.swap, waits=model.modulations.settle(),
        rests=list(model.llm_adapter.state_dict(keep_vars=True).values()) if rests else (),
        accumulates=settings.accumulates,
        single=bool(settings.full and (settings.full.single or network.swap)),
        parted=bool(settings.full and settings.full.parted),
        compiler=compiler,
    )  # fmt: skip


def make_model(settings: AnimaStep, device: torch.device) -> tuple[Anima, Trained]:
    """The model, as the settings have it, with what trains."""
    with device, quiet():
        wider = max(settings.dtype, settings.trained_dtype, key=lambda dtype: dtype.itemsize)
        model = Anima(settings.params)
        if settings.text_encoder:
            model.hold_text_encoder(new_text_encoder(settings.text_encoder))
        model.to(wider if settings.full else settings.dtype).requires_grad_(False)
        model.folds_text = settings.folds_text
        subject_of(settings).mark(model)
        store_weights(settings.memory.precision, model, device)
        enable_modes(settings.memory.loop, model, device)
        model.use_one_kernel(settings.fused)
        network = subject_of(settings).made_for(model)
        network.attach(model, settings.trained_dtype)
    return model, network


def compile_blocks(
    model: Anima, precision: PrecisionOptions, device: torch.device
) -> CountedCompiler | None:
    """As the options say; on the meta device by what stands for the compiler, which is returned."""
    if not precision.compile:
        return None
    if device.type != "meta":
        model.compile_blocks(any_size=False, **torch_options(precision))
        return None
    compiler = counted_compiler(precision.activation_memory_budget)
    model.compile_blocks(any_size=False, backend=compiler.backend, fullgraph=True, dynamic=False)
    assert model.compiled is not None, "just set"
    model.compiled.function = compiler.unwatched(model.compiled.function)
    return compiler


def as_read(
    settings: AnimaStep, texts: AnimaConditioning, model: Anima, network: Trained
) -> AnimaConditioning | AnimaContext:
    """What a step is conditioned on: contexts that were made before, where nothing that makes them trains."""
    if adapts_text(network.paths()):
        return texts
    model.llm_adapter.to(model.device)
    with torch.no_grad():
        rows = model.text_rows(texts.qwen_hidden, texts.t5_ids, texts.qwen_mask, texts.t5_mask, None)
    if settings.caches_text and not rows.is_meta:
        put_away(model)
    return AnimaContext(rows)


def subject_of(settings: AnimaStep) -> Subject:
    if settings.full is None:
        return Adapters(settings.network, dict(settings.arguments))
    rates = dict(settings.full.rates)
    return Whole(component_of, rates, settings.dtype, layout=lambda: ModelLayout({}, {}))


def let_go(weight: Tensor) -> None:
    """As an update in the backward pass does with a gradient, or one that leaves for RAM."""
    weight.grad = None


def make_inputs(settings: AnimaStep, device: torch.device) -> tuple[Tensor, AnimaConditioning]:
    """A batch as it lies on the device: latents, and captions of one length."""
    params, batch, (qwen, t5) = settings.params, settings.batch, settings.tokens
    with device:
        latents = torch.zeros(batch, params.channels, *settings.size)
        hidden = torch.zeros(batch, qwen, params.llm_adapter.source_dim).to(settings.dtype)
        ids = torch.zeros(batch, qwen, dtype=torch.long)
        return latents, AnimaConditioning(
            qwen_hidden=ids if settings.text_encoder else hidden,
            qwen_mask=torch.ones(batch, qwen, dtype=torch.long),
            t5_ids=torch.zeros(batch, t5, dtype=torch.long),
            t5_mask=torch.ones(batch, t5, dtype=torch.long),
        )


def loss_of(
    model: Anima, settings: AnimaStep, latents: Tensor,
    conditioning: AnimaConditioning | AnimaContext,
) -> Tensor:  # fmt: skip
    """As the trainer makes it of a micro-batch, with unweighted samples."""
    noisy = make_noising(FlowOptions()).draw(latents, range(len(latents)))
    return loss_on(noisy, model, settings, conditioning)


def loss_on(
    noisy: NoisyLatents, model: Anima, settings: AnimaStep,
    conditioning: AnimaConditioning | AnimaContext,
) -> Tensor:  # fmt: skip
    """The same where everything is drawn already, as the trainer does it beside the step before."""
    prediction = predict_velocity(model, noisy, conditioning)
    return losses.sample_losses(prediction, noisy.velocity, noisy.sigma, settings.loss).mean()
