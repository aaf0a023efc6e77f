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
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from library.errors import ConfigError, OutputError, Problem
from library.settings.run_config import OptimizerOptions
from library.system.program import run_main
from library.system.system_errors import output_errors
from library.system.text_files import TextFileError, parse_toml, read_text
from library.training.optimizers import is_schedule_free
from library.utils import atomic_write, nearest_name
from tools._root_style import (
    REQUIRED,
    RULES,
    SECTIONS,
    UNSUPPORTED,
    UNSUPPORTED_SECTIONS,
    resolved,
)

SHIFT_LINES = ('timestep_sampling = "shift"', "discrete_flow_shift = 3.0")
Tables = dict[str, dict[str, Any]]


@dataclass
class Converted:
    """The new files' contents by table, and what to tell.

    tables: train, general, datasets, subsets, network, optimizer, special; see Rule
    """

    tables: Tables = field(default_factory=dict)
    mapped: list[str] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def table(self, name: str) -> dict[str, Any]:
        return self.tables.setdefault(name, {})


def convert(document: Mapping[str, Any], folder: Path) -> Converted:
    """The document's keys by the table of rules; relative paths count from `folder`."""
    result = Converted()
    missing = [name for name in ("model", "training") if not isinstance(document.get(name), dict)]
    if missing:
        sections = " and ".join(f"[{name}]" for name in missing)
        message = (
            f"has no {sections}: it is not a root-style configuration. Train with it as it is."
        )
        raise ConfigError(message)
    for section, values in document.items():
        if section in UNSUPPORTED_SECTIONS:
            result.unsupported.append(f"[{section}]: use {UNSUPPORTED_SECTIONS[section]}")
        elif section not in SECTIONS:
            near = nearest_name(section, SECTIONS)
            hint = f" (did you mean [{near}]?)" if near else ""
            result.unknown.append(f"{section}{hint}")
        elif not isinstance(values, dict):
            result.problems.append(Problem(f"expected a table, [{section}].", section))
        else:
            for key, value in values.items():
                take(result, f"{section}.{key}", value, folder)
    finish(result)
    return result


def take(result: Converted, name: str, value: Any, folder: Path) -> None:
    """One key into its place."""
    if name in UNSUPPORTED:
        result.unsupported.append(f"{name}: use {UNSUPPORTED[name]}")
        return
    if name not in RULES:
        section, key = name.split(".", 1)
        known = (each.split(".", 1) for each in [*RULES, *UNSUPPORTED])
        near = nearest_name(key, [of for place, of in known if place == section])
        result.unknown.append(f"{name}{f' (did you mean {section}.{near}?)' if near else ''}")
        return
    rule = RULES[name]
    try:
        converted = rule.read(value)
    except ValueError as error:
        result.problems.append(Problem(f"{error}, got {value!r:.60}.", name))
        return
    if isinstance(converted, str) and not converted.strip():
        return  # an empty text is how the old file leaves something out
    if rule.is_path:
        converted = resolved(converted, folder)
    table, _, key = rule.target.partition(".")
    result.table(table)[key] = converted
    result.mapped.append(name)


def finish(result: Converted) -> None:
    """What depends on several keys, and what has to be there."""
    for name, what in REQUIRED.items():
        table, _, key = RULES[name].target.partition(".")
        told = any(problem.where == name for problem in result.problems)
        if key not in result.table(table) and not told:
            result.problems.append(Problem(f"is missing: {what}.", name))
    special, train = result.table("special"), result.table("train")
    tokenizer = special.get("t5_dir") or special.get("t5_path")
    if tokenizer:
        train["t5_tokenizer_dir"] = tokenizer
    else:
        message = "both missing: the folder of the T5 tokenizer. Set one."
        where = "model.t5_tokenizer_dir, model.t5_tokenizer_path"
        result.problems.append(Problem(message, where))
    if "anima_transformer" in train:
        train["pretrained_model_name_or_path"] = train["anima_transformer"]
    if "lora_name" in special:
        train.setdefault("output_name", special["lora_name"])
    if special.get("max_steps", 0) > 0:
        train["max_train_steps"] = special["max_steps"]
    elif "epochs" in special:
        train["max_train_epochs"] = special["epochs"]
    datasets = result.table("datasets")
    edges = ("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps")
    if any(name in datasets for name in edges):
        datasets.setdefault("enable_bucket", True)
    finish_optimizer(result, special, train)


def finish_optimizer(result: Converted, special: dict[str, Any], train: dict[str, Any]) -> None:
    """The betas, and the schedule as far as the optimizer allows one."""
    betas = [special.get(name) for name in ("beta1", "beta2")]
    if None not in betas:
        result.table("optimizer")["betas"] = f"({betas[0]!r},{betas[1]!r})"
    elif betas != [None, None]:
        message = "optimizer.beta1 and optimizer.beta2 go together. Set both or neither."
        result.problems.append(Problem(message, "optimizer"))
    schedule = special.get("lr_scheduler")
    ratio = special.get("lr_min_ratio", 0)
    warmup = special.get("lr_warmup_steps", special.get("lr_warmup_ratio"))
    options = OptimizerOptions(optimizer_type=train.get("optimizer_type", ""))
    if is_schedule_free(options):
        if schedule not in (None, "constant") or warmup or ratio > 0:
            name = train["optimizer_type"]
            result.unsupported.append(
                f"training.lr_scheduler, lr_min_ratio and warm-up: {name} schedules itself and takes "
                'none; lr_scheduler = "constant" is written'
            )
        train["lr_scheduler"] = "constant"
        return
    if schedule == "cosine" and ratio > 0:
        train["lr_scheduler"], train["lr_scheduler_min_lr_ratio"] = "cosine_with_min_lr", ratio
    elif schedule:
        train["lr_scheduler"] = schedule
    if ratio > 0 and schedule != "cosine":
        message = 'use lr_scheduler = "cosine_with_min_lr"; other schedules go to zero or stay'
        result.unsupported.append(f"training.lr_min_ratio with {schedule}: {message}")
    if warmup is not None:
        train["lr_warmup_steps"] = warmup


def toml_value(value: Any) -> str:
    """A value that both tomllib and the older toml package read the same."""
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str) and "\\" in value and "'" not in value and value.isprintable():
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def lines_of(table: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in table.items())


def train_args(result: Converted, source: Path) -> str:
    """The text of train_args.toml."""
    train = dict(result.table("train"))
    for table, name in (("network", "network_args"), ("optimizer", "optimizer_args")):
        if values := result.table(table):
            train[name] = [f"{key}={argument_text(value)}" for key, value in values.items()]
    shift = "\n".join(f"# {line}" for line in SHIFT_LINES)
    return (
        f"# converted from {source.name} / 由 {source.name} 转换\n{lines_of(train)}"
        "\n# The earlier trainer always shifted sigma by 3.0; without # these two lines do.\n"
        f"# 旧训练器总是把 sigma 偏移 3.0；去掉下面两行的 # 即可保持一致。\n{shift}\n"
    )


def argument_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def dataset_file(result: Converted, source: Path) -> str:
    """The text of dataset.toml."""
    parts = [f"# converted from {source.name} / 由 {source.name} 转换\n"]
    if general := result.table("general"):
        parts.append(f"[general]\n{lines_of(general)}\n")
    parts.append(f"[[datasets]]\n{lines_of(result.table('datasets'))}\n")
    parts.append(f"[[datasets.subsets]]\n{lines_of(result.table('subsets'))}")
    return "".join(parts)


def read(path: Path) -> dict[str, Any]:
    """The old file. Raises ConfigError."""
    try:
        return parse_toml(read_text(path))
    except FileNotFoundError:
        message = f"no such file. It is looked for in {Path.cwd()}."
    except TextFileError as error:
        message = str(error)
    raise ConfigError(message, source=str(path))


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
    document = read(source)
    try:
        result = convert(document, source.resolve().parent)
    except ConfigError as error:
        raise ConfigError(error.problems, source=str(source)) from None
    if result.problems:
        raise ConfigError(result.problems, source=str(source))
    folder = Path(own.output_dir) if own.output_dir else source.parent / "kohya_converted"
    train, dataset = folder / own.train_args_name, folder / own.dataset_name
    check_targets(source, train, dataset, own.overwrite)
    for path, content in (
        (train, train_args(result, source)),
        (dataset, dataset_file(result, source)),
    ):
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                temporary.write_text(content, encoding="utf-8", newline="\n")
    report(result, train, dataset)
    return train, dataset


def check_targets(source: Path, train: Path, dataset: Path, overwrite: bool) -> None:
    """Nothing that is there is lost unasked, and the input never is."""
    targets = {path.resolve() for path in (train, dataset)}
    if len(targets) < 2 or source.resolve() in targets:
        raise ConfigError("the input, --train_args_name and --dataset_name have to be three files.")
    there = [path for path in (train, dataset) if path.exists()]
    if there and not overwrite:
        message = "is there already. Add --overwrite, or name another --output_dir."
        raise OutputError([Problem(message, source=str(path)) for path in there])


def report(result: Converted, train: Path, dataset: Path) -> None:
    """What was written, what was not, and the next command."""
    print(f"written: {train}\nwritten: {dataset}\n{len(result.mapped)} settings converted")
    for title, lines in (
        ("no counterpart / 不支持", result.unsupported),
        ("unknown, not converted / 未知", result.unknown),
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
