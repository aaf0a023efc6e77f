"""What the presets say: one table, from which their files are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from library.settings.presets import CARDS, KINDS, PURPOSES

Value = str | int | float | bool | list[str]


class Line(NamedTuple):
    """An option of a preset, with what is said of it in English and Chinese."""

    name: str
    value: Value
    english: str = ""
    chinese: str = ""


TITLES = {
    "character": ("A character", "角色"),
    "style": ("A style", "画风"),
    "concept": ("A concept", "概念"),
}
KIND_NAMES = {"lora": "LoRA", "lokr": "LoKr"}
DROPOUT = {"character": 0.05, "style": 0.1, "concept": 0.05}
ADAPTERS: Mapping[str, tuple[Line, ...]] = {
    "lora": (
        Line("network_module", "networks.lora_anima"),
        Line("network_dim", 16),
        Line("network_alpha", 16),
        Line("learning_rate", 1e-4),
    ),
    "lokr": (
        Line("network_module", "networks.lokr_anima"),
        Line("network_dim", 100000, "full matrices", "完整矩阵"),
        Line("network_alpha", 1),
        Line("learning_rate", 1.5e-4, "bears a little more than LoRA", "可比 LoRA 略高"),
    ),
}
ARGUMENTS = {
    "lora": ["train_llm_adapter=false"],
    "lokr": ["lokr_factor=8", "train_llm_adapter=false"],
}
SHARED_END = (
    Line("cache_latents", True),
    Line("cache_text_encoder_outputs", True),
    Line("mixed_precision", "bf16"),
    Line("seed", 42),
    Line("save_precision", "bf16"),
)


def presets() -> dict[str, str]:
    """Name -> text of its file."""
    named = {
        f"{purpose}_{kind}_{card}gb": ordinary(purpose, kind, card)
        for purpose in PURPOSES
        for kind in KINDS
        for card in CARDS
    }
    return {**named, "reference_author": reference_author()}


def ordinary(purpose: str, kind: str, card: int) -> str:
    english, chinese = TITLES[purpose]
    few, many = PURPOSES[purpose].pictures
    epochs, name = PURPOSES[purpose].usual, KIND_NAMES[kind]
    head = [
        f"{english} as a {name} on a card of {card} GB, {few} to {many} pictures (memory counted, not measured).",
        f"在 {card} GB 显卡上用 {few} 到 {many} 张图片训练{chinese} {name}（显存为计算值，尚未实测）。",
        "The cards' presets differ in vram_target alone: what is learned is the same on all of them.",
        "不同显卡的预设只有 vram_target 不同：学到的内容完全相同。",
    ]
    lines = [
        *ADAPTERS[kind],
        Line("network_args", ARGUMENTS[kind]),
        Line("train_norm", False),
        Line("optimizer_type", "AdamW"),
        Line("lr_scheduler", "cosine"),
        Line("lr_warmup_steps", 0.05),
        Line("max_train_epochs", epochs, "looks at each picture, with num_repeats = 1",
             "每张图看的次数（num_repeats = 1 时）"),
        Line("save_every_n_epochs", epochs // 10),
        Line("caption_dropout_rate", DROPOUT[purpose]),
        Line("timestep_sampling", "sigmoid"),
        Line("vram_target", card, "the memory modes that fit are chosen", "自动选择放得下的显存方式"),
        *SHARED_END,
    ]  # fmt: skip
    return text_of(head, lines)


def reference_author() -> str:
    """As the base model's author trains with diffusion-pipe, where this trainer has the option."""
    head = [
        "As the author of the base model trains: adaLN too, a low rate, large pictures at half size too.",
        "底模作者的训练方式：也训练 adaLN，学习率低，大图再按一半尺寸算损失。",
        "Its length and its memory are yours to choose: max_train_epochs, vram_target.",
        "训练长度和显存方式请自己写：max_train_epochs、vram_target。",
    ]
    lines = [
        Line("network_module", "networks.lora_anima"),
        Line("network_dim", 32),
        Line("network_alpha", 32),
        Line("network_args", ["train_adaln=true", "train_llm_adapter=false"]),
        Line("train_norm", False),
        Line("learning_rate", 2e-5),
        Line("optimizer_type", "AdamW"),
        Line("optimizer_args", ["betas=(0.9, 0.99)", "weight_decay=0.01"]),
        Line("lr_scheduler", "constant"),
        Line("timestep_sampling", "sigmoid"),
        Line("sigmoid_scale", 1.3),
        Line("multiscale_loss_weight", 0.5),
        *SHARED_END,
    ]
    return text_of(head, lines)


def text_of(head: list[str], lines: list[Line]) -> str:
    made = [f"# {line}" for line in [*head, "Made by / 由此生成: tools/make_presets.py"]]
    for line in lines:
        said = f"  # {line.english} / {line.chinese}" if line.english else ""
        made.append(f"{line.name} = {toml_text(line.value)}{said}")
    return "\n".join(made) + "\n"


def toml_text(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(toml_text, value))}]"
    return f'"{value}"' if isinstance(value, str) else repr(value)
