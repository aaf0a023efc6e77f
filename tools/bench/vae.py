"""Time the VAE, encoding and decoding one picture, against diffusers' own with 3-D convolutions.

python -m tools.bench.vae [--device cuda --pixels 1024] [--json vae.json]

Random weights at true size. The first arm is diffusers in float32; `apart` is how far the result of an
arm is from that one's, relative to its size.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from library.anima_backend.modelling.vae import QwenImageVAE
from library.system.program import run_main
from tools.bench.measuring import (
    Figures,
    clock_of_work,
    compare,
    edge,
    make_parser,
    relative_distance,
    report,
    settle,
    time_arms,
    whole_number,
)
from tools.bench.peers import quiet_diffusers

TRUE_WIDTH = 96
Pass = Callable[[Tensor], Tensor]


def encode_as_diffusers(network: Any, dtype: torch.dtype, pixels: Tensor) -> Tensor:
    latents: Tensor = network.encode(pixels.to(dtype)[:, :, None]).latent_dist.mode()
    return latents[:, :, 0].float()


def decode_as_diffusers(network: Any, dtype: torch.dtype, latents: Tensor) -> Tensor:
    pixels: Tensor = network.decode(latents.to(dtype)[:, :, None]).sample
    return pixels[:, :, 0].float()


def encode(vae: QwenImageVAE, pixels: Tensor) -> Tensor:
    """Not normalized, as diffusers gives it."""
    latents = vae.encode(pixels)
    return latents * vae.std.to(latents) + vae.mean.to(latents)


def decode(vae: QwenImageVAE, latents: Tensor) -> Tensor:
    """Clamped, as diffusers gives it."""
    normalized = (latents - vae.mean.to(latents)) / vae.std.to(latents)
    return vae.decode(normalized).clamp(-1, 1)


def passes(width: int, device: torch.device) -> tuple[dict[str, Pass], dict[str, Pass]]:
    """Encoding and decoding of every arm, all with the same weights."""
    from diffusers.models import AutoencoderKLQwenImage

    quiet_diffusers()
    encoders: dict[str, Pass] = {}
    decoders: dict[str, Pass] = {}
    whole = AutoencoderKLQwenImage(base_dim=width).eval()
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        network = deepcopy(whole).to(device, dtype)
        encoders[f"diffusers {name}"] = partial(encode_as_diffusers, network, dtype)
        decoders[f"diffusers {name}"] = partial(decode_as_diffusers, network, dtype)
        ours = QwenImageVAE(deepcopy(whole).to(device, dtype))
        encoders[f"this project {name}"] = partial(encode, ours)
        decoders[f"this project {name}"] = partial(decode, ours)
    return encoders, decoders


@torch.no_grad()
def measure(options: argparse.Namespace) -> list[Figures]:
    encoders, decoders = passes(options.width, options.device)
    side = options.pixels
    pixels = torch.rand(1, 3, side, side, device=options.device) * 2 - 1
    latents = torch.randn(1, 16, side // 8, side // 8, device=options.device)
    rows: list[Figures] = []
    for what, arms, given in (("encode", encoders, pixels), ("decode", decoders, latents)):
        found = {name: each(given) for name, each in arms.items()}
        expected = next(iter(found.values()))
        works = {name: partial(each, given) for name, each in arms.items()}
        for row in compare(
            time_arms(works, options.rounds, options.device, clock_of_work(options.device))
        ):
            apart = relative_distance(found[str(row["arm"])], expected)
            rows.append({"pass": what, **row, "apart": f"{apart:.1e}"})
    return rows


def main() -> None:
    assert __doc__
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--pixels", type=edge, default=256, help="edge of a square picture")
    parser.add_argument("--width", type=whole_number, default=TRUE_WIDTH, help="of the VAE's first level")
    options = settle(parser)
    report(options, measure(options), f"{options.pixels} px")


if __name__ == "__main__":
    run_main(main)
