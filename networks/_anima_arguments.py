"""What network_args of an adapter on Anima may say: which modules, at which rates, with which dropout.

Default targets: the attention and feed-forward Linears of the DiT (280 at true size) and of the LLM
adapter (60), and every norm that has a weight (113 and 43). Where the text encoder trains, its attention
and feed-forward Linears too (196).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from library.anima_backend.modelling.text_encoder import PLACE
from library.errors import Problem
from networks.arguments import Pairs, Words, argument_text
from networks.network_settings import NormExport
from networks.targets import TargetRules, regex_problems

LLM_ADAPTER = "llm_adapter."
TEXT_ENCODER = f"{PLACE}."
DIT_TARGETS = (
    r"re:^blocks\.\d+\.(self|cross)_attn\.(q|k|v|output)_proj$",
    r"re:^blocks\.\d+\.mlp\.layer[12]$",
)
LLM_ADAPTER_TARGETS = (
    r"re:^llm_adapter\.blocks\.\d+\.(self|cross)_attn\.(q|k|v|o)_proj$",
    r"re:^llm_adapter\.blocks\.\d+\.mlp\.[02]$",
)
ADALN_TARGETS = (r"re:^blocks\.\d+\.adaln_modulation_(self_attn|cross_attn|mlp)\.[12]$",)
TEXT_ENCODER_TARGETS = (
    rf"re:^{re.escape(TEXT_ENCODER)}layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)$",
)
NO_LINEARS = ("none",)
ALIASES = {
    "use_dora": "dora_wd",
    "weight_decompose": "dora_wd",
    "wd_on_output": "wd_on_out",
    "rs_lora": "rslora",
    "use_rslora": "rslora",
}
"""Other names of arguments that all kinds have."""

# Component -> how its modules are recognised, first match first. Its rate: <name>_lr.
COMPONENTS: dict[str, Callable[[str], bool]] = {
    "text_encoder": lambda path: path.startswith(TEXT_ENCODER),
    "llm_adapter": lambda path: path.startswith(LLM_ADAPTER),
    "self_attn": lambda path: ".self_attn." in path,
    "cross_attn": lambda path: ".cross_attn." in path,
    "mlp": lambda path: ".mlp." in path,
    "mod": lambda path: "adaln_modulation" in path,
}


def patterns_in(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """The patterns of each argument that has some."""
    plain = ("target_modules", "exclude_patterns", "include_patterns")
    paired = [f"network_reg_{what}" for what in ("kinds", "dims", "alphas", "lrs")]
    found = {name: list(values.get(name) or ()) for name in plain}
    return found | {name: [pattern for pattern, _ in values.get(name) or ()] for name in paired}


@dataclass(frozen=True, kw_only=True)
class AdapterArguments:
    """network_args of every kind; the component rates come from their own flags as well.

    target_modules: None is the default list, ("none",) adapts no Linear (norms only)
    train_adaln:    adapts the blocks' modulations by sigma too, beside target_modules
    dora_wd:        trains a magnitude for each output too (DoRA); with wd_on_out=false, for each input
    rslora:         the scale is alpha / sqrt(rank)
    *_lr:           of a component; 0 freezes it. text_encoder_lr, given by its own flag, is above 0 where
                    the model holds its text encoder
    """

    target_modules: tuple[str, ...] | None = None
    train_llm_adapter: bool = True
    train_adaln: bool = False
    train_norm: bool = True
    norm_export: str = "diff"
    exclude_patterns: tuple[str, ...] = ()
    include_patterns: tuple[str, ...] = ()
    network_reg_kinds: Words = ()
    network_reg_dims: Pairs = ()
    network_reg_alphas: Pairs = ()
    network_reg_lrs: Pairs = ()
    loraplus_lr_ratio: float | None = None
    loraplus_unet_lr_ratio: float | None = None
    loraplus_text_encoder_lr_ratio: float | None = None
    text_encoder_lr: float | None = None
    llm_adapter_lr: float | None = None
    self_attn_lr: float | None = None
    cross_attn_lr: float | None = None
    mlp_lr: float | None = None
    mod_lr: float | None = None
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    dora_wd: bool = False
    wd_on_out: bool = True
    rslora: bool = False
    verbose: bool = False

    @staticmethod
    def problems_of(values: Mapping[str, Any]) -> list[Problem]:
        """What is wrong with values that could be read."""
        problems = []
        for name, value in values.items():
            if name.endswith("_dropout") and not 0 <= value < 1:
                problems.append(Problem("expected 0 <= p < 1.", f"{name}={value:g}"))
            if name.endswith(("_lr", "_ratio")) and value < 0:
                problems.append(Problem("expected 0 or more.", f"{name}={value:g}"))
            if name == "target_modules" and not value:
                problems.append(Problem("is empty. Write none to train norms only.", name))
        for pattern, value in values.get("network_reg_dims", ()):
            if value < 0 or not float(value).is_integer():
                problems.append(
                    Problem("expected whole ranks.", f"network_reg_dims {pattern}={value:g}")
                )
        for pattern, value in (
            *values.get("network_reg_lrs", ()),
            *values.get("network_reg_alphas", ()),
        ):
            if value < 0:
                problems.append(Problem("expected 0 or more.", f"{pattern}={value:g}"))
        problems += regex_problems(patterns_in(values))
        exports, norm_export = [each.value for each in NormExport], values.get("norm_export")
        if norm_export is not None and norm_export not in exports:
            message = f"expected {', '.join(exports)}."
            problems.append(Problem(message, f"norm_export={norm_export}"))
        return problems

    @property
    def component_rates(self) -> dict[str, float]:
        """The rates that were given, by component."""
        given = {name: getattr(self, f"{name}_lr") for name in COMPONENTS}
        return {name: lr for name, lr in given.items() if lr is not None}

    @property
    def loraplus_ratio(self) -> float | None:
        return self.loraplus_unet_lr_ratio or self.loraplus_lr_ratio

    @property
    def loraplus_text_encoder_ratio(self) -> float | None:
        return self.loraplus_text_encoder_lr_ratio or self.loraplus_lr_ratio

    def target_rules(self) -> TargetRules:
        targets = DIT_TARGETS + (LLM_ADAPTER_TARGETS if self.train_llm_adapter else ())
        targets += TEXT_ENCODER_TARGETS if self.text_encoder_lr else ()
        if self.target_modules is not None:
            targets = () if self.target_modules == NO_LINEARS else self.target_modules
        targets += ADALN_TARGETS if self.train_adaln else ()
        return TargetRules(
            targets,
            exclude=self.exclude_patterns,
            include=self.include_patterns,
            prefixes=() if self.train_llm_adapter else (LLM_ADAPTER,),
            train_norm=self.train_norm,
            kinds=self.network_reg_kinds,
            dims=self.network_reg_dims,
            alphas=self.network_reg_alphas,
            lrs=self.network_reg_lrs,
        )

    def effective(self) -> dict[str, str]:
        """The arguments as metadata: those that always matter and those not at their default."""
        always = ("train_norm", "train_llm_adapter", "norm_export")
        shown = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in always or value != field.default:
                shown[field.name] = argument_text(value)
        return shown


def component_of(path: str) -> str:
    return next((name for name, test in COMPONENTS.items() if test(path)), "")
