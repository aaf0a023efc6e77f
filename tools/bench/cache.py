"""Time what caches cost: one picture's latents and text, written and read, against .npz files.

python -m tools.bench.cache [--json cache.json]

True sizes of 1024 x 1024 pixels; files lie in a temporary folder and come from the system's memory. The
first arm of each is sd-scripts' pair of .npz files.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from library.anima_runtime import text_rows
from library.anima_runtime.model_settings import DEFAULTS
from library.caching.cache_files import CacheFile
from library.data.data_types import TextOutputs
from library.system.program import run_main
from tools.bench.bench_data import RandomText, layout_of, save_as_sd_scripts
from tools.bench.measuring import (
    Figures,
    Work,
    add_precision,
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

if TYPE_CHECKING:
    from transformers import Qwen3Model

QWEN_SIZES = {
    "vocab_size": 1000,  # looking up takes no longer in a larger table
    "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 128,
}  # fmt: skip


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


def encode_alone(encoder: Qwen3Model, captions: Sequence[Sequence[int]]) -> None:
    for ids in captions:
        text_rows.hidden_states(encoder, [ids])


def measure_captions(options: argparse.Namespace) -> list[Figures]:
    """Of each length: captions one at a time, and as many of them at once."""
    from transformers import Qwen3Config, Qwen3Model

    settings = {**QWEN_SIZES, **DEFAULTS, "num_hidden_layers": options.layers}
    config = Qwen3Config.from_dict(settings)
    encoder = Qwen3Model(config).eval().requires_grad_(False)
    encoder = encoder.to(options.device, options.dtype)
    rows: list[Figures] = []
    for length in options.captions:
        captions = torch.randint(0, config.vocab_size, (options.together, length)).tolist()
        arms: dict[str, Work] = {
            "one at a time": partial(encode_alone, encoder, captions),
            f"{options.together} at once": partial(text_rows.hidden_states, encoder, captions),
        }
        alone = text_rows.hidden_states(encoder, captions[:1])[0]
        apart = relative_distance(text_rows.hidden_states(encoder, captions)[0], alone)
        even = text_rows.is_even(encoder, length, options.together)
        seen = {"apart": f"{apart:.0e}", "places": "alike" if even else "differ"}
        times = time_arms(arms, options.rounds, options.device, clock_of_work(options.device))
        each = {name: [all_ / options.together for all_ in arm] for name, arm in times.items()}
        first, second = compare(each)
        blank = dict.fromkeys(seen, "-")
        rows += [{"tokens": length, **first, **blank}, {"tokens": length, **second, **seen}]
    return rows


def main() -> None:
    assert __doc__
    parser = make_parser(__doc__, rounds=41)
    parser.add_argument("--pixels", type=edge, default=1024, help="edge of a square picture")
    parser.add_argument("--captions", type=whole_number, nargs="+", metavar="TOKENS", help="encode such captions instead")
    parser.add_argument("--together", type=whole_number, default=8, help="of them at once")
    parser.add_argument("--layers", type=whole_number, default=28, help="of the text encoder")
    add_precision(parser)
    options = settle(parser)
    if options.captions:
        note = f"{options.layers} layers, {options.precision}"
        return report(options, measure_captions(options), note)
    with tempfile.TemporaryDirectory() as folder:
        report(options, measure(Path(folder), options), f"{options.pixels} px")


if __name__ == "__main__":
    run_main(main)
