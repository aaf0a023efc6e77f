"""The flags of a run's length and of the memory of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from library.errors import Problem
from library.settings.effects import loses_to, needs
from library.settings.options import at_least, flag, number_or_word

VRAM_TARGETS = ("6", "8", "12", "16", "24", "auto")


def asks_for_checkpointing(o: Any) -> bool:
    return (
        o.gradient_checkpointing or o.cpu_offload_checkpointing or o.unsloth_offload_checkpointing
    )


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """Length of the run, memory of a step"""

    max_train_steps: int = flag(
        1600,
        "updates",
        check=at_least(0),
        off=(0,),
        idle=(
            loses_to(
                lambda o: o.max_train_epochs is not None,
                "max_train_epochs decides how long the run is",
            ),
        ),
    )
    max_train_epochs: int | None = flag(
        None, "epochs; wins over max_train_steps", check=at_least(1), off=(0,)
    )
    gradient_accumulation_steps: int = flag(1, "micro-steps per update", check=at_least(1))
    seed: int | None = flag(None, "seed of everything random; drawn and shown if not given")
    gradient_checkpointing: bool = flag(False, "recompute blocks in the backward pass: less memory")
    cpu_offload_checkpointing: bool = flag(False, "checkpointing that keeps block inputs in RAM")
    unsloth_offload_checkpointing: bool = flag(False, "the same as cpu_offload_checkpointing")
    checkpoint_every_n: int = flag(
        1,
        "checkpointing of every n-th block only: more memory, less time",
        check=at_least(1),
        idle=(needs(asks_for_checkpointing, "it needs gradient_checkpointing"),),
    )
    recompute: str = flag(
        "none",
        "cheap: recompute what costs no matrix product, in blocks that are not checkpointed",
        choices=("none", "cheap"),
        off=("none",),
        idle=(
            needs(
                lambda o: o.checkpoint_every_n > 1 or not asks_for_checkpointing(o),
                "gradient_checkpointing recomputes every block as a whole",
            ),
            needs(
                lambda o: not o.compile or o.compile_optional,
                "compile chooses itself what is computed again; see activation_memory_budget",
            ),
        ),
    )
    blocks_to_swap: int | None = flag(
        None,
        "blocks whose weights wait in RAM, up to all; two at a time are on the card. Where the model itself "
        "trains, so does what the optimizer has of them, with AdamW and Adafactor",
        check=at_least(1),
        off=(0,),
    )

    vram_target: str | None = flag(
        None,
        "GB of a card, or auto: the cheapest of the options above that fits it is chosen, beside those set",
        choices=VRAM_TARGETS,
        read=number_or_word,
    )

    @property
    def checkpoints(self) -> bool:
        """Whether blocks are checkpointed."""
        return bool(asks_for_checkpointing(self))

    @property
    def offloads(self) -> bool:
        """Whether inputs of checkpointed blocks wait in RAM."""
        return self.cpu_offload_checkpointing or self.unsloth_offload_checkpointing

    def problems(self) -> list[Problem]:
        if self.max_train_steps or self.max_train_epochs is not None:
            return []
        return [Problem("expected 1 or more, or max_train_epochs instead.", "max_train_steps = 0")]
