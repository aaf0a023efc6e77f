"""One step of Anima, at any size and with any settings, to be counted without weights or data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from torch import Tensor

from library.anima_backend.modelling.dit import Anima
from library.anima_backend.modelling.params import DiTParams
from library.memory.step_count import Step, StepCount, count_step
from library.settings.run_config import FlowOptions, LossOptions, NetworkOptions, OptimizerOptions
from library.strategy_anima import AnimaConditioning, predict_velocity
from library.train_util import make_noising
from library.training import losses
from networks.loading import load_network_module, make_network, quiet


def swap_all(model: Anima) -> None:
    model.enable_block_swap(len(model.blocks), model.device)


def checkpoint_and_swap_all(model: Anima) -> None:
    model.enable_gradient_checkpointing()
    swap_all(model)


def quantise(model: Anima, form: str) -> None:
    model.quantise(form, model.device, llm_adapter=True)


def quantise_and_checkpoint(model: Anima, form: str) -> None:
    quantise(model, form)
    model.enable_gradient_checkpointing()


MODES: dict[str, Callable[[Anima], None]] = {
    "none": lambda model: None,
    "cheap": lambda model: model.enable_gradient_checkpointing(mode="cheap"),
    "every_2nd": lambda model: model.enable_gradient_checkpointing(every=2),
    "every_4th": lambda model: model.enable_gradient_checkpointing(every=4),
    "checkpoint": lambda model: model.enable_gradient_checkpointing(),
    "offload": lambda model: model.enable_gradient_checkpointing(cpu_offload=True),
    "swap_all": swap_all,
    "checkpoint_swap_all": checkpoint_and_swap_all,
    "fp8": partial(quantise, form="fp8"),
    "fp8_checkpoint": partial(quantise_and_checkpoint, form="fp8"),
    "int8_checkpoint": partial(quantise_and_checkpoint, form="int8"),
}
"""How memory is saved: the mode's name and what is asked of the model."""


@dataclass(frozen=True, kw_only=True)
class AnimaStep:
    """The settings that decide what a step costs.

    size:      (H, W) of the latents; tokens: (Qwen's, T5's) of a caption
    arguments: of the network module, by name
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
    mode: str = "none"
    accumulates: bool = False


@cache
def count(step: AnimaStep) -> StepCount:
    """What the step costs on a GPU; counted once in a process."""
    return count_step(make_step(step, torch.device("meta")))


def make_step(settings: AnimaStep, device: torch.device) -> Step:
    """The step with random weights on `device`, or with none on the meta device."""
    with device, quiet():
        model = Anima(settings.params).to(settings.dtype).requires_grad_(False)
        MODES[settings.mode](model)
        assert settings.network.network_module, "a step needs adapters"
        module = load_network_module(settings.network.network_module)
        network = make_network(module, settings.network, dict(settings.arguments), model)
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    network.prepare_grad_etc(None, model)
    if settings.trained_dtype != torch.float32:
        with quiet():
            network.cast_trainables(settings.trained_dtype)
    inputs = make_inputs(settings, device)
    loss = partial(loss_of, model, settings, *inputs)
    return Step(device, model, network, loss, settings.optimizer, model.swap, settings.accumulates)


def make_inputs(settings: AnimaStep, device: torch.device) -> tuple[Tensor, AnimaConditioning]:
    """A batch as it lies on the device: latents, and captions of one length."""
    params, batch, (qwen, t5) = settings.params, settings.batch, settings.tokens
    with device:
        latents = torch.zeros(batch, params.channels, *settings.size)
        return latents, AnimaConditioning(
            qwen_hidden=torch.zeros(batch, qwen, params.llm_adapter.source_dim).to(settings.dtype),
            qwen_mask=torch.ones(batch, qwen, dtype=torch.long),
            t5_ids=torch.zeros(batch, t5, dtype=torch.long),
            t5_mask=torch.ones(batch, t5, dtype=torch.long),
        )


def loss_of(
    model: Anima, settings: AnimaStep, latents: Tensor, conditioning: AnimaConditioning
) -> Tensor:
    """As the trainer makes it of a micro-batch, with unweighted samples."""
    noisy = make_noising(FlowOptions()).draw(latents, range(len(latents)))
    prediction = predict_velocity(model, noisy, conditioning)
    elements = losses.elementwise_loss(prediction, noisy.velocity, noisy.sigma, settings.loss)
    return losses.reduce_to_samples(elements).mean()
