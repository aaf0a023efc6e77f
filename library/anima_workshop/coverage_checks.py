"""Findings about which modules a file has: targets, norms, the rest; and about keys that belong nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from library.anima_workshop.checked import Checked, is_of_text_encoder, part_of
from library.anima_workshop.findings import Finding, Severity
from library.reporting.strength import place_of
from library.reporting.texts import Text

CHOSEN = ("target_modules", "exclude_patterns", "include_patterns", "network_reg_lrs")
"""network_args by which the user chooses modules."""


@dataclass(frozen=True)
class Coverage:
    """How many of what a model has are in the file.

    targets:      (in the file, in the model): the Linears that are adapted by default
    norms:        likewise
    others:       modules of the DiT or LLM adapter that are neither
    text_encoder: its modules
    """

    targets: tuple[int, int]
    norms: tuple[int, int]
    others: int
    text_encoder: int


def coverage_of(checked: Checked) -> Coverage:
    modules = checked.file.modules
    norms = {path for path in modules.norms if not is_of_text_encoder(path)}
    text = [path for path in checked.modules if is_of_text_encoder(path)]
    targets, found = modules.targets & checked.modules.keys(), norms & checked.modules.keys()
    rest = len(checked.modules) - len(targets) - len(found) - len(text)
    return Coverage((len(targets), len(modules.targets)), (len(found), len(norms)), rest, len(text))


def missing(checked: Checked) -> Iterator[Finding]:
    """Targets that are not there: of a whole kind, as one may choose it; or in some blocks only."""
    parts: dict[str, list[str]] = {}
    for path in checked.file.modules.shapes:
        if path in checked.file.modules.targets:
            parts.setdefault(part_of(path), []).append(path)
    gone = {part: [p for p in paths if p not in checked.modules] for part, paths in parts.items()}
    whole = {part: paths for part, paths in gone.items() if paths and paths == parts[part]}
    if whole:
        count = sum(map(len, whole.values()))
        yield Finding(
            "coverage.kinds_missing",
            Severity.NOTE,
            Text(
                f"Targets of kinds that the file does not have at all: {count} of {len(checked.file.modules.targets)}.",
                f"{len(checked.file.modules.targets)} 个目标层中有 {count} 个属于文件里完全没有的种类。",
            ),
            None,
            tuple(f"{part}: all {len(paths)}" for part, paths in whole.items()),
        )
    holes = {part: paths for part, paths in gone.items() if paths and part not in whole}
    if holes:
        yield some_missing(holes, is_chosen(checked))


def some_missing(holes: dict[str, list[str]], chosen: bool) -> Finding:
    count = sum(map(len, holes.values()))
    return Finding(
        "coverage.blocks_missing",
        Severity.NOTE if chosen else Severity.WARNING,
        Text(
            f"Targets that are missing in some blocks, where other blocks have them: {count}.",
            f"{count} 个目标层只在部分块中缺失，其他块里有。",
        ),
        None if chosen else Text("If you did not choose it, the file is not whole: get it again.",
                                 "如果不是有意选择的，说明文件不完整：请重新获取。"),
        tuple(f"{part}: blocks {ranges(map(number_of, paths))}" for part, paths in holes.items()),
    )  # fmt: skip


def is_chosen(checked: Checked) -> bool:
    """Whether the file's settings, or its list of parts, say that not all are adapted."""
    arguments = checked.arguments or {}
    return bool(arguments.keys() & set(CHOSEN)) or "ss_adapted_parts" in checked.metadata


def number_of(path: str) -> int:
    return int(place_of(path)[0].rpartition(".")[2])


def ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 -> "0-2, 5"."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{a}-{b}" if a != b else f"{a}" for a, b in found)


def left(checked: Checked) -> Iterator[Finding]:
    """Keys that belong nowhere, by the reason."""
    reasons: dict[str, list[str]] = {}
    for key, reason in checked.file.left.items():
        kind = "names the same tensor as another key" if reason.startswith("names the same") else reason
        reasons.setdefault(kind, []).append(key)
    if not checked.modules:
        yield Finding(
            "keys.none",
            Severity.ERROR,
            Text("Nothing in this file belongs to Anima.", "文件里没有任何属于 Anima 的内容。"),
            Text("It is for another model.", "它是其他模型的文件。"),
        )
    for reason, keys in reasons.items():
        yield Finding(
            "keys.left",
            Severity.WARNING,
            Text(f"Keys that belong nowhere ({reason}): {len(keys)}.", f"不属于任何模块的键（{chinese(reason)}）：{len(keys)} 个。"),
            None,
            tuple(keys),
        )  # fmt: skip


REASONS: Sequence[tuple[str, str]] = (
    ("names the same tensor", "与另一个键指向同一个张量"),
    ("no factor of a", "不是 LoRA、LoKr 或归一化层差值的因子"),
    ("a whole ", "是完整的权重，不是差值"),
    ("the model has no such norm", "模型没有这个归一化层"),
    ("the model has no such module", "模型没有这个模块"),
    ("of a text encoder", "属于文本编码器，名称未知"),
    ("ambiguous", "名称有歧义"),
    ("stored as ", "保存的数据类型无法读取"),
    ("PEFT's DoRA", "PEFT 的 DoRA，不支持"),
    ("a convolution's LoKr", "卷积的 LoKr"),
)
"""How the decoder's reasons begin, in Chinese."""


def chinese(reason: str) -> str:
    return next((told for begin, told in REASONS if reason.startswith(begin)), reason)
