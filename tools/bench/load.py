"""Time the start: loading model files of true layout with random weights, and hashing them.

python -m tools.bench.load [--device cuda] [--share 0.25] [--json load.json]

Files are written into a temporary folder first, with this share of the true models' blocks, and come
from the system's memory. The first arm reads the file's bytes. A mapped file is read when its weights
are first used, so that on the CPU only its header counts.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from library.anima_runtime.model_loading import load_qwen, load_transformer, load_vae
from library.errors import ConfigError
from library.system.program import run_main
from tools import _demo_layouts as layouts
from tools._demo_weights import write_model
from tools.bench.measuring import Figures, Work, compare, make_parser, report, settle, time_arms
from tools.make_demo import SCALES, model_shapes

CHUNK = 1 << 24
LOADERS: dict[str, Callable[..., object]] = {
    "dit": partial(load_transformer, dtype=torch.bfloat16),
    "qwen": partial(load_qwen, dtype=torch.bfloat16),
    "vae": partial(load_vae, dtype=torch.float32),
}


def shapes_of(share: float, tiny: bool) -> dict[str, layouts.Shapes]:
    """Names and shapes of each model's tensors, with a share of the true models' blocks."""
    if tiny:
        return model_shapes(False, {"t5": 64, "qwen": 64})
    if not 0 < share <= 1:
        raise ConfigError(f"--share {share}: expected more than 0 and at most 1.")

    def some(count: int) -> int:
        return max(1, round(share * count))

    dit, qwen = layouts.TRUE_DIT, layouts.TRUE_QWEN
    dit = replace(dit, blocks=some(dit.blocks), adapter_blocks=some(dit.adapter_blocks))
    return {
        "dit": layouts.dit_shapes(dit),
        "qwen": layouts.qwen_shapes(replace(qwen, layers=some(qwen.layers))),
        "vae": layouts.vae_shapes(layouts.TRUE_VAE_WIDTH),
    }


def read(file: Path) -> None:
    with file.open("rb") as stream:
        while stream.read(CHUNK):
            pass


def sha256(file: Path) -> None:
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(CHUNK):
            digest.update(chunk)


def measure(root: Path, options: argparse.Namespace) -> list[Figures]:
    rows: list[Figures] = []
    for kind, shapes in shapes_of(options.share, options.tiny).items():
        file = root / f"{kind}.safetensors"
        for _ in write_model(file, shapes, SCALES[kind], 0):
            pass
        load = partial(LOADERS[kind], file, device=options.device)
        arms: dict[str, Work] = {
            "bytes read": partial(read, file),
            "loaded, mapped": load,
            "loaded, read": partial(load, disable_mmap=True),
            "sha256": partial(sha256, file),
        }
        size = f"{file.stat().st_size / 2**30:.3f}"
        times = time_arms(arms, options.rounds, options.device)
        rows += [{"file": kind, "GiB": size, **row} for row in compare(times)]
        file.unlink()
    return rows


def main() -> None:
    assert __doc__
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--share", type=float, default=0.1, help="of the blocks of the true models")
    parser.add_argument("--tiny", action="store_true", help="the demo's sizes, to try the command")
    options = settle(parser)
    with tempfile.TemporaryDirectory() as folder:
        report(options, measure(Path(folder), options), f"share of the blocks {options.share}")


if __name__ == "__main__":
    run_main(main)
