"""What tools that write adapter files share: where the file goes, and what keeps it from going there."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from library.errors import Problem, visible
from networks.workshop.low_rank import RankRule
from tools._adapter_files import place_problems

EXTENSION = ".safetensors"
PRECISIONS = ("float", "fp16", "bf16")


def add_output(parser: argparse.ArgumentParser) -> None:
    """--output, --overwrite and --dry_run."""
    parser.add_argument("--output", type=Path, required=True, help="the file that is written")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument(
        "--dry_run", action="store_true", help="tell what would be written, and write nothing"
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """--save_precision."""
    parser.add_argument(
        "--save_precision", choices=PRECISIONS, help="of the file; as it was if not given"
    )


def add_rule(parser: argparse.ArgumentParser) -> None:
    """--rank, --energy and --error."""
    add = parser.add_argument
    add("--rank", type=int, help="ranks kept of what becomes a LoRA, at most")
    add("--energy", type=float, help="as few ranks as keep this share of the squared delta, e.g. 0.99")
    add("--error", type=float, help="as few ranks as leave at most this relative error, e.g. 0.05")


def rule_of(options: argparse.Namespace) -> RankRule | None:
    """None where no rule is given."""
    given = options.rank, options.energy, options.error
    return None if given == (None, None, None) else RankRule(*given)


def rule_problems(options: argparse.Namespace) -> Iterator[Problem]:
    if options.rank is not None and options.rank < 1:
        yield Problem("expected 1 or more.", f"--rank {options.rank}")
    if options.energy is not None and not 0 < options.energy <= 1:
        yield Problem("expected a share, above 0 and at most 1.", f"--energy {options.energy}")
    if options.error is not None and not 0 <= options.error < 1:
        yield Problem("expected a share, 0 or more and below 1.", f"--error {options.error}")


def output_problems(output: Path, inputs: Sequence[Path], *, overwrite: bool) -> Iterator[Problem]:
    """What is wrong with the place of the output."""
    if output.suffix != EXTENSION:
        yield Problem(f"expected a name that ends in {EXTENSION}.", f"--output {output}")
    else:
        yield from place_problems("--output", output, inputs, overwrite=overwrite)


def outcome(options: argparse.Namespace) -> str:
    """The last line that is told."""
    if options.dry_run:
        return "nothing written (--dry_run)"
    return f"written: {visible(str(options.output))}"


def tell(lines: Iterable[str], options: argparse.Namespace) -> None:
    """Print what was made, then where it is."""
    for line in lines:
        print(visible(line))
    print(outcome(options))
