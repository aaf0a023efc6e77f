"""Show what a run will really train on: buckets and crops as a table, one epoch as pictures.

python tools/preview_buckets.py --dataset_config dataset.toml [--config_file train_args.toml]
       [--output preview.png] [--epoch 1] [--max_samples 60] [any trainer flag]

Beside the picture it writes a page, preview.html, of what is worth mending in pictures and captions:
pictures that are there twice or look nearly the same, trigger words that are missing, tags of one picture,
tags that Anima reads otherwise than they are written. Pictures and captions are never changed.
The contact sheet has every sample in the order of training: cropped, mirrored and masked as the
trainer will see it (what the mask leaves out is red), its caption after shuffling and dropping.
No model is loaded. 显示训练时真正使用的分桶、裁剪、翻转、蒙版和处理后的标注，并把图片与标注里值得修改的地方写成网页
preview.html；不加载模型，也不改动图片和标注。
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from library.anima_doctor.looking_over import look_over
from library.anima_runtime.command_line import GROUPS, setup_parser
from library.anima_runtime.family import ANIMA
from library.anima_runtime.shared_groups import SHARED_GROUPS
from library.config_util import read_datasets
from library.data.bucket_sampler import BucketBatchSampler
from library.data.buckets import cropped_fraction
from library.data.catalogue import Catalogue
from library.data.data_types import ImageInfo
from library.data.datasets import TrainDataset
from library.data.scan import scan
from library.errors import ConfigError, visible
from library.linting.findings import report_lines
from library.linting.page import findings_page
from library.settings.config_file import read_config
from library.settings.run_config import TrainConfig
from library.system.program import run_main
from library.system.system_errors import output_errors
from library.train_util import StepPlan
from library.utils import atomic_write
from tools._contact_sheet import draw_sheet

WORST_SHOWN = 5
NOT_NEEDED = ("output_dir", "qwen", "qwen3", "vae", "anima_transformer")
"""Flags a run has to have and a preview does not."""


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """This tool's own options, and those of the trainer."""
    parser = argparse.ArgumentParser(prog="preview_buckets.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--output", default="preview.png")
    parser.add_argument("--epoch", type=int, default=1)
    parser.add_argument("--max_samples", type=int, default=60)
    own, rest = parser.parse_known_args(argv)
    if own.epoch < 1 or own.max_samples < 1:
        raise ConfigError("--epoch and --max_samples start at 1.")
    if Path(own.output).suffix.lower() not in (".png", ".jpg", ".webp"):
        raise ConfigError(f"--output {own.output}: expected a name ending in .png, .jpg or .webp.")
    return own, rest


def load(argv: Sequence[str]) -> tuple[TrainConfig, Catalogue]:
    """The run's options and its catalogue; model files may be missing."""
    loaded = read_config(setup_parser(), argv, GROUPS)
    loaded.problems = [p for p in loaded.problems if p.where not in NOT_NEEDED]
    loaded.require()
    train = TrainConfig(**{name: loaded.groups[group] for name, group in SHARED_GROUPS.items()})
    if problems := train.check():
        raise ConfigError(problems)
    fallbacks = {n: v for n, v in train.flat().items() if n in loaded.explicit}
    return train, scan(read_datasets(train.files.dataset_config, fallbacks, ANIMA.foreign_message))


def table(catalogue: Catalogue) -> list[str]:
    """Lines: each bucket with its pictures, batches, what is cropped and how sizes change."""
    lines = []
    header = (
        f"{'bucket':>12}  {'pictures':>8}  {'samples':>8}  {'batches':>8}  {'last':>5}  "
        f"{'cropped':>8}  {'worst':>6}  {'scale':>11}"
    )
    buckets = catalogue.buckets()
    for number, dataset in enumerate(catalogue.group.datasets):
        width, height = dataset.resolution
        lines += [f"dataset {number}: {width} x {height}, batch size {dataset.batch_size}", header]
        for (owner, bucket), indices in buckets.items():
            if owner == number:
                images = [catalogue.images[i] for i in indices]
                lines.append(row(bucket, images, dataset.batch_size, catalogue, indices))
    return lines


def row(
    bucket: tuple[int, int],
    images: list[ImageInfo],
    batch_size: int,
    catalogue: Catalogue,
    indices: list[int],
) -> str:
    samples = sum(image.repeats for image in images)
    cropped = [cropped_fraction(image.plan) for image in images]
    scales = [image.plan.resized[0] / image.size[0] for image in images]
    spread = f"{min(scales):.2f}-{max(scales):.2f}"
    return (
        f"{bucket[0]:>6}x{bucket[1]:<5}  {len(images):>8}  {samples:>8}  "
        f"{catalogue.count_batches(indices):>8}  {samples % batch_size or batch_size:>5}  "
        f"{sum(cropped) / len(cropped):>8.1%}  {max(cropped):>6.1%}  {spread:>11}"
    )


def warnings_of(catalogue: Catalogue) -> list[str]:
    """Buckets of one picture, and pictures that lose the most."""
    lines = []
    for (number, bucket), indices in catalogue.buckets().items():
        if len(indices) == 1 and len(catalogue.images) > 1:
            name = catalogue.images[indices[0]].path.name
            lines.append(
                f"bucket {bucket[0]} x {bucket[1]} of dataset {number} has one picture, {name}: "
                "it never shares a batch with another"
            )
    worst = sorted(catalogue.images, key=lambda image: -cropped_fraction(image.plan))
    for image in worst[:WORST_SHOWN]:
        if (lost := cropped_fraction(image.plan)) > 0.1:
            size = " x ".join(map(str, image.size))
            kept = " x ".join(map(str, image.plan.bucket))
            lines.append(f"{image.path.name} ({size}) loses {lost:.0%} of itself in {kept}")
    return lines


def write_findings(cfg: TrainConfig, catalogue: Catalogue, file: Path) -> Path:
    """Print what is worth mending, and write it as a page with pictures and words; returns the page."""
    findings = look_over(catalogue, cfg)
    for line in report_lines(findings):
        print(f"{'' if line.startswith(' ') else 'to mend: '}{visible(line)}")
    pictures = len({image.path for image in (*catalogue.images, *catalogue.held_out)})
    name = Path(cfg.files.dataset_config or catalogue.group.source).name
    with output_errors(file), atomic_write(file) as temporary:
        temporary.write_text(findings_page(name, findings, pictures), encoding="utf-8")
    return file


def preview(argv: Sequence[str]) -> list[Path]:
    """Print the table and draw the sheet; returns the files written."""
    own, rest = parse(argv)
    cfg, catalogue = load(rest)
    print("\n".join(table(catalogue)))
    for text in (*catalogue.notes, *warnings_of(catalogue)):
        print(f"note: {visible(text)}")
    if catalogue.held_out:
        print(f"{len(catalogue.held_out)} pictures are kept for validation")
    seed = cfg.loop.seed
    if seed is None:
        print("note: no seed is set: a run draws its own, this preview uses 0")
    sampler = BucketBatchSampler(catalogue, seed=seed or 0)
    plan = StepPlan.make(len(sampler), cfg.loop.gradient_accumulation_steps, cfg)
    dataset = TrainDataset(
        catalogue,
        seed=seed or 0,
        max_train_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
    )
    if own.epoch > plan.epochs:
        raise ConfigError(f"--epoch {own.epoch}: the run has {plan.epochs}.")
    batches = sampler.batches(own.epoch - 1)
    shown = math.ceil(own.max_samples / max(len(batch) for batch in batches))
    files = draw_sheet(dataset, batches[:shown], Path(own.output))
    files.append(write_findings(cfg, catalogue, Path(own.output).with_suffix(".html")))
    samples = sum(map(len, batches[:shown]))
    written = visible(", ".join(map(str, files)))
    print(
        f"written: {written} (epoch {own.epoch} of {plan.epochs}: {samples} of "
        f"{catalogue.num_samples} samples, {min(shown, len(batches))} of {len(batches)} batches)"
    )
    return files


def main() -> int:
    argv = sys.argv[1:]
    if {"--help", "-h"} & set(argv):
        print(__doc__, end="")
        return 0
    preview(argv)
    return 0


if __name__ == "__main__":
    run_main(main)
