"""What files say of their making, side by side: the metadata's settings, those that differ first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from library.anima_workshop.metadata_numbers import number_in
from library.reporting.texts import Text

SETTINGS: Mapping[str, Text] = {
    "network_module": Text("kind of adapter", "适配器种类"),
    "network_dim": Text("rank", "秩"),
    "network_alpha": Text("alpha", "alpha"),
    "network_args": Text("network_args", "网络参数"),
    "steps": Text("steps", "步数"),
    "epoch": Text("epochs", "轮数"),
    "max_train_steps": Text("steps that were planned", "计划步数"),
    "num_epochs": Text("epochs that were planned", "计划轮数"),
    "learning_rate": Text("learning rate", "学习率"),
    "unet_lr": Text("learning rate of the DiT", "DiT 学习率"),
    "text_encoder_lr": Text("learning rate of the text encoder", "文本编码器学习率"),
    "optimizer": Text("optimizer", "优化器"),
    "lr_scheduler": Text("schedule", "学习率调度"),
    "lr_warmup_steps": Text("warm-up", "预热步数"),
    "total_batch_size": Text("pictures of a step", "每步图片数"),
    "num_train_images": Text("pictures with repeats", "图片数（含重复）"),
    "num_reg_images": Text("regularisation pictures", "正则图片数"),
    "resolution": Text("resolution", "分辨率"),
    "network_dropout": Text("dropout", "dropout"),
    "caption_dropout_rate": Text("caption dropout", "标注 dropout"),
    "scale_weight_norms": Text("limit of the norms", "范数上限"),
    "max_grad_norm": Text("limit of the gradient", "梯度裁剪"),
    "loss_type": Text("loss", "损失"),
    "weighting_scheme": Text("weighting", "加权"),
    "timestep_sampling": Text("how sigma is drawn", "sigma 采样"),
    "discrete_flow_shift": Text("shift", "shift"),
    "mixed_precision": Text("precision", "精度"),
    "base_weights": Text("merged in before", "预先合并的权重"),
    "network_weights": Text("started from", "起始权重"),
    "ema_decay": Text("EMA decay", "EMA 衰减"),
    "seed": Text("seed", "种子"),
    "sd_model_name": Text("base model", "底模"),
}
"""In the order that a reader looks for them: entry without ss_ -> what it is called."""

OF_ONE_FILE = {
    *("session_id", "training_started_at", "training_finished_at", "output_name", "datasets"),
    *("tag_frequency", "dataset_dirs", "reg_dataset_dirs", "bucket_info", "adapted_parts"),
    *("new_sd_model_hash", "sd_model_hash", "vae_hash", "new_vae_hash", "made_from"),
}
"""Differ between any two files, or are too long to stand side by side."""
LONGEST = 48
NONE = "None"
"""As sd-scripts writes an option that is not set."""


@dataclass(frozen=True)
class Setting:
    """entry: of the metadata; values: of each file; None where it says nothing"""

    entry: str
    name: Text
    values: Sequence[str | None]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1

    @property
    def shown(self) -> list[str]:
        """The values as they can stand side by side."""
        return [
            "-"
            if value is None
            else value
            if len(value) <= LONGEST
            else f"{value[: LONGEST - 3]}..."
            for value in self.values
        ]


def settings_of(metadatas: Sequence[Mapping[str, str]]) -> list[Setting]:
    """Those that differ first, in the order of SETTINGS; other entries only where they differ."""
    others = {
        entry.removeprefix("ss_")
        for metadata in metadatas
        for entry in metadata
        if entry.startswith("ss_")
    }
    known = [setting(entry, name, metadatas) for entry, name in SETTINGS.items()]
    rest = sorted(others - SETTINGS.keys() - OF_ONE_FILE)
    more = [setting(entry, Text.same(entry), metadatas) for entry in rest]
    said = [one for one in known if any(value is not None for value in one.values)]
    same = [one for one in said if not one.differs]
    return [one for one in (*said, *more) if one.differs] + same


def setting(entry: str, name: Text, metadatas: Sequence[Mapping[str, str]]) -> Setting:
    return Setting(f"ss_{entry}", name, [value_of(metadata, entry) for metadata in metadatas])


def value_of(metadata: Mapping[str, str], entry: str) -> str | None:
    """What stands there; None for nothing."""
    found = metadata.get(f"ss_{entry}", NONE)
    return None if found == NONE else found


def number_of(metadata: Mapping[str, str], *entries: str) -> float | None:
    """The first of the entries that holds a number above 0."""
    numbers = (number_in(metadata, f"ss_{entry}") for entry in entries)
    return next((number for number in numbers if number and number > 0), None)
