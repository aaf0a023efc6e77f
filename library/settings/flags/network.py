"""The flags of adapters."""

from __future__ import annotations

from dataclasses import dataclass

from library.errors import Problem
from library.settings.effects import loses_to, needs
from library.settings.flags.optimizer import OWN_RATE, sets_own_rate
from library.settings.options import above, at_least, between, flag


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Adapters"""

    network_module: str | None = flag(None, "the kind of adapter")
    network_dim: int | None = flag(
        None,
        "rank, 4 if not given",
        check=at_least(1),
        idle=(
            loses_to(
                lambda o: o.dim_from_weights, "dim_from_weights takes the rank from network_weights"
            ),
        ),
    )
    network_alpha: float = flag(
        1.0,
        "scale = alpha / rank; 0 means the rank",
        check=at_least(0),
        idle=(
            loses_to(
                lambda o: o.dim_from_weights, "dim_from_weights takes it from network_weights too"
            ),
        ),
    )
    network_dropout: float | None = flag(
        None, "dropout between the factors of LoRA, of the output of LoKr", check=between(0, 0.999)
    )
    network_args: tuple[str, ...] | None = flag(None, "key=value arguments of the kind of adapter")
    network_weights: str | None = flag(None, "adapter file to start from", path=True)
    dim_from_weights: bool = flag(False, "take the rank from --network_weights")
    base_weights: tuple[str, ...] | None = flag(None, "adapter files merged into the base first", path=True)
    base_weights_multiplier: tuple[float, ...] | None = flag(
        None, "their strengths, 1 if not given"
    )
    scale_weight_norms: float | None = flag(
        None, "longest norm of each adapter's difference, kept after every update",
        check=above(0), off=(0,),
    )  # fmt: skip
    unet_lr: float | None = flag(
        None, "learning rate of the adapters", check=at_least(0), idle=(OWN_RATE,)
    )
    text_encoder_lr: tuple[float, ...] | None = flag(
        None, "learning rate of the text encoder, which trains only where this is above 0",
        check=at_least(0),
        idle=(
            loses_to(
                lambda o: o.network_train_unet_only and any(o.text_encoder_lr or ()),
                "network_train_unet_only leaves the text encoder alone",
            ),
            needs(
                lambda o: not sets_own_rate(o),
                "the text encoder trains, and " + OWN_RATE.reason,
            ),
        ),
    )  # fmt: skip
    network_train_unet_only: bool = flag(
        False, "leave the text encoder alone, whatever text_encoder_lr says"
    )
    network_train_text_encoder_only: bool = flag(
        False, "train only the text encoder",
        refused="the DiT's adapters are a part of every file here; unet_lr = 0 keeps them at nothing",
    )  # fmt: skip

    @property
    def text_encoder_rate(self) -> float | None:
        """At which adapters of the text encoder train; None where none do."""
        rates = () if self.network_train_unet_only else self.text_encoder_lr or ()
        return max(rates, default=0) or None

    def problems(self) -> list[Problem]:
        found = []
        if self.dim_from_weights and not self.network_weights:
            found.append(Problem("needs network_weights.", "dim_from_weights"))
        if len(self.base_weights_multiplier or ()) > len(self.base_weights or ()):
            found.append(Problem("has more numbers than base_weights.", "base_weights_multiplier"))
        if self.text_encoder_rate and len(self.text_encoder_lr or ()) > 1:
            found.append(Problem("expected one rate: there is one text encoder.", "text_encoder_lr"))
        if any(text.partition("=")[0].strip() == "text_encoder_lr" for text in self.network_args or ()):
            message = "is an option of its own: write text_encoder_lr beside network_args."
            found.append(Problem(message, "network_args text_encoder_lr"))
        return found
