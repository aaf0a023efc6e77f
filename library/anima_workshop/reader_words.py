"""What programs make of a file, in Chinese: by the English phrases of networks/readers.py."""

from __future__ import annotations

from library.anima_workshop.findings import Finding, Severity
from library.reporting.texts import Text
from networks.reader_rules import Effect
from networks.readers import Answer, Verdict
from networks.readers import Finding as ReaderFinding

ANSWERS = {
    Answer.ALL: Text("all of it", "全部"),
    Answer.PART: Text("a part of it", "一部分"),
    Answer.NONE: Text("nothing of it", "无法使用"),
}
EFFECTS = {
    Effect.REFUSES: "拒绝整个文件，因为有",
    Effect.DROPS: "丢弃",
    Effect.SPOILS: "读错",
    Effect.MISSES: "缺少",
}
PHRASES = {
    "names that do not begin with diffusion_model. or lora_unet_": "不以 diffusion_model. 或 lora_unet_ 开头的名称",
    "LoKr factors spelled with .weight": "带 .weight 的 LoKr 因子",
    "one factor of a LoRA without the other": "缺了另一半的 LoRA 因子",
    "whole weights, which are no differences": "完整的权重（不是差值）",
    "keys that are no factors": "不是因子的键",
    "a lora_up without its lora_down": "没有 lora_down 的 lora_up",
    "DoRA's magnitudes as PEFT spells them (it applies the LoRA beside)": "PEFT 写法的 DoRA 幅度（仍应用其 LoRA）",
    "differences of the norms' biases, which the norms do not have": "归一化层偏置的差值（这些层没有偏置）",
    "what is of the text encoder": "文本编码器的部分",
    "the part that reads the text encoder, under lora_unet_ names": "lora_unet_ 名称下的 LLM adapter 部分",
    "other spellings than lora_down, lora_up, lora_A and lora_B": "lora_down、lora_up、lora_A、lora_B 以外的写法",
    "whole weights (set_weight)": "完整的权重（set_weight）",
    "differences of biases spelled bias.diff": "写作 bias.diff 的偏置差值",
    "its names: it finds no block of the model in them": "名称中找不到模型的块",
    "differences of norms": "归一化层的差值",
    "OFT and BOFT: alpha is another limit there, and 0 leaves nothing of them":
        "OFT 与 BOFT：那里的 alpha 是另一种上限，0 会让它们完全不起作用",
    "LoHa": "LoHa",
    "differences of full rank and whole weights": "满秩差值和完整的权重",
    "modules whose factors it does not know, spelled as they are": "因子写法不被识别的模块",
    "names that it finds no module for": "找不到对应模块的名称",
    "the MLPs, under lora_unet_ names": "lora_unet_ 名称下的 MLP",
    "what is not of a block, under lora_unet_ names": "lora_unet_ 名称下不属于块的部分",
    "alpha beside lora_A and lora_B: it applies the scale 1": "lora_A、lora_B 旁的 alpha（按缩放 1 应用）",
    "DoRA's magnitudes (it applies what stands beside them)": "DoRA 幅度（仍应用旁边的因子）",
    "alpha": "alpha",
    "LoKr": "LoKr",
    'keys without "lora" in them': "名称里没有 lora 的键",
    "names that do not begin with diffusion_model.": "不以 diffusion_model. 开头的名称",
    "a LoRA of an embedding: its layer stays without values": "嵌入层的 LoRA（该层没有初值）",
    "lora_down and lora_up": "lora_down 和 lora_up",
    "lora_A and lora_B without .weight or with a name before it, and one without the other: "
    "their layers stay without values": "没有 .weight 的 lora_A、lora_B，或不成对的因子（这些层没有初值）",
    "ss_base_model_version, which it knows the family by": "ss_base_model_version（用来识别模型）",
    "modelspec.architecture, which it knows the family by": "modelspec.architecture（用来识别模型）",
    "modelspec.resolution as WIDTHxHEIGHT": "“宽x高”格式的 modelspec.resolution",
    "the tags of all folders but the first of ss_tag_frequency": "ss_tag_frequency 中第一个文件夹以外的标签",
    "ss_tag_frequency: its text is no JSON object": "可读的 ss_tag_frequency（不是 JSON 对象）",
    "sshs_model_hash, whose beginning is the AutoV3 hash": "sshs_model_hash（其开头即 AutoV3 哈希）",
}  # fmt: skip


def said(finding: ReaderFinding) -> Text:
    phrase = PHRASES.get(finding.what, finding.what)
    count = f"（{len(finding.keys)} 个键，{finding.modules} 个模块）" if finding.keys else ""
    return Text(finding.text, f"{EFFECTS[finding.effect]}{phrase}{count}")


def told(verdict: Verdict) -> Text:
    """All of a verdict's findings; a dash for none."""
    found = [said(finding) for finding in verdict.findings]
    return Text("; ".join(f.english for f in found) or "-", "；".join(f.chinese for f in found) or "-")


def comfyui(verdict: Verdict) -> Finding | None:
    """A finding where the program for which files are trained here takes less than all."""
    if verdict.answer is Answer.ALL:
        return None
    text, answer = told(verdict), ANSWERS[verdict.answer]
    return Finding(
        "readers.comfyui",
        Severity.WARNING,
        Text(
            f"{verdict.reader.name} takes {answer.english}: {text.english}.",
            f"{verdict.reader.name}：{answer.chinese}；{text.chinese}。",
        ),
        where=tuple(key for finding in verdict.findings for key in finding.keys),
    )
