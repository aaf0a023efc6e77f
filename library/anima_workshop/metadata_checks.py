"""What a file's metadata claims, beside what its tensors are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from library.anima_runtime.family import ANIMA_FILES, MODULES
from library.anima_workshop.alpha_checks import has_own_ranks
from library.anima_workshop.checked import Checked, json_object, plain_kind
from library.anima_workshop.findings import Finding, Severity
from library.anima_workshop.metadata_numbers import number_in
from library.reporting.strength import place_of
from library.reporting.texts import Text
from library.saving.metadata_table import adapted_parts
from library.utils import first_few
from networks.kinds.kind import FULL_MATRIX_DIM
from networks.kinds.lokr import factorize
from networks.workshop.writing import MADE_FROM

LONGEST_SHOWN = 60
FULL = Text("no effect: all matrices are full", "不起作用：矩阵都是完整的")
UNREAD = Text("cannot be read", "无法读取")
AS_SAID = Text("as it says", "一致")


@dataclass(frozen=True)
class Claim:
    """An entry of the metadata. says: its value, shortened; found: what the file has instead

    is_true: None where nothing in the file speaks for or against it
    """

    entry: str
    says: str
    found: Text
    is_true: bool | None


def claims_of(checked: Checked) -> list[Claim]:
    """Of the entries that there are, those that can be compared with the tensors."""
    found = []
    for entry, claim in CLAIMS.items():
        if entry not in checked.metadata:
            continue
        is_true, told = claim(checked, checked.metadata[entry])
        found.append(Claim(entry, shortened(checked.metadata[entry]), told, is_true))
    return found


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


Answer = tuple[bool | None, Text]


def module_claim(checked: Checked, says: str) -> Answer:
    kinds = {plain_kind(module) for module in checked.scaled}
    named = kind_named(says, checked.arguments or {})
    found = Text.same(" + ".join(sorted(kinds)) or "-")
    if checked.arguments and "network_reg_kinds" in checked.arguments:
        return (None if named is None or not kinds else named in kinds), found
    return (None if named is None or not kinds else kinds == {named}), found


def kind_named(module: str, arguments: Mapping[str, object]) -> str | None:
    """The kind that a --network_module trains, of this program or of others; None where none is known."""
    if module in MODULES:
        return MODULES[module]
    own = str(arguments.get("algo", "")).lower() if "lycoris" in module.lower() else module.lower()
    return next((kind for kind in ("LoKr", "LoHa", "OFT", "LoRA") if kind.lower() in own), None)


def dim_claim(checked: Checked, says: str) -> Answer:
    number = number_in(checked.metadata, "ss_network_dim")
    if not checked.ranks:
        return None, FULL if checked.scaled else Text.same("-")
    found = ", ".join(f"{rank:g}" for rank in sorted(checked.ranks)[:8])
    ranks = Text(f"ranks {found}", f"秩为 {found}")
    if says.lower() == "dynamic" or has_own_ranks(checked):
        return None, ranks
    return number is not None and (number in checked.ranks or number >= FULL_MATRIX_DIM), ranks


def alpha_claim(checked: Checked, says: str) -> Answer:
    """Against the alphas that are stored; a file without them has it in its factors, or not at all."""
    ranked = [module for module in checked.scaled if module.rank]
    stored = sorted({m.alpha for m in ranked if m.alpha is not None and m.alpha == m.alpha})
    if not ranked:
        return None, FULL if checked.scaled else Text.same("-")
    if not stored:
        return None, Text("no alpha is stored", "没有保存 alpha")
    number = number_in(checked.metadata, "ss_network_alpha")
    found = Text.same(", ".join(f"{alpha:g}" for alpha in stored[:8]))
    if has_own_ranks(checked):
        return None, found
    if not number:  # none, or 0: the rank
        return all(m.alpha in (None, m.rank) for m in ranked), found
    return any(abs(alpha / number - 1) < 0.01 for alpha in stored), found


def args_claim(checked: Checked, says: str) -> Answer:
    """What can be seen of arguments in the tensors."""
    arguments = checked.arguments
    if arguments is None:
        return False, UNREAD
    factor = next((arguments[n] for n in ("lokr_factor", "factor") if n in arguments), None)
    if factor is None:
        return None, Text("-", "-")
    if wrong_factor(checked, str(factor)):
        return False, Text("other sizes of lokr_w1", "lokr_w1 的尺寸不符")
    return True, AS_SAID


def wrong_factor(checked: Checked, text: str) -> bool:
    """Whether a LoKr's matrices are none that this factor makes."""
    if not re.fullmatch(r"-?\d{1,6}", text):
        return False
    for module in checked.scaled:
        stored = checked.file.stored(module.path)
        if "lokr_w1" in stored and len(module.shape) == 2:
            expected = tuple(factorize(size, int(text))[0] for size in module.shape)
            if stored["lokr_w1"].shape != expected:
                return True
    return False


def architecture_claim(checked: Checked, says: str) -> Answer:
    is_ours = ANIMA_FILES.name in says.lower()
    return is_ours, AS_SAID if is_ours else Text(f"expected {ANIMA_FILES.name}", f"应为 {ANIMA_FILES.name}")


def resolution_claim(checked: Checked, says: str) -> Answer:
    is_form = re.fullmatch(r"[0-9]{1,6}x[0-9]{1,6}", says) is not None
    return (None if is_form else False), Text("-", "-") if is_form else Text(
        "expected the form 1024x1024", "格式应为 1024x1024"
    )


def hash_claim(checked: Checked, says: str) -> Answer:
    is_true = says.lower() == checked.digest
    return is_true, AS_SAID if is_true else Text(
        f"{checked.digest[:12]}...: the tensors are not those it was written with",
        f"{checked.digest[:12]}...：张量与写入时不同",
    )


def steps_claim(checked: Checked, says: str) -> Answer:
    number = number_in(checked.metadata, "ss_steps")
    if number is None or number < 0:
        return False, UNREAD
    is_trained = any(module.norm or module.norm is None for module in checked.survey.modules)
    contradicts = (number == 0) == is_trained
    found = Text("the file changes something", "文件有作用") if is_trained else Text("it changes nothing", "文件不起作用")
    return not contradicts, found


def blocks_claim(checked: Checked, says: str) -> Answer:
    number = number_in(checked.metadata, "ss_num_blocks")
    if number is None:
        return False, UNREAD
    if checked.base:
        count = checked.base.params.num_blocks
        return number == count, Text(f"the base has {count}", f"底模有 {count} 个")
    own = [place_of(path)[0] for path in checked.modules]
    last = max((int(b[7:]) for b in own if re.fullmatch(r"blocks\.\d+", b)), default=-1)
    return (None if last < number else False), Text(f"the last one is {last}", f"最后一个是 {last}")


def parts_claim(checked: Checked, says: str) -> Answer:
    told = json_object(says)
    if told is None:
        return False, UNREAD
    found = adapted_parts(checked.modules)
    if told == found:
        return True, AS_SAID
    other = [name for name in sorted({*told, *found}) if told.get(name) != found.get(name)]
    first = json.dumps({name: found.get(name, 0) for name in other[:3]})
    return False, Text(f"{len(other)} differ: {first}", f"{len(other)} 处不同：{first}")


CLAIMS: dict[str, Callable[[Checked, str], Answer]] = {
    "ss_network_module": module_claim,
    "ss_network_dim": dim_claim,
    "ss_network_alpha": alpha_claim,
    "ss_network_args": args_claim,
    "ss_num_blocks": blocks_claim,
    "ss_adapted_parts": parts_claim,
    "ss_steps": steps_claim,
    "ss_base_model_version": architecture_claim,
    "modelspec.architecture": architecture_claim,
    "modelspec.resolution": resolution_claim,
    "sshs_model_hash": hash_claim,
}
"""Entry -> whether it is true, and what the file has."""


def false_claims(checked: Checked) -> Iterator[Finding]:
    for claim in claims_of(checked):
        if claim.is_true is False:
            yield Finding(
                f"metadata.{claim.entry}",
                Severity.WARNING,
                Text(
                    f"{claim.entry} says {claim.says}; the file: {claim.found.english}.",
                    f"{claim.entry} 写的是 {claim.says}；文件：{claim.found.chinese}。",
                ),
                where=(claim.entry,),
            )


def trained(checked: Checked) -> Iterator[Finding]:
    """How it was trained, as far as the file says; and what was trained and is not in it."""
    if not any(name.startswith("ss_") for name in checked.metadata):
        yield Finding(
            "metadata.none",
            Severity.NOTE,
            Text("The file says nothing of its training.", "文件没有任何训练信息。"),
        )
        return
    if made := made_from(checked.metadata):
        yield Finding("metadata.made_from", Severity.NOTE, made)
    if told := training_of(checked.metadata):
        yield Finding("metadata.training", Severity.NOTE, told)
    arguments = checked.arguments or {}
    for name, modules, english, chinese in (
        ("train_norm", checked.norms, "Norms", "归一化层"),
        ("train_llm_adapter", llm_adapter(checked), "Modules of the LLM adapter", "LLM adapter 的模块"),
    ):
        if str(arguments.get(name)).lower() == "true" and not modules and checked.modules:
            yield Finding(
                f"metadata.{name}",
                Severity.NOTE,
                Text(f"{english} were to be trained ({name}) and are not in this file.",
                     f"训练设置包含{chinese}（{name}），但文件里没有。"),
            )  # fmt: skip


def made_from(metadata: Mapping[str, str]) -> Text | None:
    """By which tool, of which files, as the file says; None where it does not."""
    told = json_object(metadata.get(MADE_FROM, "{}")) or {}
    tool, files = told.get("tool"), told.get("files")
    if not isinstance(tool, str) or not isinstance(files, list):
        return None
    names = first_few([shortened(str(file)) for file in files], 3)
    return Text(f"Made by {shortened(tool)} of {names}.", f"由 {shortened(tool)} 从 {names} 制作。")


def llm_adapter(checked: Checked) -> list[str]:
    return [path for path in checked.modules if path.startswith(f"{ANIMA_FILES.front}.")]


def training_of(metadata: Mapping[str, str]) -> Text | None:
    """Steps, epochs, pictures and rate in one sentence; None where the steps are not told."""
    steps, total = number_in(metadata, "ss_steps"), number_in(metadata, "ss_max_train_steps")
    if steps is None:
        return None
    english, chinese = f"Trained {steps:.0f} steps", f"训练了 {steps:.0f} 步"
    if total and total != steps:
        english, chinese = f"{english} of {total:.0f}", f"{chinese}（计划 {total:.0f} 步）"
    for entry, name, chinese_name in (
        ("ss_epoch", "epoch {}", "第 {} 轮"),
        ("ss_num_train_images", "pictures x repeats {}", "图片 x 重复 {}"),
    ):
        if (number := number_in(metadata, entry)) is not None:
            english = f"{english}, {name.format(f'{number:.0f}')}"
            chinese = f"{chinese}，{chinese_name.format(f'{number:.0f}')}"
    for entry, name, chinese_name in (
        ("ss_learning_rate", "learning rate", "学习率"),
        ("ss_optimizer", "optimizer", "优化器"),
    ):
        if text := metadata.get(entry):
            english = f"{english}, {name} {shortened(text)}"
            chinese = f"{chinese}，{chinese_name} {shortened(text)}"
    return Text(f"{english}.", f"{chinese}。")
