"""Time the tools that work on adapter files, on random files of true size, and see their peak memory.

python -m tools.bench.workshop [--tools universal ...] [--folder DIR] [--json workshop.json]

Each tool is a process of its own. `MiB` is the most that it had in memory, `more` what of that is more
than after its imports. The files: a LoRA of rank 32 with norms, a LoKr with full second matrices and
factor 8, and where a tool asks for it a base model (4.2 GB); they are made in a temporary folder, or in
--folder, where they stay and are used again. A second try finds the files in the system's memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch

from library.anima_workshop.layout import published
from library.errors import ConfigError
from library.system.program import run_main
from library.system.tensor_files import read_header, read_tensors
from library.system.tensor_writing import Planned, tensor_writer
from networks.codec import encode
from networks.kinds.lokr import lokr_shape
from networks.workshop.writing import adapter_writer
from tools import _demo_layouts as layouts
from tools._demo_weights import dit_scale, write_model
from tools.bench.measuring import Figures, make_parser, report, settle, whole_number

RANK, FACTOR = 32, 8
PARTS = 200  # singular values of what the tuned model has more than the base
BLOCKS = layouts.TRUE_DIT.blocks
LORA, LOKR, BASE, OUT = "lora.safetensors", "lokr.safetensors", "base.safetensors", "out.safetensors"
PAGE = "page.html"
TUNED = "tuned.safetensors"
TOOLS: dict[str, str] = {
    "compare": f"compare_lora {LORA} {LOKR}",
    "compare beside base": f"compare_lora {LORA} {LOKR} --base {BASE}",
    "kohya": f"convert_lora_format {LORA} --format kohya",
    "universal": f"convert_lora_format {LORA} --format universal --drop norms",
    "lokr to lora": f"convert_lora_format {LOKR} --format universal --rank 64",
    "lokr by error": f"convert_lora_format {LOKR} --format comfy --error 0.5",
    "into a base": f"merge_lora {LORA} --base {BASE}",
    "lokr into fp8": f"merge_lora {LOKR} --base {BASE} --save_precision fp8",
    "into one": f"merge_lora {LORA} {LORA} --strength 1 0.5",
    "into one by svd": f"merge_lora {LORA} {LOKR} --rank 32",
    "resize": f"resize_lora {LORA} --rank 8",
    "resize by error": f"resize_lora {LORA} --error 0.5",
    "resize LoKr": f"resize_lora {LOKR} --rank 16",
    "edit": f"edit_lora {LORA} --strength mlp=0.5 --drop norms",
    "remap": f"remap_lora {LORA} --blocks 40",
    "check lora": f"check_lora {LORA} --html {PAGE} --overwrite",
    "check lokr": f"check_lora {LOKR} --html {PAGE} --overwrite",
    "check beside base": f"check_lora {LORA} --base {BASE} --html {PAGE} --overwrite",
    "extract": f"extract_lora {BASE} {TUNED} --rank 32",
    "extract by error": f"extract_lora {BASE} {TUNED} --error 0.3",
}
"""Command lines by the names of their rows; --output and --overwrite are added to those that write."""
NOT_WRITING = ("check_lora", "compare_lora")

PROBE = """
import importlib, sys
from library.system.program import run_main
def peak():
    lines = open("/proc/self/status", encoding="utf-8").read().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("VmHWM"))
file, module = sys.argv[1:3]
del sys.argv[1:3]
tool = importlib.import_module(module)
imported = peak()
try:
    run_main(tool.main)
finally:
    open(file, "w", encoding="utf-8").write(f"{imported} {peak()}")
"""
"""A tool and then the peaks of its own memory in KiB: after its imports, and at its end."""


def lora_shapes(blocks: int) -> dict[str, tuple[int, ...]]:
    """By key; norms too."""
    modules, found = published(blocks), dict[str, tuple[int, ...]]()
    for path, shape in modules.shapes.items():
        if path in modules.targets:
            found[encode(path, "lora_down")] = (RANK, shape[1])
            found[encode(path, "lora_up")] = (shape[0], RANK)
            found[encode(path, "alpha")] = ()
        elif path in modules.norms and not path.startswith("text_encoders."):
            found[encode(path, "w_norm")] = shape
    return found


def lokr_shapes(blocks: int) -> dict[str, tuple[int, ...]]:
    modules, found = published(blocks), dict[str, tuple[int, ...]]()
    for path in modules.targets:
        factors = lokr_shape(modules.shapes[path], RANK, FACTOR, full_matrix=True).factors()
        found |= {encode(path, name): shape for name, shape in factors.items()}
        found[encode(path, "alpha")] = ()
    return found


def write_adapter_file(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Random numbers in bfloat16, a tensor at a time."""
    plan = {key: Planned("BF16", shape) for key, shape in shapes.items()}
    with adapter_writer(file, plan, {"ss_network_dim": str(RANK)}) as writer:
        for key, shape in shapes.items():
            random = torch.randn(shape).mul_(0.02) if shape else torch.tensor(RANK / 2)
            writer.put(key, random.bfloat16())


def write_base(file: Path, blocks: int) -> None:
    shapes = layouts.dit_shapes(replace(layouts.TRUE_DIT, blocks=blocks))
    for _ in write_model(file, shapes, dit_scale, 0):
        pass


def write_tuned(file: Path, blocks: int) -> None:
    """The base with another part in every matrix, whose singular values fall, beside a little of all."""
    base = file.with_name(BASE)
    header = read_header(base)
    plan = {key: Planned(entry.dtype, entry.shape) for key, entry in header.entries.items()}
    with tensor_writer(file, plan, header.metadata, hashed=False) as writer:
        for key, planned in plan.items():
            tensor = read_tensors(base, header, [key])[key]
            if len(planned.shape) == 2:
                up, down = (torch.randn(size, PARTS) for size in planned.shape)
                part = up * 0.95 ** torch.arange(PARTS) @ down.T + torch.randn(planned.shape)
                tensor = (tensor.float() + 0.002 * part).to(tensor.dtype)
            writer.put(key, tensor)


MAKERS: dict[str, Callable[[Path, int], None]] = {
    LORA: lambda file, blocks: write_adapter_file(file, lora_shapes(blocks)),
    LOKR: lambda file, blocks: write_adapter_file(file, lokr_shapes(blocks)),
    BASE: write_base,
    TUNED: write_tuned,
}


def make_files(folder: Path, blocks: int, commands: Iterable[str]) -> None:
    """Those that the commands name and that are not there."""
    words = " ".join(commands).split()
    for name, make in MAKERS.items():
        if name in words and not (folder / name).exists():
            make(folder / name, blocks)


def words_of(command: str) -> list[str]:
    """The tool and its arguments."""
    tool, *words = command.split()
    return [tool, *words] if tool in NOT_WRITING else [tool, *words, "--output", OUT, "--overwrite"]


def measure(folder: Path, name: str, threads: int) -> Figures:
    tool, *words = words_of(TOOLS[name])
    peaks, start = folder / "peaks", time.perf_counter()
    path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(peaks), f"tools.{tool}", *words], cwd=folder,
        env={**os.environ, **environment}, stdout=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if done.returncode:
        raise ConfigError(f"{name}: {tool} ended with {done.returncode}.")
    imported, peak = (int(text) / 1024 for text in peaks.read_text(encoding="utf-8").split())
    out = folder / OUT
    return {
        "tool": name,
        "seconds": round(seconds, 1),
        "MiB": round(peak),
        "more": round(peak - imported),
        "file MiB": round(out.stat().st_size / 2**20) if out.exists() else "-",
    }


def main() -> None:
    assert __doc__
    parser = make_parser(__doc__, rounds=1)
    add = parser.add_argument
    add("--tools", nargs="+", choices=TOOLS, default=list(TOOLS), help="rows of the table")
    add("--blocks", type=whole_number, default=BLOCKS, help="of the model; fewer to try the command")
    add("--folder", type=Path, help="where the files stay")
    options = settle(parser)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        make_files(folder, options.blocks, [TOOLS[name] for name in options.tools])
        rows = [measure(folder, name, options.threads) for name in options.tools]
        (folder / OUT).unlink(missing_ok=True)
        report(options, rows, f"{options.blocks} blocks")


if __name__ == "__main__":
    run_main(main)
