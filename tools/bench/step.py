"""Time a training step of Anima against diffusers' transformer with adapters of peft and LyCORIS.

python -m tools.bench.step [--device cuda --blocks 28 --width 2048 --pixels 1024] [--json step.json]

A step is forward, backward, clipping and AdamW, on random weights; text is given as the DiT reads it.
The project's arms are adapters, or one of them with a memory mode: lora, lokr_full, lora:checkpoint. Their text
has 192 rows, and its zeros up to 512 are counted, as a run on a CPU does it; with lora:rows they are rows.
Others train float32 factors under autocast, as they do in scripts. The floor is what no arm of this model can
leave out: the products with frozen matrices, and attention.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from library.anima_backend.modelling.attention import attention
from library.anima_backend.modelling.attention_probe import REAL_ROWS
from library.anima_backend.modelling.dit import MIN_CONTEXT
from library.anima_backend.modelling.padded_text import attention_beside_zeros
from library.anima_backend.modelling.params import PUBLISHED, DiTParams
from library.anima_doctor.anima_step import AnimaStep, make_step
from library.errors import ConfigError
from library.settings.flags.optimizer import OptimizerOptions
from library.system.program import run_main
from tools.bench import peers
from tools.bench.ledger import network_of
from tools.bench.measuring import (
    Work,
    add_precision,
    clock_of_work,
    compare,
    edge,
    made,
    make_parser,
    report,
    settle,
    time_arms,
    whole_number,
)
from tools.bench.ways import way_of

ROWS, FLOOR = "rows", "floor"
ARMS = ["lora", "lora:rows", "lokr_full", "lokr", "lora:cheap", "lora:checkpoint", FLOOR]


@dataclass(frozen=True)
class Inputs:
    """What every arm predicts from, and what it should."""

    noisy: Tensor
    sigma: Tensor
    context: Tensor
    velocity: Tensor


def params_of(options: argparse.Namespace) -> DiTParams:
    """The true proportions at another width and depth; the text's width stays."""
    width = options.width
    if width % (2 * PUBLISHED.head_dim) and width > 2 * PUBLISHED.head_dim:
        raise ConfigError(f"--width {width}: expected a multiple of {2 * PUBLISHED.head_dim}.")
    return replace(
        PUBLISHED,
        model_dim=width,
        head_dim=min(PUBLISHED.head_dim, width // 2),
        mlp_dim=4 * width,
        num_blocks=options.blocks,
        llm_adapter=replace(PUBLISHED.llm_adapter, vocab=8, num_blocks=1),  # not run here
    )


def make_inputs(options: argparse.Namespace, params: DiTParams) -> Inputs:
    side = options.pixels // 8
    with options.device:
        noisy = torch.randn(options.batch, params.channels, side, side)
        sigma = torch.full((options.batch,), 0.5)
        context = torch.randn(options.batch, MIN_CONTEXT, params.text_dim)
    return Inputs(
        noisy.to(options.dtype), sigma, context.to(options.dtype), torch.randn_like(noisy)
    )


def step_of(
    trained: Iterable[nn.Parameter], predict: Callable[[], Tensor], velocity: Tensor
) -> Work:
    """Forward, backward, clipping and update, the same for every arm."""
    parameters = list(trained)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def work() -> None:
        (predict().float() - velocity).square().mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return work


def own(options: argparse.Namespace, params: DiTParams, inputs: Inputs, arm: str) -> Work:
    """The project's model with an adapter, and a memory mode after a colon."""
    if arm == FLOOR:
        return floor(options, params)
    adapter, _, mode = arm.partition(":")
    folds, mode = mode != ROWS, "" if mode == ROWS else mode
    network, arguments = network_of(adapter, options.rank, {})
    settings = AnimaStep(
        params=params, network=network, arguments=arguments, dtype=options.dtype,
        optimizer=OptimizerOptions(), memory=way_of(mode or "none"), folds_text=folds,
    )  # fmt: skip
    step = make_step(settings, options.device)
    trained = step.network.get_trainable_params()
    context = inputs.context
    if folds:  # with strides of its own: for those of the whole torch copies a Linear's weight
        context = context[:, :REAL_ROWS].clone(memory_format=torch.contiguous_format)
    given = (inputs.noisy, inputs.sigma)
    predict = partial(step.model, *given, context=context, whole=not folds)
    return step_of(trained, predict, inputs.velocity)


def floor(options: argparse.Namespace, params: DiTParams) -> Work:
    """Of each block the products with its matrices, forward and for gradients of inputs, and attention.

    Neither a text nor the first block's input has a gradient.
    """
    batch, width = options.batch, params.model_dim
    tokens = (options.pixels // (8 * params.patch)) ** 2
    heads = (width // params.head_dim, params.head_dim)
    random = partial(torch.randn, dtype=options.dtype, device=options.device)
    square, of_text = random(width, width), random(width, params.text_dim)
    layer1, layer2 = random(4 * width, width), random(width, 4 * width)
    x, wide = random(batch * tokens, width), random(batch * tokens, 4 * width)
    text = random(batch * REAL_ROWS, params.text_dim)
    q, k, v, q_of_text = (random(batch, tokens, *heads).requires_grad_() for _ in range(4))
    k_text, v_text = (random(batch, REAL_ROWS, *heads).requires_grad_() for _ in range(2))
    log_zeros = torch.full((), math.log(MIN_CONTEXT - REAL_ROWS), device=options.device)

    def attend() -> None:
        outputs = [
            attention(q, k, v, None, "torch"),
            attention_beside_zeros(q_of_text, k_text, v_text, log_zeros),
        ]
        torch.autograd.grad(outputs, [q, k, v, q_of_text, k_text, v_text], outputs)

    def work() -> None:
        for block in range(params.num_blocks):
            for number in range(6):  # q, k, v and output to itself; q and output to the text
                x @ square.t()
                if block or number >= 3:
                    x @ square
            for _ in range(2):
                text @ of_text.t()
            attend()
            x @ layer1.t()
            wide @ layer1
            wide @ layer2.t()
            x @ layer2

    return work


def theirs(
    options: argparse.Namespace, params: DiTParams, inputs: Inputs, package: str, kind: str
) -> Work:
    """diffusers' transformer with the adapters of another package."""
    model = peers.diffusers_transformer(params, options.dtype, options.device)
    if package == "peft":
        trained = peers.attach_peft(model, options.rank)
    else:
        more = {"factor": 8, "full_matrix": True} if kind == "lokr" else {}
        places = peers.adapted_linears(model)
        trained = peers.attach_lycoris(places, kind, options.rank, **more)
    kind_of_device, mixed = options.device.type, options.dtype != torch.float32

    def predict() -> Tensor:
        with torch.autocast(kind_of_device, dtype=options.dtype, enabled=mixed):
            return peers.diffusers_velocity(model, inputs.noisy, inputs.sigma, inputs.context)

    return step_of(trained, predict, inputs.velocity)


def main() -> None:
    assert __doc__
    parser = make_parser(__doc__, rounds=11)
    add = parser.add_argument
    add("--arms", nargs="+", default=ARMS)
    add("--no_peers", action="store_true", help="the project's own arms only")
    add("--rank", type=whole_number, default=16)
    add("--blocks", type=whole_number, default=2)
    add("--width", type=whole_number, default=1024, help="of the DiT; the true one is 2048")
    add("--pixels", type=edge, default=512, help="edge of a square picture")
    add("--batch", type=whole_number, default=1)
    add_precision(parser)
    options = settle(parser)
    params = params_of(options)
    inputs = make_inputs(options, params)
    given = (options, params, inputs)
    makers: dict[str, Callable[[], Work]] = {arm: partial(own, *given, arm) for arm in options.arms}
    if not options.no_peers:
        makers["diffusers + peft lora"] = partial(theirs, *given, "peft", "lora")
        makers["diffusers + LyCORIS lora"] = partial(theirs, *given, "LyCORIS", "lora")
        makers["diffusers + LyCORIS lokr"] = partial(theirs, *given, "LyCORIS", "lokr")
    times = time_arms(made(makers), options.rounds, options.device, clock_of_work(options.device))
    size = f"{options.blocks} blocks x {options.width}, {options.pixels} px"
    report(options, compare(times), f"{size}, rank {options.rank}, {options.precision}")


if __name__ == "__main__":
    run_main(main)
