"""Everything about a card in one command: is it right, how fast is it, what to use on it.

python -m tools.bench.gpu [--quick] [--page gpu.md] [--json gpu.json]

Under 8 minutes on a card of 8 GiB or more, 60 seconds with --quick; needs no model files. Writes a page
in Markdown and ends with a verdict. Whoever reports a problem can add the page. A part that fails is a
line with its error. --device cpu --tiny tries the command where there is no card.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from library.system.program import run_main
from tools.bench import gpu_parts, gpu_repeats
from tools.bench.gpu_parts import Plan
from tools.bench.measuring import Figures, machine, make_parser, settle, write_json

SECONDS, QUICK_SECONDS = 440, 50
"""When no further case is begun."""
PARTS: dict[str, tuple[str, Callable[[Plan], Iterator[Figures]]]] = {
    "parity": ("Reference tensors (relative distance)", gpu_parts.parity),
    "attention": ("Attention, forward and backward", gpu_parts.attention),
    "kernels": ("Fused kernels against torch's, forward and backward, bf16", gpu_parts.kernels),
    "curves": ("Loss curves of memory modes against plain training", gpu_parts.curves),
    "steps": ("Steps at true size with random weights, bf16, batch 1, AdamW", gpu_parts.steps),
    "repeats": ("Deterministic training, each memory mode twice", gpu_repeats.repeats),
}
FLAGS = {
    "none": "no memory option",
    "graphs": "--cuda_graphs",
    "compile": "--compile",
    "compile_graphs": "--compile --cuda_graphs",
    "cheap": "--recompute cheap",
    "checkpoint": "--gradient_checkpointing",
    "checkpoint_graphs": "--gradient_checkpointing --cuda_graphs",
    "checkpoint_swap_all": "--gradient_checkpointing --blocks_to_swap 28",
    "fp8_checkpoint": "--fp8_base --gradient_checkpointing",
    "nf4_checkpoint": "--nf4_base --gradient_checkpointing",
    "int8_compute": "--int8_base --int8_compute always",
}


def run_part(name: str, plan: Plan) -> list[Figures]:
    """Its rows, told as they come; an error outside every case is one more row."""
    rows: list[Figures] = []
    try:
        for row in PARTS[name][1](plan):
            rows.append(row)
            print("  ".join(f"{value}" for value in row.values()), flush=True)
    except Exception as error:  # noqa: BLE001  no case was possible; the other parts follow
        rows.append({"part": name, "result": f"failed: {type(error).__name__}: {error}"})
        print(rows[-1]["result"], flush=True)
    return rows


def markdown(rows: Sequence[Figures]) -> list[str]:
    """A table with every column that any row has; result last."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "result"))
    names.append("result")
    lines = [names, ["---"] * len(names)]
    lines += [[str(row.get(name, "")).replace("|", "/") for name in names] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def verdict(found: Mapping[str, Sequence[Figures]]) -> list[str]:
    """What is wrong here, then what to use: the fastest mode that fits, by size and adapter."""
    bad = ("failed", "TOO FAR")
    wrong = [
        f"- Wrong here: {', '.join(str(value) for value in row.values())}"
        for name, rows in found.items()
        for row in rows
        if str(row["result"]).startswith(bad) and not is_out_of_memory(name, row)
    ]
    advice = []
    best: dict[tuple[object, object], Figures] = {}
    for row in found.get("steps", ()):
        if row["result"] == "ok":
            key = row["pixels"], row["adapter"]
            best[key] = min(best.get(key, row), row, key=lambda each: float(str(each["ms"])))
    for (pixels, adapter), row in best.items():
        flags = FLAGS[str(row["mode"])]
        facts = f"{row['ms']} ms a step, {row['peak GiB']} GiB"
        advice.append(f"- On this card use {flags} for {adapter} at {pixels} px ({facts}).")
    return [*(wrong or ["- Nothing wrong was found."]), *advice]


def is_out_of_memory(part: str, row: Figures) -> bool:
    """A step too large for the card, which is no fault."""
    return part == "steps" and "OutOfMemoryError" in str(row["result"])


def card(device: torch.device) -> str:
    if device.type != "cuda":
        return machine(device)
    facts = torch.cuda.get_device_properties(device)
    size = facts.total_memory / 2**30
    return f"{facts.name}, {size:.1f} GiB, compute {facts.major}.{facts.minor}"


def page_of(title: str, found: Mapping[str, Sequence[Figures]]) -> str:
    lines = [f"## {title}", "", *verdict(found)]
    for name, rows in found.items():
        lines += ["", f"### {PARTS[name][0]}", "", *markdown(rows)]
    return "\n".join(lines) + "\n"


def measure(options: argparse.Namespace) -> dict[str, list[Figures]]:
    seconds = QUICK_SECONDS if options.quick else SECONDS
    plan = Plan(options.device, options.tiny, options.quick, time.monotonic() + seconds)
    found = {}
    for name in options.parts:
        print(f"{PARTS[name][0]}:", flush=True)
        found[name] = run_part(name, plan)
    return found


def main() -> None:
    assert __doc__
    parser = make_parser(__doc__, rounds=1)
    add = parser.add_argument
    parser.set_defaults(device=torch.device("cuda"))
    add("--quick", action="store_true", help="60 seconds: fewer sizes, modes and repetitions")
    add("--tiny", action="store_true", help="tiny sizes, to try the command on a CPU")
    add("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    add("--page", type=Path, default=Path("gpu.md"), metavar="FILE", help="the page to write")
    options = settle(parser)
    torch.backends.cudnn.allow_tf32 = False  # reference tensors are compared in float32
    found = measure(options)
    title = f"{card(options.device)}, torch {torch.__version__}"
    options.page.write_text(page_of(title, found), encoding="utf-8")
    write_json(options.json, {"machine": title, "parts": found})
    print("\n".join(verdict(found)))
    print(f"Written: {options.page}")


if __name__ == "__main__":
    run_main(main)
