"""Time what a save of adapters at true size takes, and what its comparison with them costs.

python -m tools.bench.saving [--adapters lora+norms+text lokr_full] [--rank 32] [--json saving.json]

The base is on the meta device, adapters are random. `make`: of the tensors, singular values included;
`write`: of the file; `check`: reading it again and comparing. `2 % of` is the time between two saves of
which the check is 2 %. On one thread the CPU's time counts, so that waiting for the disk does not.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from library.anima_backend.modelling.dit import Anima
from library.saving.exporting import Exporter
from library.saving.form import Form
from library.settings.flags.save import SaveOptions
from library.system.program import run_main
from networks.loading import load_network_module, make_network
from networks.network import AdapterNetwork
from tools.bench.ledger import PUBLISHED, network_of
from tools.bench.measuring import (
    Figures,
    clock_of_work,
    make_parser,
    report,
    seconds_of,
    settle,
    whole_number,
)

SHARE = 0.02
RUN_METADATA = {"ss_network_dim": "32"}


def trained(adapter: str, options: argparse.Namespace) -> AdapterNetwork:
    """Adapters as after training: no factor is zero."""
    with torch.device("meta"):
        model = Anima(replace(PUBLISHED, num_blocks=options.blocks))
    chosen, arguments = network_of(adapter, options.rank, {})
    assert chosen.network_module
    module = load_network_module(chosen.network_module)
    network = make_network(module, chosen, dict(arguments), model)
    with torch.no_grad():
        for factor in network.get_trainable_params():
            factor.add_(1e-3 * torch.randn_like(factor))
    for placement in network.placements:
        if placement.is_norm:  # what a save says of norms looks at their weights
            size = placement.base.get_parameter("weight").shape
            placement.base.register_parameter("weight", nn.Parameter(torch.ones(size)))
    return network


def timed(form: Form, file: Path, options: argparse.Namespace) -> Figures:
    """The medians of a form's parts, in seconds."""
    parts = {
        "make s": form.prepare,
        "write s": lambda: form.write(file, RUN_METADATA),
        "check s": lambda: form.wrong_with(file),
    }
    clock, times = clock_of_work(options.device), dict[str, float]()
    for name, work in parts.items():
        rounds = [seconds_of(work, options.device, clock) for _ in range(options.rounds)]
        times[name] = round(statistics.median(rounds), 3)
    assert not form.wrong_with(file), "a file that was not spoilt is right"
    size = round(file.stat().st_size / 2**20, 1)
    return {"MiB": size, **times, "2 % of s": round(times["check s"] / SHARE, 1)}


def measure(adapter: str, options: argparse.Namespace, folder: Path) -> list[Figures]:
    network = trained(adapter, options)
    saving = SaveOptions(
        output_dir=str(folder), save_precision="bf16", export_format="both",
        export_rank=options.export_rank,
    )  # fmt: skip
    exporter, rows = Exporter(saving, network), list[Figures]()
    for name, form in zip(("comfy", "universal"), exporter.forms):
        figures = timed(form, folder / f"{name}.safetensors", options)
        rows.append({"adapter": adapter, "form": name, **figures})
    return rows


def main() -> None:
    assert __doc__
    parser = make_parser(__doc__, rounds=3)
    add = parser.add_argument
    add("--adapters", nargs="+", default=["lora+norms+text", "lokr_full+norms+text"])
    add("--rank", type=whole_number, default=32)
    add("--export_rank", type=whole_number, help="of the universal LoRA in place of a LoKr")
    add("--blocks", type=whole_number, default=PUBLISHED.num_blocks)
    options = settle(parser)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in options.adapters for row in measure(name, options, Path(folder))]
    report(options, rows, f"rank {options.rank}, {options.blocks} blocks, bf16")


if __name__ == "__main__":
    run_main(main)
