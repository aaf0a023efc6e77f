"""Turn a configuration of another trainer into train_args.toml and dataset.toml.

python tools/import_config.py FILE [--output_dir DIR] [--dataset_file FILE] [--source NAME]
       [--dry_run] [--overwrite] [--keep_secrets]

FILE is a TOML, JSON or YAML file, or a start script (.sh, .bat, .ps1), which is read and never run.
What became of every key is told: kept, renamed, converted, lost, unknown. Both files are written, or
neither; tokens and keys of accounts are left out.
把其他训练器的配置转换成 train_args.toml 和 dataset.toml，并逐键说明结果；令牌和密钥默认不写入。
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

import argparse
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from library.anima_runtime.command_line import ADAPTERS, MODEL, load_run
from library.errors import ConfigError, Problem, UserError
from library.system.program import run_main
from tools.importers.draft import Draft
from tools.importers.files import folders_near
from tools.importers.machine import Nearby, convert
from tools.importers.recognition import PROGRAMS, read_any, source_of
from tools.importers.report import report
from tools.importers.writing import check_free, dataset_file, train_args, write_all

TRAIN, DATASET = "train_args.toml", "dataset.toml"
MODELS = {
    "pretrained_model_name_or_path": "DIT.safetensors",
    "vae": "VAE.safetensors",
    "qwen3": "QWEN3.safetensors",
    "output_dir": "OUTPUT_FOLDER",
}
SAME = {"anima_transformer": "pretrained_model_name_or_path", "qwen": "qwen3"}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="import_config.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", help="the other program's file")
    parser.add_argument("--output_dir", help="default: <name>_imported beside the file")
    parser.add_argument(
        "--dataset_file",
        help="the file with the pictures, where FILE's own name for it is not found",
    )
    parser.add_argument(
        "--source", choices=list(PROGRAMS), help="whose file it is, where it is not recognised"
    )
    parser.add_argument("--dry_run", action="store_true", help="write nothing, tell all")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument(
        "--keep_secrets", action="store_true", help="write tokens and keys of accounts too"
    )
    return parser.parse_args(argv)


def run(argv: Sequence[str]) -> dict[Path, str]:
    """Import, report, and return the files' contents. Raises UserError with everything that is wrong."""
    own = parse(argv)
    path = Path(own.file)
    document = read_any(path)
    source = source_of(document, path, own.source or "")
    dataset = Path(own.dataset_file) if own.dataset_file else None
    nearby = Nearby(list(folders_near(path)), read_any, dataset)
    try:
        draft = convert(source, document, nearby, keep_secrets=own.keep_secrets)
    except ConfigError as error:
        raise ConfigError(error.problems, source=str(path)) from None
    if draft.problems:
        raise ConfigError(draft.problems, source=str(path))
    folder = Path(own.output_dir) if own.output_dir else path.parent / f"{path.stem}_imported"
    contents = contents_of(draft, path, folder)
    if path.resolve() in {target.resolve() for target in contents}:
        raise ConfigError("would be replaced itself. Name another --output_dir.", source=str(path))
    remarks = check(contents, whole=draft.whole)
    if not own.dry_run:
        check_free(list(contents), own.overwrite)
        write_all(contents)
    tell(draft, source.name, contents, remarks, written=not own.dry_run)
    return contents


def contents_of(draft: Draft, path: Path, folder: Path) -> dict[Path, str]:
    """The files to write and their texts; dataset.toml where the old file names folders one by one."""
    for option, (name, _) in draft.files.items():
        draft.train[option] = (folder / name).resolve().as_posix()
    contents = {
        folder / TRAIN: train_args(draft, path),
        folder / DATASET: dataset_file(draft, path),
        **{folder / name: text for name, text in draft.files.values()},
    }
    return {target: text for target, text in contents.items() if text}


def check(contents: dict[Path, str], *, whole: bool) -> list[Problem]:
    """What the trainer will say of the files: folders that are not there, models that are not named."""
    with tempfile.TemporaryDirectory() as name:
        copies = {target: Path(name) / target.name for target in contents}
        for target, text in contents.items():
            there = target.resolve().parent.as_posix()
            copies[target].write_text(text.replace(there, Path(name).as_posix()), encoding="utf-8")
        try:
            load_run(command_words(list(copies.values())), MODEL if whole else ADAPTERS)
        except UserError as error:
            here = [p.source.startswith(name) for p in error.problems]
            return [
                replace(p, source=Path(p.source).name if is_copy else p.source)
                for p, is_copy in zip(error.problems, here)
            ]
    return []


def command_words(paths: Sequence[Path]) -> list[str]:
    """The options that name the two files."""
    options = {TRAIN: "--config_file", DATASET: "--dataset_config"}
    return [word for p in paths if p.name in options for word in (options[p.name], str(p))]


def tell(
    draft: Draft, program: str, contents: dict[Path, str], remarks: list[Problem], *, written: bool
) -> None:
    """The report, what the trainer will ask for, and the next command."""
    print("\n".join(report(draft, program)))
    if remarks:
        print("\nbefore it starts / 启动前:")
        print("\n".join(f"  {p.source or 'the run'}: {p.where}  {p.message}" for p in remarks))
    print()
    for path in contents:
        print(f"{'written' if written else 'would be written'}: {path}")
    words = command_words(list(contents))
    given = {SAME.get(name, name) for name in draft.train}
    for name, value in MODELS.items():
        words += [] if name in given else [f"--{name}", value]
    program = (MODEL if draft.whole else ADAPTERS).file
    print(f"\nnext / 下一步:\n  accelerate launch {program} {shlex.join(words)}")


def main() -> int:
    run(sys.argv[1:])
    return 0


if __name__ == "__main__":
    run_main(main)
