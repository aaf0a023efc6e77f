"""Findings about the numbers in a file: not finite, all zero, and what 16 bits keep of them."""

from __future__ import annotations

from collections.abc import Iterator

from library.anima_workshop.checked import Checked
from library.anima_workshop.findings import Finding, Severity
from library.reporting.texts import Text
from networks.kinds.norm import B_NORM, W_NORM
from networks.workshop.survey import NumberRange

NORMS = (W_NORM, B_NORM)
MUCH = 0.5
"""The share of a file's numbers below which lost digits do not matter: they are the smallest ones."""


def not_finite(checked: Checked) -> Iterator[Finding]:
    broken = checked.survey.broken
    if not broken:
        return
    total = sum(broken.values())
    yield Finding(
        "values.not_finite",
        Severity.ERROR,
        Text(
            f"Tensors that hold NaN or infinity: {len(broken)} (numbers: {total}). Pictures turn black.",
            f"{len(broken)} 个张量含有 NaN 或无穷（共 {total} 个数）：会画出黑图。",
        ),
        Text(
            "Do not use this file; take an earlier save. A lower learning rate keeps training from it.",
            "不要使用此文件，改用更早保存的文件；训练时降低学习率可避免。",
        ),
        tuple(f"{key}: {count}" for key, count in broken.items()),
    )


def all_zero(checked: Checked) -> Iterator[Finding]:
    """By the ending of the keys."""
    norms = [module.norm for module in checked.survey.modules]
    if norms and not any(norm or norm is None for norm in norms):
        yield Finding(
            "values.nothing",
            Severity.ERROR,
            Text("The file changes nothing: every difference is 0.", "此文件不起任何作用：所有差值都是 0。"),
            Text("It was saved before the first step, or trained at a rate of 0.",
                 "它是在第一步之前保存的，或者学习率为 0。"),
        )  # fmt: skip
        return
    for ending, keys in checked.survey.zero.items():
        count = checked.survey.endings[ending]
        yield Finding(
            "values.zero",
            Severity.NOTE if ending in NORMS else Severity.WARNING,
            Text(
                f"{ending}: {len(keys)} of {count} hold nothing but 0.",
                f"{ending}：{count} 个中有 {len(keys)} 个全为 0。",
            ),
            Text("These modules do nothing: they were not trained, or their rate was 0.",
                 "这些模块不起作用：没有训练，或学习率为 0。"),
            tuple(keys),
        )  # fmt: skip


def precision(checked: Checked) -> Iterator[Finding]:
    ranges = checked.survey.ranges
    stored = {dtype: found for dtype, found in ranges.items() if found.nonzero}
    if len(stored) > 1:
        told = ", ".join(stored)
        yield Finding(
            "dtype.mixed",
            Severity.NOTE,
            Text(f"The tensors are stored in several dtypes: {told}.", f"张量以多种精度保存：{told}。"),
        )
    for dtype, found in stored.items():
        yield from in_fp16(dtype, found)


def in_fp16(dtype: str, found: NumberRange) -> Iterator[Finding]:
    """What fp16 has done, or would do, to the numbers stored in a dtype."""
    small = found.share(found.small)
    if dtype == "F16" and small > MUCH:
        yield Finding(
            "dtype.small_in_fp16",
            Severity.WARNING,
            Text(
                f"{small:.0%} of the numbers are so small that fp16 has cut their digits.",
                f"{small:.0%} 的数太小，fp16 已丢掉它们的部分有效位。",
            ),
            Text("Save in bf16 or float32 (--save_precision).", "用 bf16 或 float32 保存（--save_precision）。"),
        )  # fmt: skip
    if found.large:
        yield Finding(
            "dtype.large_for_fp16",
            Severity.WARNING,
            Text(
                f"Numbers too large for fp16, where they become infinite: {found.large}.",
                f"{found.large} 个数超出 fp16 的范围，在 fp16 中会变成无穷。",
            ),
            Text("Do not convert the file to fp16, nor use it with a model in fp16.",
                 "不要把此文件转换为 fp16，也不要在 fp16 模型上使用。"),
        )  # fmt: skip
    elif dtype != "F16" and found.error(found.fp16_squares) > 0.01:
        lost = found.error(found.fp16_squares)
        yield Finding(
            "dtype.would_lose_in_fp16",
            Severity.NOTE,
            Text(
                f"In fp16 the numbers stored as {dtype} would be off by {lost:.1%}: many are very small.",
                f"以 {dtype} 保存的数若转换为 fp16 会偏差 {lost:.1%}：其中很多非常小。",
            ),
        )
