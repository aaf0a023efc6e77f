"""Text contexts made ahead: where the LLM adapter does not train, it need not run in every step.

It reads one caption at a time, with a cache and without, unless more of one length are asked for. In a batch of
training the shorter captions would be padded and rounded otherwise than alone, so that what a picture is trained
with would depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from library.device_utils import all_alike, clean_memory_on_device, to_device

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


def put_away(model: Anima) -> None:
    """Keep the model's LLM adapter in the host's memory."""
    if model.device.type != "cpu":
        model.llm_adapter.cpu()
        clean_memory_on_device(model.device)


@dataclass(frozen=True)
class TextContexts:
    """What the frozen LLM adapter of a model makes of captions; it may be put away in between.

    size_of: a caption's S and T, Qwen's and T5's ids
    """

    model: Anima
    size_of: Callable[[str], tuple[int, int]]

    def make(self, outputs: Sequence[TextOutputs]) -> list[TextOutputs]:
        """context (T, X) of each of several captions of one size, in the model's dtype, on the CPU."""
        return [{"context": context.cpu().clone()} for context in self.contexts(outputs)]

    def make_now(self, outputs: TextOutputs) -> TextOutputs:
        """The same of one caption, where the model computes."""
        return {"context": self.contexts([outputs])[0]}

    @torch.no_grad()
    def contexts(self, outputs: Sequence[TextOutputs]) -> Tensor:
        """(B, T, X), without waiting for the device."""
        device = self.model.device
        self.model.llm_adapter.to(device)

        def stacked(name: str) -> Tensor:
            return to_device(torch.stack([each[name] for each in outputs]), device)

        hidden = stacked("qwen_hidden")
        real = torch.ones(hidden.shape[:2], dtype=torch.long, device=device)
        weights = stacked("t5_weights") if "t5_weights" in outputs[0] else None
        return self.model.text_rows(hidden, stacked("t5_ids"), real, stacked("t5_mask"), weights)

    @torch.no_grad()
    def is_even(self, text: str, rows: int) -> bool:
        """Whether equal captions of this one's size get the same bits everywhere in a batch of `rows`.

        One block is tried: the others have the same shapes, and so the same kernels.
        """
        model, (source, target) = self.model, self.size_of(text)
        adapter, params = model.llm_adapter.to(model.device), model.llm_adapter.params
        hidden = torch.linspace(-1, 1, source * params.source_dim).view(source, -1)
        ids = torch.arange(target) % params.vocab
        read = hidden.to(model.dtype).repeat(rows, 1, 1), ids.repeat(rows, 1)
        masks = (torch.ones(rows, length, dtype=torch.long) for length in (source, target))
        tried = [tensor.to(model.device) for tensor in (*read, *masks)]
        return all_alike(adapter(*tried, depth=1))
