"""A comparison as a text for the console, as data, and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from library.anima_doctor.page import Page
from library.anima_workshop.checkup_text import lines_of, put
from library.anima_workshop.comparison import Compared
from library.anima_workshop.comparison_tables import (
    blocks_table,
    cosines_table,
    coverage_table,
    files_table,
    modules_table,
    parts_table,
    settings_table,
    strengths_table,
)
from library.anima_workshop.findings import Finding
from library.anima_workshop.page import AdapterPage, HeatMap, Table
from library.anima_workshop.training_facts import settings_of
from library.errors import visible
from library.reporting.texts import Text
from networks.workshop.comparing import Products

FORMAT = "adapter_comparison/v1"


def tables_of(compared: Compared) -> list[Table]:
    """In the order in which they are told."""
    found = [files_table(compared), strengths_table(compared)]
    found += [cosines_table(compared)] if compared.count > 2 else []
    found += [parts_table(compared), blocks_table(compared)]
    found += [table for table in (coverage_table(compared), settings_table(compared)) if table]
    return found


def text_of(compared: Compared, findings: Sequence[Finding], *, in_chinese: bool) -> str:
    """For the console. in_chinese: it can show Chinese too."""
    page = Page()
    for table in tables_of(compared):
        put(page, table)
    page.heading("In words", "结论")
    for finding in findings:
        for line in lines_of(finding, in_chinese=in_chinese):
            page.line(f"  {line}")
    return visible("\n".join(page.lines).lstrip("\n"), keep="\n")


def page_of(compared: Compared, findings: Sequence[Finding]) -> AdapterPage:
    """The page, with a heat map for norms and one for what is between the files."""
    total, labels = compared.total, compared.labels
    modules = compared.comparison.modules
    paths, others = [module.path for module in modules], range(1, compared.count)
    norms = {
        f"{labels[i]} {compared.names[i]}": [
            module.products.norm(i) if module.traits[i] else None for module in modules
        ]
        for i in range(compared.count)
    }
    cosines = {
        f"{labels[i]} {compared.names[i]}": [module.products.cosine(i, 0) for module in modules]
        for i in others
    }
    maps = [
        HeatMap(Text("Strength of each module", "各模块的强度"),
                Text("Frobenius norm of the delta at strength 1, alpha and scale included",
                     "强度为 1 时增量的 Frobenius 范数，含 alpha 与缩放"), paths, norms),
        HeatMap(Text("Direction of each module beside A", "各模块与 A 的方向"),
                Text("cosine of the deltas: 1 the same, 0 nothing in common, -1 the opposite",
                     "增量的余弦：1 相同，0 无关，-1 相反"), paths, cosines, most=1.0),
    ]  # fmt: skip
    figures = [
        (Text(f"norm of {labels[i]}", f"{labels[i]} 的范数"), total.norm(i))
        for i in range(compared.count)
    ]
    figures += [
        (Text(f"{labels[i]} in times A", f"{labels[i]} 是 A 的倍数"), total.ratio(i, to=0) or 0.0)
        for i in others
    ]
    return AdapterPage(
        title=" : ".join(compared.names),
        figures=figures,
        findings=findings,
        parts=[*tables_of(compared)[:2], *maps, *tables_of(compared)[2:], modules_table(compared)],
        verdict=Text("comparison", "比较"),
    )


def data_of(compared: Compared, findings: Sequence[Finding]) -> dict[str, Any]:
    """All figures, for programs. Files are named by their numbers."""
    comparison = compared.comparison
    return {
        "format": FORMAT,
        "files": [
            {
                "path": str(file.path),
                "kinds": dict(compared.kinds(i)),
                "ranks": {str(rank): n for rank, n in compared.ranks(i).items()},
                "scales": {f"{scale:g}": n for scale, n in compared.scales(i).items()},
                "keys_left": dict(file.left),
            }
            for i, file in enumerate(comparison.files)
        ],
        "total": figures_of(compared.total, compared.count),
        "parts": {g.name: figures_of(comparison.total(g.modules), compared.count) for g in compared.parts},
        "blocks": {g.name: figures_of(comparison.total(g.modules), compared.count) for g in compared.blocks},
        "modules": {
            module.path: {
                **figures_of(module.products, compared.count),
                "in": [bool(traits) for traits in module.traits],
                "norm_of_base": module.base,
            }
            for module in comparison.modules
        },
        "left_out": {path: {str(i): why for i, why in each.items()} for path, each in comparison.left_out.items()},
        "settings": {
            setting.entry: list(setting.values)
            for setting in settings_of([file.metadata for file in comparison.files])
        },
        "findings": [
            {"id": f.id, "english": f.text.english, "chinese": f.text.chinese, "where": list(f.where)}
            for f in findings
        ],
    }  # fmt: skip


def figures_of(products: Products, count: int) -> dict[str, Any]:
    """Norms, and what each file is beside the first."""
    files = range(count)
    return {
        "norms": [products.norm(i) for i in files],
        "cosines": [[products.cosine(i, j) for j in files] for i in files],
        "times_first": [products.ratio(i, to=0) for i in files],
        "distance_from_first": [products.distance(i, to=0) for i in files],
        "strength_as_strong_as_first": [products.ratio(0, to=i) for i in files],
        "strength_nearest_to_first": [products.nearest_strength(i, to=0) for i in files],
    }
