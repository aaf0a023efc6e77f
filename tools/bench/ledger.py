"""Count a true-size training step of Anima: bytes and kernels, without weights and without a GPU.

python -m tools.bench.ledger [--modes none checkpoint] [--adapters lora lora+norms+text lokr_full] ...

One row for every combination of what is given. The project's own model, adapters, loss and optimizer
run on tensors without data; norms and attention keep what CUDA's kernels keep. Not counted: CUDA's
context and workspaces, fragmentation, and the kernels of the update.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from library.anima_backend.modelling.params import PUBLISHED
from library.anima_doctor.anima_step import MODES, AnimaStep, count, make_step
from library.device_utils import precision_dtype
from library.errors import ConfigError, Problem
from library.memory.compiled_count import shared_graphs
from library.memory.step_count import StepCount, count_step
from library.settings.flags.network import NetworkOptions
from library.settings.flags.optimizer import OptimizerOptions
from library.system.program import run_main
from networks.arguments import parse_network_args
from tools.bench.measuring import edge, machine, whole_number
from tools.bench.owners import PeakLedger, lines_of
from tools.bench.ways import HELP, name_of, way_of

KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "lora": ("networks.lora_anima", {}),
    "loha": ("networks.loha_anima", {}),
    "oft": ("networks.oft_anima", {}),
    "boft": ("networks.oft_anima", {"boft": "true"}),
    "lokr": ("networks.lokr_anima", {"lokr_factor": "8"}),
    "lokr_full": ("networks.lokr_anima", {"lokr_factor": "8", "lokr_full_matrix": "true"}),
    "lokr_full16": ("networks.lokr_anima", {"lokr_factor": "16", "lokr_full_matrix": "true"}),
}
EXTRAS = {"norms": "train_norm", "text": "train_llm_adapter"}
GIB, MIB = 2**30, 2**20
NOT_SHOWN = {"activations", "weights", "adapters", "gradients", "states", "block MiB moved"}
"""Figures for the file only, so that a row fits a wide screen."""


@dataclass(frozen=True)
class Row:
    """One counted step. first: the same with one block, so that the others tell what a block adds."""

    adapter: str
    step: AnimaStep
    whole: StepCount
    first: StepCount

    def per_block(self, whole: float, first: float) -> float:
        others = self.step.params.num_blocks - 1
        return (whole - first) / others if others else whole

    def kernels(self, kind: str) -> float:
        """Launched for each block."""
        first, whole = self.first.kernels.launched, self.whole.kernels.launched
        return self.per_block(whole[kind], first[kind])

    @property
    def unit(self) -> int:
        """Two bytes for each token and channel: to compare blocks of all sizes."""
        step = self.step
        tokens = step.batch * step.size[0] * step.size[1] // step.params.patch**2
        return 2 * tokens * step.params.model_dim

    def figures(self) -> dict[str, float]:
        """By name: GiB of the step; of a block what is kept and moved beside GEMMs, in units and MiB."""
        whole, first = self.whole, self.first
        gib = {
            "peak": whole.peak, "kept": whole.kept, "activations": whole.activations,
            "weights": whole.weights, "adapters": whole.adapters, "gradients": whole.gradients,
            "states": whole.states, "RAM": whole.in_host, "link": whole.kernels.linked,
        }  # fmt: skip
        kept = self.per_block(whole.kept, first.kept) / self.unit
        named = {name: round(size / GIB, 3) for name, size in gib.items()}
        if self.step.memory.precision.compile:
            return {**named, "block kept": round(kept, 1)}
        moved = self.per_block(whole.kernels.moved, first.kernels.moved)
        kinds = {kind: self.kernels(kind) for kind in ("glue", "gemm", "attention")}
        blocks = {
            "kept": kept,
            "moved": moved / self.unit,
            "MiB moved": moved / MIB,
            "kernels": sum(kinds.values()),
            **kinds,
        }
        return {
            **named,
            **{f"block {name}": round(number, 1) for name, number in blocks.items()},
            "kernels": sum(whole.kernels.launched.values()),
        }

    def settings(self) -> dict[str, str | int]:
        step = self.step
        return {
            "adapter": self.adapter,
            "rank": step.network.network_dim or 0,
            "mode": name_of(step.memory),
            "pixels": 8 * step.size[0],
            "batch": step.batch,
            "optimizer": step.optimizer.optimizer_type,
            "dtype": str(step.dtype).removeprefix("torch."),
        }


def count_row(adapter: str, step: AnimaStep) -> Row:
    first = replace(step, params=replace(step.params, num_blocks=1))
    return Row(adapter, step, count(step), count(first))


def network_of(
    adapter: str, rank: int, more: Mapping[str, str]
) -> tuple[NetworkOptions, tuple[tuple[str, str], ...]]:
    """Flags and arguments of an adapter by its name here; more: arguments that win."""
    kind, *extras = adapter.split("+")
    if kind not in KINDS or not set(extras) <= set(EXTRAS):
        message = f"expected one of {', '.join(KINDS)}, and after it at most +norms and +text."
        raise ConfigError([Problem(message, adapter, "--adapters")])
    module, arguments = KINDS[kind]
    trains = {flag: str(name in extras).lower() for name, flag in EXTRAS.items()}
    options = NetworkOptions(network_module=module, network_dim=rank, network_alpha=rank)
    return options, tuple({**arguments, **trains, **more}.items())


def steps(options: argparse.Namespace) -> Iterator[tuple[str, AnimaStep]]:
    """Every combination of the options, with the adapter's name."""
    more = parse_network_args(options.network_args)
    for adapter, rank, pixels, batch, optimizer, precision, mode in product(
        options.adapters, options.ranks, options.pixels, options.batches, options.optimizers,
        options.precisions, options.modes,
    ):  # fmt: skip
        network, arguments = network_of(adapter, rank, more)
        yield (
            adapter,
            AnimaStep(
                params=replace(PUBLISHED, num_blocks=options.blocks),
                network=network,
                arguments=arguments,
                optimizer=OptimizerOptions(optimizer_type=optimizer, learning_rate=1.0),
                dtype=precision_dtype(precision),
                size=(pixels // 8, pixels // 8),
                batch=batch,
                tokens=(options.caption, options.caption),
                memory=way_of(mode),
                fused=not options.no_fused_kernels,
            ),
        )


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of aligned columns; sizes in GiB."""
    cells = [{**row.settings(), **row.figures()} for row in rows]
    names = [name for name in max(cells, key=len) if name not in NOT_SHOWN]
    lines = [names, *([str(cell.get(name, "-")) for name in names] for cell in cells)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return ["  ".join(text.rjust(w) for text, w in zip(line, widths)) for line in lines]


def owners_at_peak(settings: AnimaStep, most: int) -> Iterator[str]:
    """Lines: what is there at the peak beside the optimizer's states."""
    made: list[PeakLedger] = []

    def make(device: torch.device, granule: int) -> PeakLedger:
        made.append(PeakLedger(device, granule))
        return made[-1]

    count_step(make_step(settings, torch.device("meta")), make_ledger=make)
    yield from lines_of(made[0], most)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--modes", nargs="+", default=list(MODES), help=HELP)
    shown = f"{', '.join(KINDS)}; then what else trains: +norms, +text (the LLM adapter)"
    add("--adapters", nargs="+", default=["lora"], help=shown)
    add("--network_args", nargs="*", help="more arguments of the adapters: key=value")
    add("--ranks", nargs="+", type=whole_number, default=[16])
    add("--pixels", nargs="+", type=edge, default=[1024], help="edges of square pictures")
    add("--batches", nargs="+", type=whole_number, default=[1])
    add("--optimizers", nargs="+", default=["AdamW"])
    add("--precisions", nargs="+", choices=("bf16", "fp16", "no"), default=["bf16"])
    add("--caption", type=whole_number, default=160, help="tokens of a caption")
    add("--no_fused_kernels", action="store_true", help="torch's own between the products")
    add("--blocks", type=whole_number, default=PUBLISHED.num_blocks, help="of the DiT")
    shown = "tell so many kinds of what is on the device at each peak, and what made them"
    add("--owners", type=int, default=0, metavar="N", help=shown)
    add("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return parser


def main() -> None:
    options = make_parser().parse_args()
    with shared_graphs():
        rows = [count_row(adapter, step) for adapter, step in steps(options)]
    where = machine(torch.device("cpu"))
    print(f"{where}; torch {torch.__version__}; GiB, and of each block units of 2 bytes x tokens x channels")
    for line in table(rows):
        print(line)
    for row in rows if options.owners else ():
        print("\n" + ", ".join(f"{name} {value}" for name, value in row.settings().items()))
        print(*owners_at_peak(row.step, options.owners), sep="\n")
    if options.json:
        counted = [{**row.settings(), **row.figures()} for row in rows]
        text = json.dumps({"machine": where, "torch": torch.__version__, "rows": counted}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
