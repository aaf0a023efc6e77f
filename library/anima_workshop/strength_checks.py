"""Findings about what modules add: what does not fit, does nothing, or stands out of its kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from library.anima_workshop.checked import Checked
from library.anima_workshop.findings import Finding, Severity
from library.reporting.texts import Text
from networks.workshop.outliers import DEAD, EXPLODED, Outlier, outliers
from networks.workshop.survey import Measured

GIVE_BASE = Text("Give the base model with --base.", "用 --base 给出底模。")


def unfit(checked: Checked) -> Iterator[Finding]:
    """Factors that make no difference of a weight, or that of another shape; broken numbers and alphas
    are told elsewhere."""
    broken = checked.survey.broken.keys()
    found = [
        module
        for module in checked.survey.modules
        if module.problem
        and not module.waits
        and not broken & set(checked.file.entries[module.path].keys.values())
        and not (module.rank and module.alpha is not None and not abs(module.alpha) < float("inf"))
    ]
    if found:
        yield Finding(
            "modules.unfit",
            Severity.ERROR,
            Text(
                f"Modules with factors that do not fit: {len(found)}. ComfyUI leaves their weights as they are.",
                f"{len(found)} 个模块的因子不匹配；ComfyUI 会让这些权重保持不变。",
            ),
            None,
            tuple(f"{module.path}: {module.problem}" for module in found),
        )


def other_sizes(checked: Checked) -> Iterator[Finding]:
    """Without a base the published sizes are what is compared with."""
    shapes = checked.file.modules.shapes
    found = [m for m in checked.survey.modules if m.shape and m.shape != shapes[m.path]]
    if found and not checked.file.modules.is_exact:
        yield Finding(
            "modules.other_sizes",
            Severity.WARNING,
            Text(
                f"Modules for weights of other sizes than those of the published model: {len(found)}.",
                f"{len(found)} 个模块对应的权重尺寸与公开模型不同。",
            ),
            Text("If the file is for another base model, give that with --base.",
                 "如果文件用于其他底模，请用 --base 给出。"),
            tuple(f"{m.path}: {m.shape}, published {shapes[m.path]}" for m in found),
        )  # fmt: skip


def needing_base(checked: Checked) -> Iterator[Finding]:
    found = [module.path for module in checked.survey.modules if module.waits]
    if found:
        yield Finding(
            "modules.need_base",
            Severity.NOTE,
            Text(
                f"Modules that add what depends on the base model's weights: {len(found)}. They were not measured.",
                f"{len(found)} 个模块的作用取决于底模权重，未能测量。",
            ),
            GIVE_BASE,
            tuple(found),
        )


def not_decomposed(checked: Checked) -> Iterator[Finding]:
    found = [m.path for m in checked.linears if len(m.shape) == 2 and m.effective_rank is None]
    if found:
        yield Finding(
            "strength.not_decomposed",
            Severity.NOTE,
            Text(
                f"Modules whose singular values were not computed, since their matrices are large: {len(found)}.",
                f"因矩阵太大而没有计算奇异值的模块：{len(found)} 个。",
            ),
            None,
            tuple(found),
        )


def standing_out(checked: Checked) -> Iterator[Finding]:
    """Linears, then norms: among their like."""
    zero = {key for keys in checked.survey.zero.values() for key in keys}
    explained = {
        module.path
        for module in checked.survey.modules
        if module.alpha == 0 or zero & set(checked.file.entries[module.path].keys.values())
    }
    for modules, severity in ((checked.linears, Severity.WARNING), (checked.norms, Severity.NOTE)):
        norms = {m.path: m.norm for m in modules if m.norm is not None and m.path not in explained}
        found = outliers(norms, checked.parts)
        if found.dead:
            yield dead(found.dead, severity)
        if found.exploded:
            yield exploded(found.exploded)


def dead(found: Sequence[Outlier], severity: Severity) -> Finding:
    return Finding(
        "strength.dead",
        severity,
        Text(
            f"Modules that add nothing, or less than {DEAD:g} of what is usual for their kind in this file: {len(found)}.",
            f"{len(found)} 个模块不起作用，或强度不到本文件同类模块的 {DEAD:g}。",
        ),
        Text("They were hardly trained: see the learning rates of their part of the model.",
             "它们几乎没有训练：请检查模型这一部分的学习率。"),
        tuple(map(told, found)),
    )  # fmt: skip


def exploded(found: Sequence[Outlier]) -> Finding:
    return Finding(
        "strength.exploded",
        Severity.WARNING,
        Text(
            f"Modules over {EXPLODED:g} times as strong as is usual for their kind in this file: {len(found)}.",
            f"{len(found)} 个模块的强度超过本文件同类模块的 {EXPLODED:g} 倍。",
        ),
        Text("Take an earlier save, or train at a lower learning rate; scale_weight_norms limits them.",
             "改用更早保存的文件，或降低学习率；scale_weight_norms 可以限制它们。"),
        tuple(map(told, found)),
    )  # fmt: skip


def told(found: Outlier) -> str:
    ratio = "" if found.ratio is None else f", {found.ratio:.3g} times the median of its kind"
    return f"{found.path}: norm {found.norm:.3g}{ratio}"


def beside_the_base(checked: Checked) -> Iterator[Finding]:
    """What is a fact about any file, and what no fine-tuning does: a change larger than the weight."""
    ratios = [m.relative for m in checked.linears if m.relative is not None]
    if ratios:
        middle, most = median(ratios), max(ratios)
        yield Finding(
            "strength.of_base",
            Severity.NOTE,
            Text(
                f"The differences have {middle:.2%} of the norm of the base's weights (median of {len(ratios)} "
                f"modules; the largest {most:.2%}).",
                f"差值的范数是底模权重的 {middle:.2%}（{len(ratios)} 个模块的中位数；最大 {most:.2%}）。",
            ),
        )
    found = [m for m in checked.survey.modules if m.relative is not None and m.relative > 1]
    if found:
        yield Finding(
            "strength.larger_than_base",
            Severity.WARNING,
            Text(
                f"Modules that change a weight by more than its own norm: {len(found)}.",
                f"{len(found)} 个模块对权重的改变超过权重本身的范数。",
            ),
            Text("Use a lower strength, or an earlier save.", "降低使用强度，或改用更早保存的文件。"),
            tuple(map(beside, found)),
        )


def beside(module: Measured) -> str:
    return f"{module.path}: {module.relative:.3g} times the weight's norm"
