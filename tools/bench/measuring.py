"""What the timed benchmarks share: arms run in turn, ratios of pairs, tables, files of figures.

Arms run A B A B ... in one process, so that whatever else the machine does meets all of them alike; a
ratio is of two times of the same round. One that other work disturbed stays within the quartiles.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from library.device_utils import precision_dtype
from library.errors import ConfigError
from library.memory.trials import apart_from, wait_for

TOKEN = 16  # pixels of its edge
Work = Callable[[], object]
Clock = Callable[[], float]
Figures = Mapping[str, object]
"""A row of a table by the names of its columns."""


class Missing(Exception):
    """An arm that cannot run here, with the reason."""


def seconds_of(work: Work, device: torch.device, clock: Clock = time.perf_counter) -> float:
    """How long the work takes, what it asked of the device included."""
    wait_for(device)
    start = clock()
    work()
    wait_for(device)
    return clock() - start


def clock_of_work(device: torch.device) -> Clock:
    """On one thread of the CPU its own time, so that waiting for a busy core does not count."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def time_arms(
    arms: Mapping[str, Work], rounds: int, device: torch.device, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each arm in each round; all arms take turns, and the first turn does not count."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(1 + rounds):
        for name, work in arms.items():
            seconds = seconds_of(work, device, clock)
            if number:
                times[name].append(seconds)
    return times


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median, the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, middle, upper


def compare(times: Mapping[str, Sequence[float]]) -> list[Figures]:
    """A row for each arm: its median in ms and the quartiles of its ratio to the first arm."""
    base = next(iter(times.values()))
    rows: list[Figures] = []
    for name, seconds in times.items():
        lower, middle, upper = quartiles([a / b for a, b in zip(seconds, base)])
        rows.append(
            {
                "arm": name,
                "ms": round(1e3 * statistics.median(seconds), 3),
                "ratio": round(middle, 3),
                "lower": round(lower, 3),
                "upper": round(upper, 3),
            }
        )
    return rows


def made(
    makers: Mapping[str, Callable[[], Work]], tell: Callable[[str], None] = print
) -> dict[str, Work]:
    """The arms that can run here; of each of the others one line with the reason."""
    arms = {}
    for name, make in makers.items():
        try:
            arms[name] = make()
        except Missing as reason:
            tell(f"{name}: skipped, {reason}")
    return arms


def relative_distance(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, on the CPU."""
    return apart_from(found.cpu(), expected.cpu())


def aligned(rows: Sequence[Figures]) -> list[str]:
    """Lines of columns, the names first."""
    names = list(rows[0])
    lines = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return ["  ".join(text.rjust(w) for text, w in zip(line, widths)) for line in lines]


def machine(device: torch.device) -> str:
    """The machine's name: its card, or its processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} thread(s)"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def report(options: argparse.Namespace, rows: Sequence[Figures], note: str = "") -> None:
    """Print the table under the machine's name and torch's version, and write --json."""
    facts = {"machine": machine(options.device), "torch": torch.__version__}
    print("; ".join([facts["machine"], f"torch {facts['torch']}", *([note] if note else [])]))
    for line in aligned(rows):
        print(line)
    write_json(options.json, {**facts, "note": note, "rows": rows})


def write_json(file: Path | None, figures: Mapping[str, object]) -> None:
    if file is not None:
        file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def whole_number(text: str) -> int:
    """Of an option: a whole number of 1 or more."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of 1 or more.")
    return int(text)


def edge(text: str) -> int:
    """Of an option: the pixels of a square picture's edge, which are whole tokens."""
    if whole_number(text) % TOKEN:
        raise argparse.ArgumentTypeError(f"{text}: expected a multiple of {TOKEN}.")
    return whole_number(text)


def device_named(text: str) -> torch.device:
    """Of an option."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text}: expected cpu or cuda.")
    return torch.device(text)


def make_parser(text: str, *, rounds: int) -> argparse.ArgumentParser:
    """Options that all timed commands have."""
    parser = argparse.ArgumentParser(
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--device", type=device_named, default=torch.device("cpu"), help="cpu or cuda")
    add("--threads", type=whole_number, default=1, help="of the CPU")
    add("--rounds", type=whole_number, default=rounds, help="times that every arm is measured")
    add("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return parser


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", choices=("bf16", "fp16", "no"), default="bf16")


def settle(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options read; threads and the seed set, the dtype beside --precision. Raises ConfigError."""
    options = parser.parse_args()
    if options.device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; use --device cpu.")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if "precision" in options:
        options.dtype = precision_dtype(options.precision)
    return options
