"""What a run is told at its start: rates that will not do what was meant, and what official sd-scripts
would have done otherwise with the same options.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from library.anima_runtime.config_adapter import COMPONENT_RATES, AnimaConfig
from library.errors import Problem
from library.settings.flags.optimizer import sets_own_rate
from library.settings.optimizer_names import OPTIMIZERS, optimizer_name
from library.settings.run_config import TrainConfig
from networks.arguments import parse_network_args

if TYPE_CHECKING:
    from networks.network import AdapterNetwork
    from networks.trained import Trained

FORKS_NOISE = ("anima_timestep_sampling", "anima_sigmoid_scale", "anima_noise_offset")
SHIFTS = ("anima_flow_shift", "discrete_flow_shift", "timestep_sampling")


@dataclass(frozen=True)
class Start:
    """A run before it starts. network: its adapters, perhaps without memory."""

    train: TrainConfig
    anima: AnimaConfig
    network: AdapterNetwork

    def given(self, *names: str) -> list[str]:
        """Those of the options that the user set to something that acts."""
        options = {**self.train.flat(), **vars(self.anima)}
        return [name for name in names if name in self.train.explicit and options[name]]

    @property
    def arguments(self) -> dict[str, str]:
        return parse_network_args(self.train.network.network_args)

    @property
    def finds_own_rate(self) -> bool:
        name = optimizer_name(self.train.optimizer)
        known = OPTIMIZERS.get(name)
        return sets_own_rate(self.train.situation()) or bool(known and known.finds_own_lr)


def rate_problems(train: TrainConfig, network: Trained) -> list[Problem]:
    """A run whose every rate is 0 trains nothing."""
    groups, _ = network.prepare_optimizer_params(
        None, train.network.unet_lr, train.optimizer.learning_rate
    )
    if sets_own_rate(train.situation()) or any(group["lr"] for group in groups):
        return []
    name = "learning_rate" if train.network.unet_lr is None else "unet_lr"
    return [Problem("is 0, and nothing has another rate: nothing would be trained.", name)]


def rate_notes(start: Start) -> list[str]:
    """Rates that were set and have no effect; and that none was given."""
    train = start.train
    if start.network.uses_default_rate:
        return [] if start.finds_own_rate else rate_is_missing(start)
    names = ("learning_rate", "unet_lr") if train.network.unet_lr is None else ("unet_lr",)
    reason = "every adapter has a rate of its own (rates of components, network_reg_lrs)"
    return [f"--{name} has no effect: {reason}." for name in start.given(*names)]


def rate_is_missing(start: Start) -> list[str]:
    if {"learning_rate", "unet_lr"} & start.train.explicit:
        return []
    settings, name = start.network.settings, optimizer_name(start.train.optimizer)
    kind, usual = settings.kind, settings.kinds.trained[settings.kind].usual_rate
    known = OPTIMIZERS.get(name)
    like = known.usual_rates if known else ""
    if like == "AdamW":
        advice = f"Usual for {kind} with {name}: {usual}."
    elif like == "Lion" or not known and "Lion" in name:
        advice = f"Usual for {kind} with {name}: a third to a tenth of AdamW's ({usual})."
    else:
        advice = f"Usual for {kind}: with AdamW {usual}; {name} may want another."
    default = f"{start.train.optimizer.learning_rate:g}, sd-scripts' default, is for whole models"
    return [f"no learning_rate was given: {default}; an adapter learns next to nothing. {advice}"]


@dataclass(frozen=True)
class Difference:
    """Something that official sd-scripts, or the early fork, does otherwise with these options.

    text: says what; None where it does not apply
    """

    text: Callable[[Start], str | None]


def acts(*names: str, official: str) -> Difference:
    """Options that act here and not there."""

    def text(start: Start) -> str | None:
        given = start.given(*names)
        verb = "acts" if len(given) == 1 else "act"
        return f"{', '.join(given)} {verb} here; official sd-scripts {official}" if given else None

    return Difference(text)


def beyond(start: Start) -> str | None:
    """What trains that official networks.lora_anima leaves alone, unless it was chosen."""
    placements = start.network.trained()
    norms = sum(placement.is_norm for placement in placements)
    layers = sum(p.path.startswith("llm_adapter.") and not p.is_norm for p in placements)
    parts = []
    if layers and "train_llm_adapter" not in start.arguments and not start.given("llm_adapter_lr"):
        parts.append(
            (f"{layers} layers of the LLM adapter", "network_args train_llm_adapter=false")
        )
    if norms and "train_norm" not in {*start.arguments, *start.train.explicit}:
        parts.append((f"{norms} norms", "--no-train_norm"))
    if not parts:
        return None
    what, how = (" and ".join(each) for each in zip(*parts))
    return f"{what} train too; official sd-scripts leaves them alone. Here: {how}"


def text_encoder(start: Start) -> str | None:
    network = start.train.network
    if network.network_train_unet_only or start.train.cache.cache_text_encoder_outputs:
        return None
    if network.text_encoder_rate:
        return None
    return (
        "the text encoder stays as it is; official sd-scripts trains a LoRA on it as well unless "
        "network_train_unet_only is set. Here: text_encoder_lr, above 0"
    )


def forks_shift(start: Start) -> str | None:
    if not start.given(*FORKS_NOISE) or {*SHIFTS} & start.train.explicit:
        return None
    return "sigma is not shifted; the early Anima fork always shifted it: anima_flow_shift = 3"


def lokr_factor(start: Start) -> str | None:
    chosen = {"lokr_factor", "factor"} & start.arguments.keys()
    if start.network.settings.kind != "LoKr" or chosen or start.train.network.dim_from_weights:
        return None
    return (
        "lokr_factor is 8; LyCORIS and official networks.lokr take -1, the factor nearest to a "
        "square. For the same: network_args lokr_factor=-1"
    )


def huber(start: Start) -> str | None:
    loss = start.train.loss
    if loss.loss_type not in ("huber", "smooth_l1") or loss.huber_schedule != "exponential":
        return None
    return (
        "huber_schedule = exponential falls to huber_c at noise; official sd-scripts keeps it near 1 "
        "for Anima, so that losses are up to 5.8 times as large there: look at huber_c again"
    )


DIFFERENCES = (
    acts("noise_offset", official="ignores it for Anima"),
    acts("min_timestep", "max_timestep", official="does not read them for Anima"),
    acts(*COMPONENT_RATES, official="reads rates of components for whole models only"),
    Difference(beyond),
    Difference(text_encoder),
    Difference(forks_shift),
    Difference(lokr_factor),
    Difference(huber),
)


def differences(start: Start) -> list[str]:
    """One line for each difference from sd-scripts that applies and was not chosen."""
    found = [difference.text(start) for difference in DIFFERENCES]
    return [f"differs from sd-scripts: {text}." for text in found if text]
