"""Time what caches cost: one picture's latents and text, written and read, against .npz files.

python -m tools.bench.cache [--json cache.json]

True sizes of 1024 x 1024 pixels; files lie in a temporary folder and come from the system's memory. The
first arm of each is sd-scripts' pair of .npz files.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from library.caching.cache_files import CacheFile
from library.data.data_types import TextOutputs
from library.system.program import run_main
from tools.bench.bench_data import RandomText, layout_of, save_as_sd_scripts
from tools.bench.measuring import (
    Figures,
    Work,
    compare,
    edge,
    make_parser,
    report,
    settle,
    time_arms,
)


def read_npz(base: Path) -> None:
    for kind in ("latents", "text"):
        with np.load(f"{base}.{kind}.npz", allow_pickle=False) as stored:
            for name in stored.files:
                torch.from_numpy(stored[name])


def write_ours(pair: dict[str, CacheFile], latents: Tensor, text: TextOutputs) -> None:
    pair["latents"].write({"latents": latents})
    pair["text"].write(text)


def read_ours(pair: dict[str, CacheFile], check: bool) -> None:
    for file in pair.values():
        file.read(check=check)


def read_headers(pair: dict[str, CacheFile]) -> None:
    for file in pair.values():
        file.status()


def measure(root: Path, options: argparse.Namespace) -> list[Figures]:
    latents = torch.randn(16, options.pixels // 8, options.pixels // 8)
    text = RandomText().encode("")
    layouts = {"latents": layout_of({"latents": latents}), "text": layout_of(text)}
    pair = {kind: CacheFile(root / f"0.{kind}", "x", layout) for kind, layout in layouts.items()}
    writes: dict[str, Work] = {
        "npz": partial(save_as_sd_scripts, root / "0", latents, text),
        "this project": partial(write_ours, pair, latents, text),
    }
    reads: dict[str, Work] = {
        "npz": partial(read_npz, root / "0"),
        "this project": partial(read_ours, pair, False),
        "first time, checksum compared": partial(read_ours, pair, True),
        "headers at the start": partial(read_headers, pair),
    }
    rows: list[Figures] = []
    for what, arms in (("write", writes), ("read", reads)):
        times = time_arms(arms, options.rounds, options.device)
        rows += [{"what": what, **row} for row in compare(times)]
    return rows


def main() -> None:
    assert __doc__
    parser = make_parser(__doc__, rounds=41)
    parser.add_argument("--pixels", type=edge, default=1024, help="edge of a square picture")
    options = settle(parser)
    with tempfile.TemporaryDirectory() as folder:
        report(options, measure(Path(folder), options), f"{options.pixels} px")


if __name__ == "__main__":
    run_main(main)
