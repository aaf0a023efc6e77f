"""A checkup as figures and tables, for the console, for the page and as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from library.anima_workshop.checked import Checked
from library.anima_workshop.coverage_checks import coverage_of
from library.anima_workshop.findings import SEVERITIES, Finding, Severity, worst
from library.anima_workshop.metadata_checks import claims_of
from library.anima_workshop.metadata_numbers import number_in
from library.anima_workshop.page import Cell, Table, finite
from library.anima_workshop.reader_words import ANSWERS, told
from library.reporting.texts import Text
from networks.workshop.number_range import NumberRange
from networks.workshop.survey import Measured

FORMAT = "check_lora/v1"
TRUTH = {True: Text("true", "属实"), False: Text("false", "不实"), None: Text("-", "-")}


def figures_of(checked: Checked) -> list[tuple[Text, Cell]]:
    """What is told first; values are short."""
    coverage, modules = coverage_of(checked), checked.survey.modules
    ranks = [m.effective_rank for m in checked.linears if m.effective_rank is not None]
    ratios = [m.relative for m in checked.linears if m.relative is not None]
    of_linears = Counter(module.kind or "of no kind" for module in checked.linears)
    figures: list[tuple[Text, Cell]] = [
        (Text("kinds", "种类"), ", ".join(f"{kind} {n}" for kind, n in of_linears.most_common()) or "-"),
        (Text("rank", "秩"), spread(checked.ranks)),
        (Text("alpha / rank", "alpha / 秩"), spread(scales(checked.scaled))),
        (Text("stored in", "精度"), ", ".join(checked.survey.ranges) or "-"),
        (Text("targets", "目标层"), f"{coverage.targets[0]} / {coverage.targets[1]}"),
        (Text("norms", "归一化层"), f"{coverage.norms[0]} / {coverage.norms[1]}"),
        (Text("other modules", "其他模块"), coverage.others),
        (Text("norm of all differences", "全部差值的范数"), total_norm(modules)),
    ]
    if coverage.text_encoder:
        figures.append((Text("text encoder", "文本编码器"), coverage.text_encoder))
    if ratios:
        figures.append((Text("of the base's norm (median)", "占底模范数（中位数）"), f"{median(ratios):.2%}"))
    if ranks:
        figures.append((Text("effective rank (median)", "有效秩（中位数）"), round(median(ranks), 2)))
    if (steps := number_in(checked.metadata, "ss_steps")) is not None:
        figures.append((Text("steps", "步数"), f"{steps:.0f}"))
    return figures


def scales(modules: Iterable[Measured]) -> set[float]:
    """alpha / rank of those that have a rank."""
    found = {1.0 if m.alpha is None else m.alpha / m.rank for m in modules if m.rank}
    return {scale for scale in found if math.isfinite(scale)}


def spread(numbers: Iterable[float]) -> str:
    """One number, or the least and the largest."""
    found = sorted(numbers)
    if not found:
        return "-"
    return f"{found[0]:.4g}" if len(found) == 1 else f"{found[0]:.3g}-{found[-1]:.3g}"


def total_norm(modules: Iterable[Measured]) -> float:
    """Of all deltas as one."""
    return math.hypot(*(module.norm for module in modules if module.norm is not None))


def by_part(checked: Checked, modules: Iterable[Measured]) -> dict[str, list[Measured]]:
    parts: dict[str, list[Measured]] = {}
    for module in modules:
        parts.setdefault(checked.parts[module.path], []).append(module)
    return parts


def parts_table(checked: Checked, modules: Iterable[Measured]) -> Table:
    """Strength of modules by their kind."""
    columns = [Text("modules", "模块"), Text("count", "个数"), Text("norm: median", "范数：中位数"),
               Text("least", "最小"), Text("largest", "最大"), Text("effective rank", "有效秩")]  # fmt: skip
    if checked.base:
        columns.append(Text("of base", "占底模"))
    rows: list[list[Cell]] = []
    for part, members in by_part(checked, modules).items():
        norms = [m.norm for m in members if m.norm is not None]
        row: list[Cell] = [part, len(members), middle(norms), min(norms, default=None),
                           max(norms, default=None), middle(m.effective_rank for m in members)]  # fmt: skip
        if checked.base:
            row.append(middle(m.relative for m in members))
        rows.append(row)
    return Table(Text("strength by kind of module", "各类模块的强度"), columns, rows)


def middle(numbers: Iterable[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return median(known) if known else None


def numbers_table(checked: Checked) -> Table:
    """What the tensors are stored in, and what 16 bits would keep of them."""
    columns = [Text("stored in", "精度"), Text("numbers", "数的个数"), Text("zero", "为零"),
               Text("fp16: subnormal", "fp16：次正规数"), Text("fp16: to zero", "fp16：变为零"),
               Text("fp16: infinite", "fp16：变为无穷"), Text("fp16: error", "fp16：误差"),
               Text("bf16: error", "bf16：误差")]  # fmt: skip
    rows: list[list[Cell]] = []
    for dtype, found in checked.survey.ranges.items():
        rows.append([
            dtype, found.nonzero + found.zero + found.broken, found.zero,
            f"{found.share(found.small):.2%}", f"{found.share(found.lost):.2%}", found.large,
            f"{found.error(found.fp16_squares):.3%}", f"{found.error(found.bf16_squares):.3%}",
        ])  # fmt: skip
    return Table(Text("numbers, and what 16 bits keep of them", "数值与 16 位精度的损失"), columns, rows)


def claims_table(checked: Checked) -> Table:
    columns = [Text("entry", "条目"), Text("says", "内容"), Text("the file", "文件"), Text("", "")]
    rows: list[list[Cell]] = [
        [claim.entry, claim.says, claim.found, TRUTH[claim.is_true]] for claim in claims_of(checked)
    ]
    return Table(Text("metadata", "元数据"), columns, rows)


def readers_table(checked: Checked) -> Table:
    columns = [Text("program", "程序"), Text("takes", "读取"), Text("what it does not", "未读取的内容")]
    rows: list[list[Cell]] = [
        [verdict.reader.name, ANSWERS[verdict.answer], told(verdict)] for verdict in checked.verdicts
    ]
    return Table(Text("programs that read it", "各程序如何读取"), columns, rows)


def document_of(checked: Checked, findings: Sequence[Finding]) -> dict[str, Any]:
    """For other programs: no number in it is NaN or infinite."""
    severity = worst(findings)
    return {
        "format": FORMAT,
        "file": str(checked.file.path),
        "base": str(checked.base.path) if checked.base else None,
        "severity": SEVERITIES[severity].english,
        "exit_code": severity.exit_code,
        "findings": [finding_entry(finding) for finding in findings],
        "kinds": dict(checked.kinds),
        "coverage": asdict(coverage_of(checked)),
        "left": dict(checked.file.left),
        "norm": finite(total_norm(checked.survey.modules)),
        "modules": [module_entry(module) for module in checked.survey.modules],
        "numbers": {dtype: range_entry(found) for dtype, found in checked.survey.ranges.items()},
        "metadata": [
            {"entry": c.entry, "says": c.says, "found": c.found.english, "is_true": c.is_true}
            for c in claims_of(checked)
        ],
        "readers": {v.reader.id: {"takes": v.answer.name.lower(), "modules": v.taken,
                                  "findings": [f.id for f in v.findings]} for v in checked.verdicts},
    }  # fmt: skip


def finding_entry(finding: Finding) -> Mapping[str, Any]:
    return {
        "id": finding.id,
        "severity": SEVERITIES[Severity(finding.severity)].english,
        "english": finding.text.english,
        "chinese": finding.text.chinese,
        "advice": finding.advice.english if finding.advice else None,
        "where": list(finding.where),
    }


def module_entry(module: Measured) -> Mapping[str, Any]:
    found = asdict(module)
    for name in ("alpha", "norm", "effective_rank", "base"):
        found[name] = finite(found[name])
    found["relative"] = finite(module.relative)
    return found


def range_entry(found: NumberRange) -> Mapping[str, Any]:
    return {
        "nonzero": found.nonzero, "zero": found.zero, "not_finite": found.broken,
        "fp16_subnormal": found.small, "fp16_zero": found.lost, "fp16_infinite": found.large,
        "fp16_error": finite(found.error(found.fp16_squares)),
        "bf16_error": finite(found.error(found.bf16_squares)),
    }  # fmt: skip
