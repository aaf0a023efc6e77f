"""Turn a configuration of the earlier trainer into train_args.toml and dataset.toml.

python tools/convert_anima_root_to_kohya.py --input old.toml [--output_dir DIR] [--overwrite]
       [--train_args_name train_args.toml] [--dataset_name dataset.toml]

The old file is one TOML with [model], [training] and so on. Paths are made absolute, so that the new
files work from any folder. What has no counterpart is listed, not dropped silently.
把旧的单文件配置转换成 train_args.toml 和 dataset.toml；没有对应项的键会列出来。
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from library.errors import ConfigError, Problem
from library.system.program import run_main
from library.utils import nearest_name
from tools.importers.draft import CONVERTED, KEPT, LOST, RENAMED, UNKNOWN, UNSET, Draft, Leaf
from tools.importers.files import parse_limited
from tools.importers.machine import Nearby
from tools.importers.machine import convert as apply
from tools.importers.root_style import SECTIONS, SOURCE, UNSUPPORTED_SECTIONS
from tools.importers.writing import check_free, dataset_file, heading, lines_of, options, write_all

SHIFT_LINES = ('timestep_sampling = "shift"', "discrete_flow_shift = 3.0")


def convert(document: Mapping[str, Any], folder: Path) -> Draft:
    """The document's keys by the table of rules; relative paths count from `folder`."""
    missing = [name for name in ("model", "training") if not isinstance(document.get(name), dict)]
    if missing:
        sections = " and ".join(f"[{name}]" for name in missing)
        message = (
            f"has no {sections}: it is not a root-style configuration. Train with it as it is."
        )
        raise ConfigError(message)
    known = {name: document[name] for name in SECTIONS if isinstance(document.get(name), dict)}
    draft = apply(SOURCE, known, Nearby([folder], parse_limited))
    for section, values in document.items():
        if section in UNSUPPORTED_SECTIONS:
            leaf = Leaf(section, f"[{section}]", values)
            draft.lose(leaf, f"use {UNSUPPORTED_SECTIONS[section]}")
        elif section not in SECTIONS:
            near = nearest_name(section, SECTIONS)
            why = f"did you mean [{near}]?" if near else ""
            draft.find(UNKNOWN, Leaf(section, section, values), why=why)
        elif section not in known:
            draft.problems.append(Problem(f"expected a table, [{section}].", section))
    return draft


def train_args(draft: Draft, source: Path) -> str:
    """The text of train_args.toml."""
    shift = "\n".join(f"# {line}" for line in SHIFT_LINES)
    return (
        f"{heading(source)}{lines_of(options(draft))}"
        "\n# The earlier trainer always shifted sigma by 3.0; without # these two lines do.\n"
        f"# 旧训练器总是把 sigma 偏移 3.0；去掉下面两行的 # 即可保持一致。\n{shift}\n"
    )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="convert_anima_root_to_kohya.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--input", required=True, help="the old configuration")
    parser.add_argument("--output_dir", help="default: kohya_converted beside the input")
    parser.add_argument("--train_args_name", default="train_args.toml")
    parser.add_argument("--dataset_name", default="dataset.toml")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return parser.parse_args(argv)


def run(argv: Sequence[str]) -> tuple[Path, Path]:
    """Convert, write both files, report. Raises UserError with everything that is wrong."""
    own = parse(argv)
    source = Path(own.input)
    document = parse_limited(source, ".toml")
    try:
        draft = convert(document, source.resolve().parent)
    except ConfigError as error:
        raise ConfigError(error.problems, source=str(source)) from None
    if draft.problems:
        raise ConfigError(draft.problems, source=str(source))
    folder = Path(own.output_dir) if own.output_dir else source.parent / "kohya_converted"
    train, dataset = folder / own.train_args_name, folder / own.dataset_name
    targets = {path.resolve() for path in (train, dataset)}
    if len(targets) < 2 or source.resolve() in targets:
        raise ConfigError("the input, --train_args_name and --dataset_name have to be three files.")
    check_free([train, dataset], own.overwrite)
    write_all({train: train_args(draft, source), dataset: dataset_file(draft, source)})
    report(draft, train, dataset)
    return train, dataset


def report(draft: Draft, train: Path, dataset: Path) -> None:
    """What was written, what was not, and the next command."""
    mapped = draft.of(KEPT, RENAMED, CONVERTED)
    print(f"written: {train}\nwritten: {dataset}\n{len(mapped)} settings converted")
    unsupported = [f"{each.key}: {each.why}" for each in draft.of(LOST, UNSET) if each.why]
    unknown = [f"{each.key}{f' ({each.why})' if each.why else ''}" for each in draft.of(UNKNOWN)]
    for title, lines in (
        ("no counterpart / 不支持", unsupported),
        ("unknown, not converted / 未知", unknown),
    ):
        if lines:
            print(f"\n{title}:")
            print("\n".join(f"  {line}" for line in lines))
    print(
        "\nThe earlier trainer always shifted sigma by 3.0; this one does not unless asked. To keep it,\n"
        f"uncomment in {train.name}: / 要保持旧训练器的 sigma 偏移，去掉这两行的注释："
    )
    print("\n".join(f"  {line}" for line in SHIFT_LINES))
    files = f"--config_file {shlex.quote(str(train))} --dataset_config {shlex.quote(str(dataset))}"
    print(f"\nnext / 下一步:\n  accelerate launch anima_train_network.py {files}")


def main() -> int:
    run(sys.argv[1:])
    return 0


if __name__ == "__main__":
    run_main(main)
