"""A comparison as tables: for the console and for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from library.anima_workshop.comparison import Compared, Group, files_of
from library.anima_workshop.page import Cell, Table
from library.anima_workshop.tables import name_of
from library.anima_workshop.training_facts import settings_of
from library.reporting.texts import Text
from library.utils import first_few

SHOWN = 3
MODULES = Text("modules", "模块数")


def files_table(compared: Compared) -> Table:
    """What each label stands for, and how the file is made."""
    columns = [Text.same(""), Text("file", "文件"), Text("kind", "种类"), MODULES,
               Text("rank", "秩"), Text("scale", "缩放"), Text("stored as", "存储精度")]  # fmt: skip
    rows: list[Sequence[Cell]] = []
    for i, label in enumerate(compared.labels):
        dtypes = Counter(dtype for traits in compared.traits(i) for dtype in traits.dtypes)
        scales = Counter(f"{scale:.4g}" for scale in compared.scales(i).elements())
        row: list[Cell] = [label, compared.names[i], listed(compared.kinds(i))]
        row += [len(compared.traits(i)), listed(compared.ranks(i)), listed(scales), listed(dtypes)]
        rows.append(row)
    return Table(Text("Files", "文件"), columns, rows)


def listed(counts: Counter[str] | Counter[int]) -> str:
    """The most frequent first."""
    names = [str(name) for name, _ in counts.most_common()]
    return first_few(names, SHOWN) or "-"


def strengths_table(compared: Compared) -> Table:
    """All modules together, beside the first file."""
    columns = [Text.same(""), Text("norm of all", "总范数")]
    base = compared.comparison.base_norm() if compared.has_base else None
    if base:
        columns.append(Text("% of the base", "占底模 %"))
    columns += [
        Text("times A", "A 的倍数"), Text("cosine with A", "与 A 的余弦"),
        Text("distance from A", "与 A 的距离"), Text("strength to be as strong", "同强所需强度"),
        Text("strength to be nearest", "最接近所需强度"),
    ]  # fmt: skip
    total, rows = compared.total, []
    for i, label in enumerate(compared.labels):
        row: list[Cell] = [label, total.norm(i), *([100 * total.norm(i) / base] if base else [])]
        row += [total.ratio(i, to=0), total.cosine(i, 0), total.distance(i, to=0)]
        rows.append([*row, total.ratio(0, to=i), total.nearest_strength(i, to=0)])
    return Table(Text("Strength of all deltas together", "所有增量合计的强度"), columns, rows)


def cosines_table(compared: Compared) -> Table:
    """Of every pair."""
    columns = [Text.same(""), *map(Text.same, compared.labels)]
    rows: list[Sequence[Cell]] = [
        [label, *(compared.total.cosine(i, j) for j in range(compared.count))]
        for i, label in enumerate(compared.labels)
    ]
    return Table(Text("Cosine of every pair", "两两余弦"), columns, rows)


def parts_table(compared: Compared) -> Table:
    title = Text("By the name of the module, all blocks together", "按模块名（各块合计）")
    return groups_table(compared, title, compared.parts)


def blocks_table(compared: Compared) -> Table:
    return groups_table(compared, Text("By block", "按块"), compared.blocks)


def modules_table(compared: Compared) -> Table:
    groups = [Group(module.path, [module]) for module in compared.comparison.modules]
    return groups_table(compared, Text("By module", "按模块"), groups, is_closed=True)


def groups_table(
    compared: Compared, title: Text, groups: Iterable[Group], *, is_closed: bool = False
) -> Table:
    """Each file's norm, of the base's if there is one; ratio and cosine beside the first."""
    labels, others = compared.labels, range(1, compared.count)
    unit = Text("% of base", "占底模 %") if compared.has_base else Text("norm", "范数")
    columns = [Text.same(""), MODULES]
    columns += [Text(f"{unit.english} {one}", f"{unit.chinese} {one}") for one in labels]
    columns += [Text.same(f"{labels[i]} / A") for i in others]
    columns += [Text(f"cosine {labels[i]}", f"余弦 {labels[i]}") for i in others]
    rows: list[Sequence[Cell]] = []
    for group in groups:
        found = compared.comparison.total(group.modules)
        base = compared.comparison.base_norm(group.modules)
        row: list[Cell] = [group.name, len(group.modules)]
        for i in range(compared.count):
            is_there = any(module.traits[i] for module in group.modules)
            row.append(strength(found.norm(i), base) if is_there else None)
        row += [found.ratio(i, to=0) for i in others]
        rows.append([*row, *(found.cosine(i, 0) for i in others)])
    return Table(title, columns, rows, is_closed=is_closed)


def strength(norm: float, base: float | None) -> float:
    """Of the base's own norm in percent, where there is one."""
    return 100 * norm / base if base else norm


def coverage_table(compared: Compared) -> Table | None:
    """Which files have how many modules; None where all have all."""
    having = compared.having()
    if len(having) < 2:
        return None
    columns = [Text("in", "所在文件"), MODULES, Text("which", "哪些")]
    rows: list[Sequence[Cell]] = []
    for files, count in having.most_common():
        own = [m.path for m in compared.comparison.modules if files_of(m) == files]
        names = list(dict.fromkeys(name_of(path) for path in own))
        who = " ".join(compared.labels[i] for i in files)
        rows.append([who, count, first_few(names, SHOWN)])
    return Table(Text("Coverage", "覆盖范围"), columns, rows)


def settings_table(compared: Compared) -> Table | None:
    """What the metadata says, that which differs first; None where it says nothing."""
    settings = settings_of([file.metadata for file in compared.comparison.files])
    columns = [Text("setting", "设置"), *map(Text.same, compared.labels), Text("the same", "相同")]
    rows: list[Sequence[Cell]] = [
        [setting.name, *setting.shown, Text.same("") if setting.differs else Text("yes", "是")]
        for setting in settings
    ]
    return Table(Text("Settings", "训练设置"), columns, rows) if rows else None
