"""Random weights for the three models: well-conditioned, so that training on them means something.

Signals keep about unit scale through every layer, gates and modulations are open a little, and the
first prediction has about the size of the target. A file is written tensor by tensor, so that a
model of true size needs little memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from library.utils import position_seed

CHUNK = 1 << 22  # elements made at a time: 16 MiB of float32

# mean and standard deviation of the VAE's 16 latent channels, which its users normalize by
LATENTS_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENTS_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)

Scale = Callable[[str, tuple[int, ...]], "float | None"]
"""Name and shape to the standard deviation of a tensor; None for a norm weight of ones."""


def dit_scale(name: str, shape: tuple[int, ...]) -> float | None:
    """Linears keep the scale of their input; modulations give shift, scale and gate about 0.3."""
    if "norm" in name:
        return None
    if name.endswith("bias"):
        return 0.02
    if name.endswith("embed.weight"):
        return 1.0
    gain = 1.0
    if re.search(r"adaln_modulation.*\.2\.|t_embedder\.1\.linear_2|final_layer\.linear", name):
        gain = 0.5
    elif re.search(r"^net\.blocks\..*cross_attn\.v_proj", name):
        gain = 4.0  # a caption's few rows are averaged with hundreds of zero rows
    return gain * shape[1] ** -0.5


def qwen_scale(name: str, shape: tuple[int, ...]) -> float | None:
    """Linears keep the scale of their input."""
    if "norm" in name:
        return None
    return 1.0 if "embed_tokens" in name else shape[1] ** -0.5


def vae_scale(name: str, shape: tuple[int, ...]) -> float | None:
    """As for the DiT; only the last temporal tap meets a single frame, the others see zeros."""
    if name.endswith("gamma"):
        return None
    if name.endswith("bias"):
        return 0.02
    fan_in = shape[1] * prod(shape[-2:])
    after_activation = re.search(r"residual\.[26]\.|head\.2\.", name)
    return (1.7 if after_activation else 1.0) * fan_in**-0.5


def write_model(
    path: Path, shapes: dict[str, tuple[int, ...]], scale: Scale, seed: int
) -> Iterator[int]:
    """Write a safetensors file in bfloat16; yields the number of bytes written so far."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        written = 0
        for name, shape in shapes.items():
            for chunk in _chunks(name, shape, scale(name, shape), seed):
                written += file.write(chunk.to(torch.bfloat16).view(torch.uint8).numpy().data)
                yield written


def _chunks(name: str, shape: tuple[int, ...], std: float | None, seed: int) -> Iterator[Tensor]:
    """The values of one tensor, flat, a piece at a time; a function of (seed, name) alone."""
    if name in ("conv1.weight", "conv1.bias"):
        yield _to_latent_scale(name, shape, seed)
        return
    generator = torch.Generator().manual_seed(position_seed(seed, name))
    for start in range(0, prod(shape), CHUNK):
        count = min(CHUNK, prod(shape) - start)
        if std is None:
            yield torch.ones(count)
        else:
            yield torch.randn(count, generator=generator).mul_(std)


def _to_latent_scale(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The VAE's last encoder layer: its 16 means get the statistics that are divided out later."""
    if name.endswith("bias"):
        return torch.tensor(LATENTS_MEAN + (0.0,) * 16)
    generator = torch.Generator().manual_seed(position_seed(seed, name))
    weight = torch.randn(shape, generator=generator) * shape[1] ** -0.5
    weight[:16] *= torch.tensor(LATENTS_STD).view(16, 1, 1, 1, 1)
    return weight.flatten()
