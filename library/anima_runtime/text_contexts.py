"""Text contexts made ahead: where the LLM adapter does not train, it need not run in every step.

It reads one caption at a time, with a cache and without. In a batch the shorter captions would be padded and
rounded otherwise than alone, so that what a picture is trained with would depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from library.device_utils import clean_memory_on_device

if TYPE_CHECKING:
    from library.anima_backend.modelling.dit import Anima
    from library.data.data_types import TextOutputs

READ_TEXT = ("llm_adapter.", "text_encoders.")
"""How the paths of the modules begin that stand between a caption and its context."""


def adapts_text(adapted: Iterable[str]) -> bool:
    """Whether a text's context depends on one of the modules at these paths."""
    return any(path.startswith(READ_TEXT) for path in adapted)


@torch.no_grad()
def prompt_context(model: Anima, outputs: TextOutputs) -> Tensor:
    """(1, max(512, T), X) of a prompt to draw, by the model's LLM adapter as it is now.

    outputs: of AnimaTextEncodingStrategy.encode_prompt. In the model's dtype, where the model computes;
    an LLM adapter that waits elsewhere goes back there.
    """
    home = next(model.llm_adapter.parameters()).device
    model.llm_adapter.to(model.device)
    names = "qwen_hidden", "t5_ids", "t5_weights"
    hidden, ids, weights = (outputs[name][None].to(model.device) for name in names)
    context = model.preprocess_text_embeds(hidden, ids, t5_weights=weights)
    model.llm_adapter.to(home)
    return context


class TextContexts:
    """The frozen LLM adapter of a model, which is in the host's memory while it rests."""

    def __init__(self, model: Anima) -> None:
        self.model = model

    def make(self, outputs: TextOutputs) -> TextOutputs:
        """What `make_now` does, on the CPU."""
        return {"context": self.make_now(outputs)["context"].cpu().clone()}

    @torch.no_grad()
    def make_now(self, outputs: TextOutputs) -> TextOutputs:
        """context (T, X) of a caption's outputs, in the model's dtype, where the model computes."""
        device = self.model.device
        self.model.llm_adapter.to(device)
        names = "qwen_hidden", "t5_ids", "t5_mask"
        hidden, ids, mask = (outputs[name][None].to(device) for name in names)
        real = torch.ones(hidden.shape[:2], dtype=torch.long, device=device)
        weights = outputs["t5_weights"][None].to(device) if "t5_weights" in outputs else None
        context = self.model.preprocess_text_embeds(
            hidden, ids, qwen_mask=real, t5_mask=mask, t5_weights=weights
        )
        return {"context": context[0, : ids.shape[1]]}

    def rest(self) -> None:
        if self.model.device.type != "cpu":
            self.model.llm_adapter.cpu()
            clean_memory_on_device(self.model.device)
