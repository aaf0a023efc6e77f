"""The page of a checkup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from library.anima_workshop.checked import Checked
from library.anima_workshop.checkup_tables import (
    by_part,
    claims_table,
    figures_of,
    numbers_table,
    parts_table,
    readers_table,
)
from library.anima_workshop.findings import Finding
from library.anima_workshop.page import AdapterPage, Cell, Curves, HeatMap, Table
from library.reporting.texts import Text
from networks.workshop.survey import Measured

CURVES = 8
"""Lines of a chart that can be told apart."""


def page_of(checked: Checked, findings: Sequence[Finding]) -> AdapterPage:
    return AdapterPage(
        title=checked.file.path.name,
        figures=figures_of(checked),
        findings=findings,
        parts=[
            *heat_maps(checked),
            *singular_values(checked),
            parts_table(checked, checked.survey.modules),
            readers_table(checked),
            claims_table(checked),
            numbers_table(checked),
            modules_table(checked),
        ],
        intro=intro(checked),
    )


def intro(checked: Checked) -> Text:
    if checked.base:
        name = checked.base.path.name
        return Text(f"Compared with the base model {name}.", f"与底模 {name} 比较。")
    return Text(
        "No base model was given: sizes and numbers of modules are those of the published one.",
        "没有给出底模：模块的尺寸和数量按公开模型计算。",
    )


def heat_maps(checked: Checked) -> Iterator[HeatMap]:
    norm = Text("Frobenius norm of the weight difference at strength 1", "强度为 1 时权重差的 Frobenius 范数")
    for modules, title in (
        (checked.linears, Text("strength by block and layer", "各块各层的强度")),
        (checked.norms, Text("strength of the norms", "归一化层的强度")),
    ):
        if any(module.norm for module in modules):
            yield heat_map(title, norm, modules, [module.norm for module in modules])
    relative = [module.relative for module in checked.linears]
    if any(relative):
        note = Text("norm of the difference / norm of the base's weight", "差值的范数 / 底模权重的范数")
        yield heat_map(Text("strength beside the base", "相对于底模的强度"), note, checked.linears, relative)
    ranks = [module.effective_rank for module in checked.linears]
    if any(ranks):
        note = Text(
            "exp of the entropy of the singular values as shares of their sum (Roy and Vetterli 2007): "
            "1 for one direction, n for n equally strong ones",
            "奇异值占总和比例的熵的指数（Roy 与 Vetterli 2007）：1 表示一个方向，n 表示 n 个同样强的方向",
        )
        yield heat_map(Text("effective rank", "有效秩"), note, checked.linears, ranks)


def heat_map(
    title: Text, note: Text, modules: Iterable[Measured], values: Sequence[float | None]
) -> HeatMap:
    return HeatMap(title, note, [module.path for module in modules], {"": values})


def singular_values(checked: Checked) -> Iterator[Curves]:
    """By kind of module: those with the strongest singular values, the mean over the blocks."""
    lines = {
        part: mean_values(modules)
        for part, modules in by_part(checked, checked.linears).items()
        if any(len(module.values) > 1 for module in modules)
    }
    strongest = sorted(lines, key=lambda part: -max(lines[part]))[:CURVES]
    if not strongest:
        return
    yield Curves(
        Text("singular values by kind of module", "各类模块的奇异值"),
        Text(
            f"Means over the blocks, the largest {max(map(len, lines.values()))} at most. A steep curve "
            "says that fewer ranks would do.",
            f"各块的平均值，最多显示最大的 {max(map(len, lines.values()))} 个。曲线陡说明更小的秩就够了。",
        ),
        Text("number of the singular value", "奇异值序号"),
        {part: lines[part] for part in lines if part in strongest},
    )


def mean_values(modules: Sequence[Measured]) -> list[float]:
    """Of the first, second, ... singular value; one that a module does not have is 0."""
    known = [module.values for module in modules if module.values]
    longest = max(map(len, known))
    return [sum(v[i] for v in known if i < len(v)) / len(known) for i in range(longest)]


def modules_table(checked: Checked) -> Table:
    columns = [Text("module", "模块"), Text("kind", "种类"), Text("rank", "秩"), Text("alpha", "alpha"),
               Text("norm", "范数"), Text("largest singular value", "最大奇异值"),
               Text("effective rank", "有效秩"), Text("of base", "占底模")]  # fmt: skip
    rows: list[list[Cell]] = [
        [m.path, m.kind, m.rank, m.alpha, m.norm, m.values[0] if m.values else None,
         m.effective_rank, m.relative]
        for m in checked.survey.modules
    ]  # fmt: skip
    return Table(Text("all modules", "全部模块"), columns, rows, is_closed=True)
