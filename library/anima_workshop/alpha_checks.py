"""Findings about alpha: numerator of the scale by which programs multiply what the factors make."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from library.anima_workshop.checked import Checked
from library.anima_workshop.findings import Finding, Severity
from library.anima_workshop.metadata_numbers import number_in
from library.reporting.texts import Text
from networks.kinds.kind import FULL_MATRIX_DIM
from networks.workshop.survey import Measured
from networks.workshop.writing import MADE_FROM

OWN_RANKS = ("network_reg_dims", "network_reg_alphas", "block_dims", "block_alphas")
"""network_args by which modules have ranks or alphas of their own."""
ROUNDING = 0.01
"""Of an alpha stored in 16 bits, and more."""


def alphas(checked: Checked) -> Iterator[Finding]:
    ranked = [module for module in checked.scaled if module.rank]
    given = [module for module in ranked if module.alpha is not None]
    yield from missing(ranked, given)
    odd = [m for m in given if m.alpha is not None and not math.isfinite(m.alpha)]
    yield from told("alpha.not_finite", Severity.ERROR, odd,
                    "Alpha is infinite or no number: the scale is too.", "alpha 为无穷或不是数：缩放也随之无效。")  # fmt: skip
    zero = [m for m in given if m.alpha == 0]
    yield from told("alpha.zero", Severity.ERROR, zero,
                    "Alpha is 0: ComfyUI gives these modules the scale 0, and they do nothing.",
                    "alpha 为 0：ComfyUI 会把这些模块的缩放当作 0，它们不起作用。")  # fmt: skip
    below = [m for m in given if m.alpha is not None and -math.inf < m.alpha < 0]
    yield from told("alpha.negative", Severity.WARNING, below,
                    "Alpha is below 0: these modules do the opposite of what their factors say.",
                    "alpha 为负：这些模块的作用与因子相反。")  # fmt: skip
    yield from of_full_matrices([m for m in checked.scaled if m.kind and not m.rank])
    yield from beside_metadata(checked, ranked, given)


def told(
    id: str, severity: Severity, modules: Sequence[Measured], english: str, chinese: str
) -> Iterator[Finding]:
    if modules:
        places = tuple(f"{m.path}: alpha {m.alpha:g}, rank {m.rank or 'none'}" for m in modules)
        text = Text(f"{english} Modules: {len(modules)}.", f"{chinese}模块：{len(modules)} 个。")
        yield Finding(id, severity, text, None, places)


def missing(ranked: Sequence[Measured], given: Sequence[Measured]) -> Iterator[Finding]:
    without = [module.path for module in ranked if module.alpha is None]
    if without and given:
        yield Finding(
            "alpha.missing",
            Severity.WARNING,
            Text(
                f"{len(without)} of {len(ranked)} modules have no alpha, so that their scale is 1; the others have one.",
                f"{len(ranked)} 个模块中有 {len(without)} 个没有 alpha（缩放为 1），其余的有。",
            ),
            None,
            tuple(without),
        )
    elif without:
        yield Finding(
            "alpha.none",
            Severity.NOTE,
            Text("There is no alpha: every scale is 1, as PEFT and diffusers write files.",
                 "没有 alpha：所有缩放为 1，PEFT 和 diffusers 的文件就是这样。"),
        )  # fmt: skip


def of_full_matrices(modules: Sequence[Measured]) -> Iterator[Finding]:
    """Where all matrices of a LoKr are full, the scale is 1 whatever alpha is."""
    odd = [
        m for m in modules if m.alpha is not None and (m.alpha == 0 or not math.isfinite(m.alpha))
    ]
    yield from told(
        "alpha.odd_of_full", Severity.WARNING, odd,
        "Alpha means nothing where all matrices are full, but what divides by it breaks "
        "(ComfyUI where it applies a LoKr beside the weight).",
        "矩阵都完整时 alpha 没有意义，但除以它的程序会出错（ComfyUI 不合并权重而直接应用 LoKr 时）。",
    )  # fmt: skip
    idle = [m for m in modules if m.alpha not in (None, 0, 1) and m not in odd]
    yield from told(
        "alpha.idle_of_full", Severity.NOTE, idle,
        "Alpha means nothing where all matrices are full: the scale is 1.",
        "矩阵都完整时 alpha 没有意义：缩放为 1。",
    )  # fmt: skip


def beside_metadata(
    checked: Checked, ranked: Sequence[Measured], given: Sequence[Measured]
) -> Iterator[Finding]:
    """The scale that training had, by its settings, and the one that programs will use."""
    expected = trained_scale(checked)
    if expected is None or has_own_ranks(checked):
        return
    if ranked and not given and abs(expected - 1) > ROUNDING:
        yield Finding(
            "alpha.folded",
            Severity.NOTE,
            Text(
                f"Training had the scale {expected:g} (alpha / rank). It must be in the factors already: "
                "without alpha they are applied as they are.",
                f"训练时的缩放为 {expected:g}（alpha / 秩）。没有 alpha 时因子按原样应用，所以缩放必须已经乘入因子。",
            ),
        )
    off = [m for m in given if scale_is_off(m, expected)]
    severity = Severity.NOTE if MADE_FROM in checked.metadata else Severity.WARNING
    yield from told(
        "alpha.other_scale", severity, off,
        f"Alpha / rank is not {expected:g}, which the metadata says training had.",
        f"alpha / 秩 不等于元数据所说的训练值 {expected:g}。",
    )  # fmt: skip


def has_own_ranks(checked: Checked) -> bool:
    """Whether the settings give modules ranks or alphas of their own."""
    return bool((checked.arguments or {}).keys() & set(OWN_RANKS))


def trained_scale(checked: Checked) -> float | None:
    """ss_network_alpha / ss_network_dim; an alpha of 0, or none, is the rank."""
    dim = number_in(checked.metadata, "ss_network_dim")
    if dim is None or not 0 < dim < FULL_MATRIX_DIM or "ss_network_alpha" not in checked.metadata:
        return None
    alpha = number_in(checked.metadata, "ss_network_alpha")
    return alpha / dim if alpha else 1.0


def scale_is_off(module: Measured, expected: float) -> bool:
    if not module.rank or module.alpha is None or not math.isfinite(module.alpha):
        return False
    return module.alpha != 0 and abs(module.alpha / module.rank / expected - 1) > ROUNDING
