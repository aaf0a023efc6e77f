"""Why one file is weaker than another, in a few sentences: only from what the files hold and say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from library.anima_workshop.comparison import Compared
from library.anima_workshop.findings import Finding, Severity
from library.anima_workshop.training_facts import number_of, value_of
from library.reporting.texts import Text
from networks.workshop.comparing import RatioParts

ALIKE = 1.1
"""Ratios from 1 / ALIKE to ALIKE are told as about the same."""
UNRELATED = 0.05
"""Cosines below are told as a right angle: what is nearest is then as far as 0.999 of A's norm."""


@dataclass(frozen=True)
class Rate:
    """A number of the training that deltas grow with."""

    name: Text
    entries: tuple[str, ...]


RATES = (
    Rate(Text("steps", "步数"), ("steps", "max_train_steps")),
    Rate(Text("learning rate", "学习率"), ("unet_lr", "learning_rate")),
)


def findings_of(compared: Compared) -> list[Finding]:
    """Of each file beside the first, then what stands in no figure."""
    found = [f for i in range(1, compared.count) for f in beside_the_first(compared, i)]
    return [*found, *coverage(compared), *left_out(compared), *left_keys(compared)]


def beside_the_first(compared: Compared, i: int) -> Iterator[Finding]:
    ratio, label = compared.total.ratio(i, to=0), compared.labels[i]
    norms = f"{compared.total.norm(i):.4g} : {compared.total.norm(0):.4g}"
    if not ratio:
        which = label if not compared.total.norm(i) else compared.labels[0]
        text = Text(
            f"{which} changes nothing: its deltas are 0.", f"{which} 不起任何作用：增量全为 0。"
        )
        yield Finding("ratio.zero", Severity.WARNING, text)
        return
    yield Finding("ratio", Severity.NOTE, ratio_text(label, ratio, norms), strengths(compared, i))
    if parts := compared.comparison.parts_of_ratio(i, to=0):
        yield Finding("cause", Severity.NOTE, cause(compared, i, ratio, parts), folded(compared, i))
        yield Finding("training", Severity.NOTE, training(compared, i, parts))
    else:
        text = Text(f"{label} and A have no module in common.", f"{label} 与 A 没有共同的模块。")
        yield Finding("nothing_common", Severity.WARNING, text)


def ratio_text(label: str, ratio: float, norms: str) -> Text:
    if 1 / ALIKE <= ratio <= ALIKE:
        return Text(
            f"{label} is about as strong as A: {times(ratio)} (norms {norms}).",
            f"{label} 与 A 强度相近：{ratio:.3g} 倍（范数 {norms}）。",
        )
    return Text(
        f"{label} is {times(ratio)} as strong as A (norms {norms}).",
        f"{label} 的强度是 A 的 {ratio:.3g} 倍（范数 {norms}）。",
    )


def strengths(compared: Compared, i: int) -> Text:
    """At which strength one is like the other."""
    total, label = compared.total, compared.labels[i]
    same, nearest = total.ratio(0, to=i), total.nearest_strength(i, to=0)
    cosine = total.cosine(i, 0)
    assert same is not None and nearest is not None and cosine is not None, "neither is zero"
    if abs(cosine) < UNRELATED:
        return Text(
            f"At strength {same:.3g} {label} is as strong as A. Their directions are almost at right "
            f"angles (cosine {cosine:.2g}), so no strength makes them alike.",
            f"强度设为 {same:.3g} 时 {label} 与 A 一样强。两者方向几乎垂直（余弦 {cosine:.2g}），"
            "任何强度都不会让两者相似。",
        )
    return Text(
        f"At strength {same:.3g} {label} is as strong as A; at {nearest:.3g} it comes nearest to it "
        f"(least squares). Cosine of their directions: {cosine:.3g}, where 1 is the same.",
        f"强度设为 {same:.3g} 时 {label} 与 A 一样强；设为 {nearest:.3g} 时与 A 最接近（最小二乘）。"
        f"方向余弦 {cosine:.3g}，1 表示完全相同。",
    )


def cause(compared: Compared, i: int, ratio: float, parts: RatioParts) -> Text:
    """The ratio as a product, and which part of it matters most."""
    english = (
        f"{times(ratio)} = {parts.scale:.3g} by the scale x {parts.coverage:.3g} by modules that "
        f"only one has x {parts.factors:.3g} by the factors themselves."
    )
    chinese = (
        f"{ratio:.3g} 倍 = 缩放 {parts.scale:.3g} x 仅一方拥有的模块 {parts.coverage:.3g} x "
        f"因子本身 {parts.factors:.3g}。"
    )
    if 1 / ALIKE <= ratio <= ALIKE:
        return Text(english, chinese)
    label = compared.labels[i]
    scales = [common_scale(compared, n) for n in (i, 0)]
    counts = [len(compared.traits(n)) for n in (i, 0)]
    reasons = [
        (parts.scale, Text(f"alpha / rank is {scales[0]} in {label}, {scales[1]} in A",
                           f"{label} 的 alpha / rank 为 {scales[0]}，A 为 {scales[1]}")),
        (parts.coverage, Text(f"{label} has {counts[0]} modules, A {counts[1]}",
                              f"{label} 有 {counts[0]} 个模块，A 有 {counts[1]} 个")),
        (parts.factors, Text(f"the factors of {label} have grown {'more' if ratio > 1 else 'less'}",
                             f"{label} 的因子在训练中增长得{'更多' if ratio > 1 else '更少'}")),
    ]  # fmt: skip
    _, main = max(reasons, key=lambda reason: reason[0] if ratio > 1 else 1 / reason[0])
    return Text(f"Mostly this: {main.english}. {english}", f"主要原因：{main.chinese}。{chinese}")


def folded(compared: Compared, i: int) -> Text | None:
    """Where one of two files has no alphas: it may have had them."""
    without = [compared.labels[n] for n in (i, 0) if not has_alphas(compared, n)]
    if len(without) != 1:
        return None
    return Text(
        f"{without[0]} has no alpha: a scale that was put into its factors counts as factors here.",
        f"{without[0]} 没有 alpha：已并入因子的缩放在这里算作因子。",
    )


def has_alphas(compared: Compared, i: int) -> bool:
    """Also where there is nothing that would have one."""
    ranked = [traits for traits in compared.traits(i) if traits.rank is not None]
    return not ranked or any(traits.alpha is not None for traits in ranked)


def common_scale(compared: Compared, i: int) -> str:
    """The scale of most modules; 1 of those that have no rank."""
    found = compared.scales(i).most_common(1)
    return f"{found[0][0]:.3g}" if found else "1"


def training(compared: Compared, i: int, parts: RatioParts) -> Text:
    """What the files say of the training, beside what the factors have come to."""
    mine, theirs = (compared.comparison.files[n].metadata for n in (i, 0))
    kinds = [" + ".join(sorted(compared.kinds(n))) for n in (i, 0)]
    english, chinese = [], []
    if kinds[0] != kinds[1]:
        english.append(f"kinds {kinds[0]} : {kinds[1]}, whose factors grow differently")
        chinese.append(f"种类 {kinds[0]} : {kinds[1]}，其因子增长方式不同")
    ranks = [rank_text(compared, n) for n in (i, 0)]
    if ranks[0] != ranks[1]:
        english.append(f"rank {ranks[0]} : {ranks[1]}")
        chinese.append(f"秩 {ranks[0]} : {ranks[1]}")
    for rate in RATES:
        told = rate_text(rate, mine, theirs, parts.factors)
        english.append(told.english)
        chinese.append(told.chinese)
    optimizers = [value_of(metadata, "optimizer") for metadata in (mine, theirs)]
    if None not in optimizers and optimizers[0] != optimizers[1]:
        english.append("other optimizers, whose rates mean other things")
        chinese.append("优化器不同，学习率含义也不同")
    label = compared.labels[i]
    return Text(
        f"What the files say of the training, {label} : A: {'; '.join(english)}.",
        f"文件中的训练信息，{label} : A：{'；'.join(chinese)}。",
    )


def rank_text(compared: Compared, i: int) -> str:
    ranks = compared.ranks(i)
    return "/".join(str(rank) for rank, _ in ranks.most_common(3)) if ranks else "-"


def rate_text(
    rate: Rate, mine: Mapping[str, str], theirs: Mapping[str, str], factors: float
) -> Text:
    values = [number_of(metadata, *rate.entries) for metadata in (mine, theirs)]
    if values[0] is None or values[1] is None:
        silent = "A" if values[0] is not None else "it" if values[1] is not None else "neither"
        who = {"A": "A 未说明", "it": "它未说明", "neither": "两者都未说明"}[silent]
        says = {"A": "A does not say", "it": "it does not say", "neither": "neither says"}[silent]
        return Text(f"{rate.name.english}: {says}", f"{rate.name.chinese}：{who}")
    shown = f"{values[0]:g} : {values[1]:g}"
    if values[0] == values[1]:
        return Text(
            f"{rate.name.english} {values[0]:g}, the same",
            f"{rate.name.chinese} {values[0]:g}，相同",
        )
    ratio = values[0] / values[1]
    english = f"{rate.name.english} {shown} ({times(ratio)})"
    chinese = f"{rate.name.chinese} {shown}（{ratio:.3g} 倍）"
    if 1 / ALIKE <= factors <= ALIKE:
        return Text(english, chinese)
    if (ratio > 1) == (factors > 1):
        return Text(f"{english}, which fits", f"{chinese}，与因子大小一致")
    return Text(f"{english}, which would do the opposite", f"{chinese}，与因子大小相反")


def times(ratio: float) -> str:
    return f"{ratio:.3g} times"


def coverage(compared: Compared) -> Iterator[Finding]:
    """Modules that not all files have."""
    having = {
        files: count for files, count in compared.having().items() if len(files) < compared.count
    }
    if not having:
        return
    named = [
        ("+".join(compared.labels[i] for i in files), count) for files, count in having.items()
    ]
    places = tuple(
        f"{module.path}: {''.join(compared.labels[i] for i, t in enumerate(module.traits) if t)}"
        for module in compared.comparison.modules
        if not all(module.traits)
    )
    yield Finding(
        "coverage",
        Severity.NOTE,
        Text(
            "Not all files have all modules: "
            + ", ".join(f"{n} only in {who}" for who, n in named)
            + ".",
            "各文件的模块不同：" + "，".join(f"{n} 个仅在 {who} 中" for who, n in named) + "。",
        ),
        None,
        places,
    )


def left_out(compared: Compared) -> Iterator[Finding]:
    """Modules that could not be measured."""
    reasons = compared.comparison.left_out
    if not reasons:
        return
    advice = None
    if not compared.has_base and any(
        "base model" in r for each in reasons.values() for r in each.values()
    ):
        advice = Text("Give the base model's file with --base.", "用 --base 给出底模文件。")
    places = tuple(
        f"{path}: {compared.labels[i]} {reason}"
        for path, each in reasons.items()
        for i, reason in each.items()
    )
    yield Finding(
        "left_out",
        Severity.WARNING,
        Text(
            f"{len(reasons)} modules could not be measured and are in no figure, of any file.",
            f"{len(reasons)} 个模块无法测量，所有文件的数字都不包含它们。",
        ),
        advice,
        places,
    )


def left_keys(compared: Compared) -> Iterator[Finding]:
    """Keys that belong to no module."""
    for label, file in zip(compared.labels, compared.comparison.files):
        if file.left:
            yield Finding(
                "left_keys",
                Severity.NOTE,
                Text(
                    f"{label} has {len(file.left)} keys that belong to no module.",
                    f"{label} 有 {len(file.left)} 个键不属于任何模块。",
                ),
                None,
                tuple(f"{key}: {reason}" for key, reason in file.left.items()),
            )
