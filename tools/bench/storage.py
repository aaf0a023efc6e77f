"""How far storage in 8 or 4 bits moves a step's velocity and gradients, on random weights of true widths.

python -m tools.bench.storage [--blocks 4] [--pixels 256] [--precision no] [--json storage.json]

Each row is one step of LoRA in --precision, its base stored as named, against the same step in float32
with the base as a bf16 file has it: |found - expected| / |expected|, of the velocity and of all
gradients together. `stored` is the same of one frozen matrix. Random matrices keep their input's size.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from library.anima_backend.modelling.dit import Anima
from library.anima_backend.modelling.params import PUBLISHED
from library.memory.modes import store_weights
from library.memory.quantised import kind_of
from library.settings.flags.precision import PrecisionOptions
from library.system.program import run_main
from networks import lora_anima
from networks.loading import quiet
from tools.bench.measuring import (
    Figures,
    add_precision,
    edge,
    make_parser,
    relative_distance,
    report,
    settle,
    whole_number,
)

STORED = {
    "as it is": PrecisionOptions(),
    "fp8_base_unet": PrecisionOptions(fp8_base_unet=True),
    "fp8_base": PrecisionOptions(fp8_base=True),
    "int8_base": PrecisionOptions(int8_base=True),
    "nf4_base": PrecisionOptions(nf4_base=True),
    "int8_compute": PrecisionOptions(int8_base=True, int8_compute="always"),
}
TOKENS = 150
FACTOR_STD = 0.02


class Found(NamedTuple):
    """Of one step, in float32 on the CPU. gradients: of all factors, in one row"""

    velocity: Tensor
    gradients: Tensor


def step(options: argparse.Namespace, precision: PrecisionOptions, dtype: torch.dtype) -> Found:
    """The same weights, adapters and batch whatever the storage and the dtype."""
    params = replace(PUBLISHED, num_blocks=options.blocks)
    torch.manual_seed(0)
    with options.device:
        model = Anima(params).requires_grad_(False)
        fill(model)
        model.to(torch.bfloat16).to(dtype)
        store_weights(precision, model, options.device)
        model.enable_gradient_checkpointing()
        with quiet():
            network = lora_anima.create_network(1.0, options.rank, options.rank, None, None, model)
        network.apply_to(None, model)
        trained = network.get_trainable_params()
        torch.manual_seed(1)
        for parameter in trained:
            nn.init.normal_(parameter, std=FACTOR_STD)
        side = options.pixels // 8
        clean, noise = torch.randn(2, 1, params.channels, side, side)
        hidden = torch.randn(1, TOKENS, params.llm_adapter.source_dim)
        ids = torch.randint(0, params.llm_adapter.vocab, (1, TOKENS))
        velocity = model((clean + noise) / 2, torch.tensor([0.5]), hidden, ids).float()
        (velocity - (noise - clean)).square().mean().backward()
    gradients = [parameter.grad.flatten() for parameter in trained if parameter.grad is not None]
    return Found(velocity.detach().cpu(), torch.cat(gradients).float().cpu())


def fill(model: nn.Module) -> None:
    """Matrices that keep their input's size, so that no part of the model is without effect."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)


def error_of(form: str | None) -> float:
    """Of one random matrix, as it is stored."""
    if form is None:
        return 0.0
    torch.manual_seed(2)
    weight = torch.randn(PUBLISHED.model_dim, PUBLISHED.model_dim)
    return relative_distance(kind_of(form).of(weight, form).dense(torch.float32), weight)


def measure(options: argparse.Namespace) -> list[Figures]:
    expected = step(options, PrecisionOptions(), torch.float32)
    rows: list[Figures] = []
    for name, precision in STORED.items():
        found = step(options, precision, options.dtype)
        rows.append(
            {
                "storage": name,
                "stored": f"{error_of(precision.stored_form):.4f}",
                "velocity": f"{relative_distance(found.velocity, expected.velocity):.4f}",
                "gradients": f"{relative_distance(found.gradients, expected.gradients):.4f}",
            }
        )
    return rows


def main() -> None:
    assert __doc__
    parser = make_parser(__doc__, rounds=1)
    add_precision(parser)
    add = parser.add_argument
    add("--blocks", type=whole_number, default=4, help=f"of the DiT; the true model has {PUBLISHED.num_blocks}")
    add("--pixels", type=edge, default=256, help="edge of a square picture")
    add("--rank", type=whole_number, default=16)
    options = settle(parser)
    note = f"{options.blocks} blocks, {options.pixels} px, LoRA r{options.rank}, {options.precision}"
    report(options, measure(options), note)


if __name__ == "__main__":
    run_main(main)
